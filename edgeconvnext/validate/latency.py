"""Latency as trtexec measures it, with FP32 and artifact interleaved so that both see the same machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeconvnext.errors import ExportError
from edgeconvnext.report.schema import Interval, Latency, LatencyComparison
from edgeconvnext.validate import interleaved
from edgeconvnext.validate.device import cpu_name
from edgeconvnext.validate.interleaved import Samples, ratio_of_medians, time_interleaved
from edgeconvnext.validate.runners import OnnxRunner

KEPT_SAMPLES = 200


@dataclass(frozen=True)
class LatencyResult:
    """Both networks' times and, where both ran, how many times faster the artifact is."""

    comparison: LatencyComparison
    speedup: Interval | None


def onnx_latency(
    fp32_path: Path | None,
    artifact_path: Path,
    batch: int = 1,
    threads: int = 1,
    input_size: tuple[int, int] = (224, 224),
    seconds: float | None = None,
    images: np.ndarray | None = None,
    in_channels: int = 3,
) -> LatencyResult:
    """Time an ONNX artifact on this CPU, interleaved with the folded FP32 file where that is given.

    images: normalised (N, C, H, W) photographs, repeated to fill the batch; without them a grey ramp is timed, and the
    settings say so. seconds: measured time for each of the two, at least; None: MIN_SECONDS.

    Raises ExportError for a file that cannot be opened or that does not take this batch or size.
    """
    seconds = interleaved.MIN_SECONDS if seconds is None else seconds
    source = "photographs"
    if images is None:
        source, images = "grey ramp", grey_ramp(input_size, in_channels)
    inputs = images[np.arange(batch) % len(images)]

    paths = {"artifact": artifact_path} if fp32_path is None else {"fp32": fp32_path, "artifact": artifact_path}
    runners = {name: OnnxRunner(path, threads) for name, path in paths.items()}
    load = load_before()
    samples = time_interleaved({name: _call(runner, inputs) for name, runner in runners.items()}, seconds=seconds)

    comparison = LatencyComparison(
        fp32=summarize(samples["fp32"].times_ms, batch) if "fp32" in samples else None,
        artifact=summarize(samples["artifact"].times_ms, batch),
        batch=batch,
        threads=threads,
        runtime=runners["artifact"].runtime,
        device=cpu_name(),
        settings=settings(seconds)
        | {
            "graph optimisations": "all",
            "inter-op threads": "1",
            "spinning between runs": "off",
            "load before": load,
            "input": f"{source}, {inputs.shape[2]}x{inputs.shape[3]}",
        },
    )
    return LatencyResult(comparison, speedup(samples["fp32"], samples["artifact"]) if "fp32" in samples else None)


def grey_ramp(input_size: tuple[int, int], in_channels: int = 3) -> np.ndarray:
    """Return one image to time networks on where there is none, (1, C, H, W), from -2 to 2."""
    ramp = np.linspace(-2, 2, input_size[0] * input_size[1], dtype=np.float32).reshape(1, 1, *input_size)
    return np.repeat(ramp, in_channels, axis=1)


def summarize(times_ms: np.ndarray, batch: int) -> Latency:
    """Return trtexec's figures for single-run times; throughput is batch / mean, in images per second."""
    mean = float(times_ms.mean())
    p50, p90, p95, p99 = (float(value) for value in np.percentile(times_ms, [50, 90, 95, 99]))
    kept = np.linspace(0, len(times_ms) - 1, min(KEPT_SAMPLES, len(times_ms))).round().astype(int)
    return Latency(
        median_ms=p50,
        mean_ms=mean,
        min_ms=float(times_ms.min()),
        max_ms=float(times_ms.max()),
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        throughput=1000 * batch / mean,
        cv=float(times_ms.std()) / mean,
        runs=len(times_ms),
        samples_ms=[float(value) for value in times_ms[kept]],
    )


def speedup(fp32: Samples, artifact: Samples) -> Interval:
    """Return median FP32 time / median artifact time with its 95 % interval."""
    value, low, high = ratio_of_medians(fp32, artifact)
    return Interval(value=value, low=low, high=high)


def settings(seconds: float) -> dict[str, str]:
    """Return how the times were taken, for the report."""
    return {
        "warm-up": f"{1000 * interleaved.WARM_UP_S:.0f} ms each",
        "measured": f"at least {seconds:g} s and {interleaved.MIN_RUNS} runs each",
        "order": f"interleaved, turns of about {1000 * interleaved.BLOCK_S:.0f} ms, first run of a turn not counted",
        "timed": "one call, from host memory to host memory",
        "clock": "time.perf_counter",
    }


def load_before() -> str:
    """Return what else was running: on a busy machine the longer run is interrupted more often, and ratios grow."""
    if not hasattr(os, "getloadavg"):
        return "unknown"
    return f"{os.getloadavg()[0]:.1f} processes on {os.cpu_count()} cores (1 minute average)"


def _call(runner: OnnxRunner, inputs: np.ndarray) -> Callable[[], None]:
    """Return a call that runs `inputs` once, already in the file's value range and element type."""
    if runner.batch not in (None, len(inputs)):
        raise ExportError(
            f"{runner.name} was exported for batch {runner.batch} and cannot be timed at batch {len(inputs)}."
        )
    prepared = runner.prepare(inputs)

    def call() -> None:
        runner.run(prepared)

    return call
