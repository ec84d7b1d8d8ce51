"""Latency as trtexec measures it: a float baseline and an artifact in turns, so that both see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgeconvnext.backends.base import LatencyResult, LatencySettings, TimedRunner
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation import timing
from edgeconvnext.evaluation.timing import (
    current_load,
    grey_ramp,
    load_before,
    settings,
    speedup,
    summarize,
    time_interleaved,
)
from edgeconvnext.evaluation.timing_noise import until_quiet
from edgeconvnext.machine import cpu_name
from edgeconvnext.schema.report import LatencyComparison


def interleaved_latency(
    open_runner: Callable[[Path, int], TimedRunner],
    baseline: Path | None,
    artifact: Path,
    asked: LatencySettings,
    notes: Mapping[str, str] | None = None,
) -> LatencyResult:
    """Time an artifact on this machine, interleaved with its float baseline where that is given.

    open_runner: opens a file with so many threads. notes: what the runtime was set to, for the report.
    Raises ExportError for a file that cannot be opened or that does not take this batch or size.
    """
    seconds = timing.MIN_SECONDS if asked.seconds is None else asked.seconds
    images = grey_ramp(asked.input_size, asked.in_channels) if asked.images is None else asked.images
    inputs = images[np.arange(asked.batch) % len(images)]

    paths = {"artifact": artifact} if baseline is None else {"fp32": baseline, "artifact": artifact}
    runners = {name: open_runner(path, asked.threads) for name, path in paths.items()}
    load = load_before()
    calls = {name: _call(runner, inputs) for name, runner in runners.items()}
    again = 0.0 if baseline is None else timing.QUIET_SECONDS
    samples, doubt, count = until_quiet(
        lambda: time_interleaved(calls, seconds=seconds), current_load, again, time.perf_counter
    )
    measured = {} if count == 1 else {"measured again": f"{count - 1} times, because timings were noisy"}

    source = "grey ramp" if asked.images is None else "photographs"
    comparison = LatencyComparison(
        fp32=summarize(samples["fp32"].times_ms, asked.batch) if "fp32" in samples else None,
        artifact=summarize(samples["artifact"].times_ms, asked.batch),
        batch=asked.batch,
        threads=asked.threads,
        runtime=runners["artifact"].runtime,
        device=cpu_name(),
        settings=settings(seconds)
        | dict(notes or {})
        | {"load before": load, "input": f"{source}, {inputs.shape[2]}x{inputs.shape[3]}"}
        | measured
        | ({} if doubt is None else {"noisy": doubt}),
    )
    ratio = speedup(samples["fp32"], samples["artifact"]) if "fp32" in samples else None
    return LatencyResult(comparison, ratio, doubt)


def _call(runner: TimedRunner, inputs: np.ndarray) -> Callable[[], None]:
    """Return a call that runs `inputs` once, already in the file's value range and element type."""
    if runner.batch not in (None, len(inputs)):
        raise ExportError(
            f"{runner.name} was exported for batch {runner.batch} and cannot be timed at batch {len(inputs)}."
        )
    prepared = runner.prepare(inputs)

    def call() -> None:
        runner.run(prepared)

    return call
