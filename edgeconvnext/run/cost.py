"""What a stage costs: wall time and peak memory, sampled while it runs."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import psutil

from edgeconvnext.memory import resident_mib

_SAMPLE_SECONDS = 0.05
_SAMPLES_PER_WORKER_LOOK = 10  # worker processes change slowly, and looking at them is dearer


class CostMeter:
    """Measure the block it is entered for.

    seconds: wall time. peak_mib: the most resident memory of this process plus the private memory of its worker
    processes and theirs, sampled every 50 ms (workers every 500 ms). Where the system shows no other process's private memory
    (macOS), workers count as nothing.
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
            self._workers_mib = sum(map(_private_mib, psutil.Process().children(recursive=True)))
        self.peak_mib = max(self.peak_mib, resident_mib() + self._workers_mib)


def _private_mib(process: psutil.Process) -> float:
    """Return the memory that only `process` maps: what a forked worker adds to the pages it shares with its parent."""
    try:
        return float(process.memory_full_info().uss) / 2**20
    except psutil.Error:  # it has ended, or the system does not show it
        return 0.0
