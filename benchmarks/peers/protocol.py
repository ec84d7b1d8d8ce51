"""What a worker answers on its standard input and output, one JSON object a line; standard library and numpy only.

    {"command": "versions"}                                    -> {"versions": "onnxruntime 1.32.0"}
    {"command": "quantize", "task": {...}}                     -> {"seconds": 9.1, "peak_mib": 310.0, "size_bytes": 3812345}
    {"command": "load", "artifact": "model.onnx", "threads": 1} -> {"runtime": "onnxruntime 1.32.0"}
    {"command": "logits", "images": "a.npy", "logits": "b.npy"} -> {}
    {"command": "time", "images": "a.npy", "runs": 30}          -> {"times_ms": [1.6, ...]}

Whatever fails is answered as {"error": first line}. Libraries print to standard output as well, so replies leave through
a copy of it, and the original leads to standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

Placement = Literal["peer's own default", "all weighted ops", "no depthwise", "linears only"]
Bits = Literal["W8A8", "W4A8"]
Activations = Literal["affine", "symmetric"]
Run = Callable[[np.ndarray], np.ndarray]

EVALUATION_BATCH = 16


@dataclass(frozen=True)
class Task:
    """What to quantise, with which images, and how.

    onnx, program: the same FP32 network as an ONNX file and as a torch.export program. calibration: .npy of preprocessed
    images, float32 (N, C, H, W). artifact: file to write. method: a key of the peer's own table of methods.
    """

    onnx: Path
    program: Path
    calibration: Path
    artifact: Path
    method: str
    placement: Placement
    bits: Bits
    activations: Activations


@dataclass(frozen=True)
class Loaded:
    """An artifact ready to run: (N, C, H, W) to (N, classes). runtime: name, version, and what is special about it."""

    run: Run
    runtime: str


class Peer(Protocol):
    """What each worker module brings."""

    def versions(self) -> str: ...

    def quantize(self, task: Task) -> list[Path]:
        """Write the artifact and return its files."""

    def load(self, artifact: Path, threads: int | None) -> Loaded:
        """Open an artifact in its runtime; threads None leaves the choice to it."""


def serve(peer: Peer) -> None:
    """Answer commands until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    state = _State(peer)
    for line in sys.stdin:
        try:
            answer = state.answer(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": _first_line(error)}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


class _State:
    """A peer and the artifact it has open."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.run: Run | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        command = request["command"]
        if command == "versions":
            return {"versions": self.peer.versions()}
        if command == "quantize":
            return self._quantize(request["task"])
        if command == "load":
            loaded = self.peer.load(Path(request["artifact"]), request["threads"])
            self.run = loaded.run
            return {"runtime": loaded.runtime}
        if self.run is None:
            raise ValueError(f"{command} before load")
        if command == "logits":
            images = np.load(request["images"], mmap_mode="r")
            np.save(request["logits"], _in_batches(self.run, images))
            return {}
        if command == "time":
            return {"times_ms": _times_ms(self.run, np.load(request["images"]), request["runs"])}
        raise ValueError(f"unknown command {command!r}")

    def _quantize(self, values: dict[str, str]) -> dict[str, Any]:
        paths = {name: Path(values.pop(name)) for name in ("onnx", "program", "calibration", "artifact")}
        task = Task(**paths, **values)  # type: ignore[arg-type]
        started = time.perf_counter()
        files = self.peer.quantize(task)
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "peak_mib": peak_mib(),
            "size_bytes": sum(file.stat().st_size for file in files),
        }


def calibration_batches(task: Task, size: int) -> list[np.ndarray]:
    """Return the calibration images in batches of `size`, each (N, C, H, W)."""
    images = np.load(task.calibration)
    return [images[start : start + size] for start in range(0, len(images), size)]


def peak_mib() -> float:
    """Return the largest resident memory of this process so far.

    On Linux from VmHWM: ru_maxrss of a started program begins with the peak of the process that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def _in_batches(run: Run, images: np.ndarray) -> np.ndarray:
    """Run all images, the last batch filled up with copies of its last image, so that every batch has one shape."""
    pieces = []
    for start in range(0, len(images), EVALUATION_BATCH):
        piece = np.ascontiguousarray(images[start : start + EVALUATION_BATCH])
        filled = np.concatenate([piece, np.repeat(piece[-1:], EVALUATION_BATCH - len(piece), axis=0)])
        pieces.append(run(filled)[: len(piece)])
    return np.concatenate(pieces).astype(np.float32)


def _times_ms(run: Run, images: np.ndarray, runs: int) -> list[float]:
    """Time single runs; one before them, on cold caches, is not counted."""
    run(images)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run(images)
        times.append(1000 * (time.perf_counter() - start))
    return times


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[0].split()) if lines else ""
    return f"{type(error).__name__}: {first}"[:300]
