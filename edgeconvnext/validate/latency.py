"""Latency as trtexec measures it, with FP32 and artifact interleaved so that both see the same machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeconvnext.errors import ExportError
from edgeconvnext.report.schema import Interval, Latency, LatencyComparison
from edgeconvnext.validate.device import cpu_name
from edgeconvnext.validate.runners import OnnxRunner

WARM_UP_S = 0.2
MIN_SECONDS = 3.0
MIN_RUNS = 10
BLOCK_S = 0.1
"""Each network runs about this long before the other's turn; a turn's first run, on cold caches, is not counted."""

MIN_BLOCKS = 10
RESAMPLES = 2000
KEPT_SAMPLES = 200


@dataclass(frozen=True)
class Samples:
    """Times of single runs in milliseconds, and the turn each was measured in."""

    times_ms: np.ndarray
    blocks: np.ndarray


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
    seconds: float = MIN_SECONDS,
    images: np.ndarray | None = None,
    in_channels: int = 3,
) -> LatencyResult:
    """Time an ONNX artifact on this CPU, interleaved with the folded FP32 file where that is given.

    images: normalised (N, C, H, W) photographs, repeated to fill the batch; without them a grey ramp is timed, and the
    settings say so. seconds: measured time for each of the two, at least.

    Raises ExportError for a file that cannot be opened or that does not take this batch or size.
    """
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


def time_interleaved(
    calls: Mapping[str, Callable[[], None]],
    seconds: float = MIN_SECONDS,
    warm_up_s: float = WARM_UP_S,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Samples]:
    """Run `calls` in turns of about BLOCK_S until each has `seconds`, MIN_RUNS and MIN_BLOCKS turns, each warmed up.

    Odd turns go in reverse order, so that no network always runs behind the same other one.
    """
    runs_per_turn = {name: _warm_up(call, warm_up_s, clock) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    blocks: dict[str, list[int]] = {name: [] for name in calls}
    turn = 0
    while turn < MIN_BLOCKS or any(sum(t) < seconds or len(t) < MIN_RUNS for t in times.values()):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            call = calls[name]
            call()
            for _ in range(runs_per_turn[name]):
                start = clock()
                call()
                times[name].append(clock() - start)
                blocks[name].append(turn)
        turn += 1
    return {name: Samples(1000 * np.array(times[name]), np.array(blocks[name])) for name in calls}


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


def speedup(fp32: Samples, artifact: Samples, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return median FP32 time / median artifact time with a 95 % bootstrap interval over turns.

    Runs next to each other share clock speed and neighbours, so turns are drawn, not runs, and one draw serves both
    networks: what slowed a turn down slowed both.
    """
    turns = int(max(fp32.blocks.max(), artifact.blocks.max())) + 1
    counts = np.random.default_rng(seed).multinomial(turns, np.full(turns, 1 / turns), size=resamples)
    ratios = _resampled_medians(fp32, counts) / _resampled_medians(artifact, counts)
    low, high = np.percentile(ratios, [2.5, 97.5])
    value = float(np.median(fp32.times_ms) / np.median(artifact.times_ms))
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def settings(seconds: float) -> dict[str, str]:
    """Return how the times were taken, for the report."""
    return {
        "warm-up": f"{1000 * WARM_UP_S:.0f} ms each",
        "measured": f"at least {seconds:g} s and {MIN_RUNS} runs each",
        "order": f"interleaved, turns of about {1000 * BLOCK_S:.0f} ms, first run of a turn not counted",
        "timed": "one call, from host memory to host memory",
        "clock": "time.perf_counter",
    }


def load_before() -> str:
    """Return what else was running: on a busy machine the longer run is interrupted more often, and ratios grow."""
    if not hasattr(os, "getloadavg"):
        return "unknown"
    return f"{os.getloadavg()[0]:.1f} processes on {os.cpu_count()} cores (1 minute average)"


def _warm_up(call: Callable[[], None], seconds: float, clock: Callable[[], float]) -> int:
    """Run for `seconds`, at least twice; return how many runs fill a turn, judged by the fastest."""
    begin, fastest, runs = clock(), float("inf"), 0
    while runs < 2 or clock() - begin < seconds:
        start = clock()
        call()
        fastest = min(fastest, clock() - start)
        runs += 1
    return max(1, round(BLOCK_S / max(fastest, 1e-6)))


def _resampled_medians(samples: Samples, counts: np.ndarray) -> np.ndarray:
    """Return the median for each row of `counts`, which says how often each turn was drawn: (resamples,)."""
    order = np.argsort(samples.times_ms, kind="stable")
    sorted_ms, turn = samples.times_ms[order], samples.blocks[order]
    medians = np.empty(len(counts))
    for row, drawn in enumerate(counts):
        weight = np.cumsum(drawn[turn])
        medians[row] = sorted_ms[np.searchsorted(weight, weight[-1] / 2)]
    return medians


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
