"""What a stage costs: wall time and peak memory, sampled while it runs."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType

from edgeconvnext.memory import _PROC, _resident_mib

_SAMPLE_SECONDS = 0.05
_SAMPLES_PER_WORKER_LOOK = 10  # worker processes change slowly, and looking at them is dearer


class CostMeter:
    """Measure the block it is entered for.

    seconds: wall time. peak_mib: the most resident memory of this process plus the private memory of its worker
    processes, sampled every 50 ms (workers every 500 ms). Without /proc (macOS) it is this process's high-water mark so
    far, which is an upper bound for the stage.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak_mib = 0.0
        self._workers_mib = 0.0
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="stage-memory", daemon=True)

    def __enter__(self) -> CostMeter:
        self._start = time.perf_counter()
        self._look(workers=True)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._sampler.join()
        self._look(workers=False)

    def _sample(self) -> None:
        ticks = 0
        while not self._stop.wait(_SAMPLE_SECONDS):
            ticks += 1
            self._look(workers=ticks % _SAMPLES_PER_WORKER_LOOK == 0)

    def _look(self, workers: bool) -> None:
        if workers:
            self._workers_mib = sum(_private_mib(pid) for pid in _descendants(os.getpid()))
        self.peak_mib = max(self.peak_mib, _resident_mib() + self._workers_mib)


def _descendants(pid: int) -> list[int]:
    """Return the processes started by `pid`, and theirs (a fork server's workers are its children, not ours)."""
    found: list[int] = []
    try:
        tasks = list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return found
    for task in tasks:
        try:
            children = [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def _private_mib(pid: int) -> float:
    """Return the memory that only `pid` maps: what a forked worker adds to the pages it shares with its parent."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 2**10
