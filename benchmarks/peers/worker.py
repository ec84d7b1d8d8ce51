"""The driver's side of a worker: its environment, its process, and one method for each command."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
import venv
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.peers.grid import Environment, PeerName
from benchmarks.peers.protocol import Task

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENTS = HERE.parent / ".environments"
LONGEST_ANSWER_S = 3600


class WorkerError(Exception):
    """A worker answered with an error, ended, or took too long. The message is one line."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What quantising took. peak_mib: of the worker's process, libraries included."""

    seconds: float
    peak_mib: float
    size_bytes: int


class Worker:
    """One process in the environment of `peer`. What it prints goes to `log`."""

    def __init__(self, peer: PeerName, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a")
        self._process = subprocess.Popen(
            [str(environment(peer)), "-m", f"benchmarks.peers.{peer}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, _type: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def versions(self) -> str:
        return self._ask(command="versions")["versions"]

    def quantize(self, task: Task) -> Cost:
        values = {name: str(value) for name, value in dataclasses.asdict(task).items()}
        return Cost(**self._ask(command="quantize", task=values))

    def load(self, artifact: Path, threads: int | None = None) -> str:
        """Open an artifact and return the runtime's name and version."""
        return self._ask(command="load", artifact=str(artifact), threads=threads)["runtime"]

    def logits(self, images: Path, logits: Path) -> np.ndarray:
        self._ask(command="logits", images=str(images), logits=str(logits))
        return np.load(logits)

    def times_ms(self, images: Path, runs: int) -> list[float]:
        return self._ask(command="time", images=str(images), runs=runs)["times_ms"]

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its exit status is read below
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(LONGEST_ANSWER_S):
                raise WorkerError(f"no answer to {request['command']} within {LONGEST_ANSWER_S} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the process ended with exit status {self._process.wait()} during {request['command']}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer


def environment(peer: Environment) -> Path:
    """Return the interpreter of a peer's environment, made on first use and again when its pins change.

    torchao has none of its own: it is a dependency of this project.
    """
    if peer == "torchao":
        return Path(sys.executable)
    pins = HERE / f"{peer}.txt"
    folder = ENVIRONMENTS / peer
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if not installed.is_file() or installed.read_text() != pins.read_text():
        print(f"installing {pins.name} into {folder.relative_to(ROOT)}", flush=True)
        if not python.is_file():
            venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(pins)]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if result.returncode:
            raise WorkerError(f"{pins.name} cannot be installed: {result.stderr.strip().splitlines()[-1]}")
        installed.write_text(pins.read_text())
    return python
