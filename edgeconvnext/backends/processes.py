"""Files of several runtimes timed in turns, each in a process of its own that is stopped while another one has its turn.

Thread pools of runtimes spin while they wait, and take cores from each other within one process: a stopped process takes none.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgeconvnext.backends.timed_process import Opened
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation import timing
from edgeconvnext.evaluation.timing import Samples

ANSWER_SECONDS = 300.0
"""A file that gives no answer for so long is given up."""

_ENDED = None


@dataclass(frozen=True)
class TimedFile:
    """A file to time: an artifact or a float form, and the backend that opens it."""

    backend: str
    path: Path


@dataclass(frozen=True)
class ProcessTimes:
    """What one file took: opening it, and its runs in turns."""

    opened: Opened
    samples: Samples


class TimedProcess:
    """A process that holds one open file. Use it in a `with` statement: it is stopped from its start to its first turn.

    Raises ExportError for a file that does not open or does not take the batch, and for one that ends or does not answer.
    """

    def __init__(self, file: TimedFile, threads: int, batch: int) -> None:
        self._name = file.path.name
        asked = {
            "backend": file.backend,
            "path": str(file.path),
            "threads": threads,
            "batch": batch,
            "cores": usable_cores()[:threads],
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgeconvnext.backends.timed_process", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.opened: Opened

    def __enter__(self) -> Self:
        try:
            self.opened = Opened(**self._answer())
            self._stop(True)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def turn(self, seconds: float) -> list[float]:
        """Return the times of runs in `seconds`, milliseconds; the process runs for that turn only."""
        self._stop(False)
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{seconds!r}\n")
            self._process.stdin.flush()
            times: list[float] = self._answer()["times_ms"]
        except BrokenPipeError:
            raise self._ended() from None
        self._stop(True)
        return times

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            raise ExportError(f"{self._name} gave no answer for {ANSWER_SECONDS:.0f} seconds.") from None
        if line is _ENDED:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ExportError(answer["error"])
        return answer

    def _ended(self) -> ExportError:
        return ExportError(f"The process that ran {self._name} ended with exit code {self._process.wait()}.")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(_ENDED)

    def _stop(self, stopped: bool) -> None:
        """Stop the process, or let it go on."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            process.suspend() if stopped else process.resume()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


def time_processes(
    files: Mapping[str, TimedFile],
    *,
    threads: int,
    batch: int,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, ProcessTimes | str]:
    """Time files in turns, each in a process of its own, pinned to as many cores as it has threads.

    seconds: measured time of each, at least; None: timing.MIN_SECONDS. Returns for each file its times, or why there are none.
    """
    results: dict[str, ProcessTimes | str] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, TimedProcess] = {}
        for name, file in files.items():
            try:
                running[name] = stack.enter_context(TimedProcess(file, threads, batch))
            except ExportError as error:
                results[name] = str(error)
        turns = _turns(running, results, timing.MIN_SECONDS if seconds is None else seconds, clock)
        for name, own in turns.items():
            times = np.array([value for block in own for value in block])
            blocks = np.repeat(np.arange(len(own)), [len(block) for block in own])
            results[name] = ProcessTimes(running[name].opened, Samples(times, blocks))
    return {name: results[name] for name in files}


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _turns(
    running: Mapping[str, TimedProcess],
    failed: dict[str, ProcessTimes | str],
    seconds: float,
    clock: Callable[[], float],
) -> dict[str, list[list[float]]]:
    """Return the times of each process by turn. One that ends is left out, with its reason in `failed`."""
    turns: dict[str, list[list[float]]] = {name: [] for name in running}
    spent = dict.fromkeys(running, 0.0)
    for name in list(turns):
        _one_turn(running[name], timing.WARM_UP_S, name, turns, failed)
        if name in turns:
            turns[name].clear()

    def unfinished(name: str) -> bool:
        own = turns[name]
        return spent[name] < seconds or len(own) < timing.MIN_BLOCKS or sum(map(len, own)) < timing.MIN_RUNS

    number = 0
    while any(map(unfinished, turns)):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            start = clock()
            _one_turn(running[name], timing.BLOCK_S, name, turns, failed)
            spent[name] += clock() - start
        number += 1
    return turns


def _one_turn(
    process: TimedProcess,
    seconds: float,
    name: str,
    turns: dict[str, list[list[float]]],
    failed: dict[str, ProcessTimes | str],
) -> None:
    try:
        turns[name].append(process.turn(seconds))
    except ExportError as error:
        failed[name] = str(error)
        del turns[name]
