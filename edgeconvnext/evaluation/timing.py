"""Times of several networks, taken in turns so that all see the same machine, and the ratio of two of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeconvnext.evaluation import turns

if TYPE_CHECKING:
    from edgeconvnext.schema.report import Interval, Latency

WARM_UP_S = turns.WARM_UP_SECONDS
MIN_SECONDS = 3.0
SCREENING_SECONDS = 1.0
"""In place of MIN_SECONDS where many networks are timed to choose among them."""

QUIET_SECONDS = 30.0
"""So long noisy timings are measured again; then they are marked."""

MIN_RUNS = turns.LEAST_RUNS
BLOCK_S = turns.BLOCK_SECONDS
"""Each network runs about this long before the other's turn; a turn's first run, on cold caches, is not counted."""

MIN_BLOCKS = turns.LEAST_BLOCKS
RESAMPLES = 2000


@dataclass(frozen=True)
class Samples:
    """Times of single runs in milliseconds, and the turn each was measured in."""

    times_ms: np.ndarray
    blocks: np.ndarray


def time_interleaved(
    calls: Mapping[str, Callable[[], None]],
    seconds: float | None = None,
    warm_up_s: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Samples]:
    """Run `calls` in turns of about BLOCK_S until each has `seconds`, MIN_RUNS and MIN_BLOCKS turns, each warmed up.

    Odd turns go in reverse order, so that no network always runs behind the same other one. seconds, warm_up_s: None stands for
    MIN_SECONDS and WARM_UP_S.
    """
    seconds = MIN_SECONDS if seconds is None else seconds
    warm_up_s = WARM_UP_S if warm_up_s is None else warm_up_s

    def timed(call: Callable[[], None]) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            start = clock()
            call()
            return {"latency": 1000 * (clock() - start)}

        return run

    networks = {name: timed(call) for name, call in calls.items()}
    blocks = turns.time_in_turns(networks, seconds, warm_up_s, BLOCK_S, clock)
    return {name: _samples(own) for name, own in blocks.items()}


def _samples(blocks: list[list[dict[str, float]]]) -> Samples:
    times_ms = np.array([run["latency"] for block in blocks for run in block])
    return Samples(times_ms, np.repeat(np.arange(len(blocks)), [len(block) for block in blocks]))


def ratio_of_medians(
    slow: Samples, fast: Samples, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Return median time of `slow` / median time of `fast`, and the ends of its 95 % bootstrap interval over turns.

    Runs next to each other share clock speed and neighbours, so turns are drawn, not runs, and one draw serves both
    networks: what slowed a turn down slowed both.
    """
    turns = int(max(slow.blocks.max(), fast.blocks.max())) + 1
    counts = np.random.default_rng(seed).multinomial(turns, np.full(turns, 1 / turns), size=resamples)
    ratios = _resampled_medians(slow, counts) / _resampled_medians(fast, counts)
    low, high = np.percentile(ratios, [2.5, 97.5])
    value = float(np.median(slow.times_ms) / np.median(fast.times_ms))
    return value, min(value, float(low)), max(value, float(high))


def _resampled_medians(samples: Samples, counts: np.ndarray) -> np.ndarray:
    """Return the median for each row of `counts`, which says how often each turn was drawn: (resamples,)."""
    order = np.argsort(samples.times_ms, kind="stable")
    sorted_ms, turn = samples.times_ms[order], samples.blocks[order]
    medians = np.empty(len(counts))
    for row, drawn in enumerate(counts):
        weight = np.cumsum(drawn[turn])
        medians[row] = sorted_ms[np.searchsorted(weight, weight[-1] / 2)]
    return medians


KEPT_SAMPLES = 200


def grey_ramp(input_size: tuple[int, int], in_channels: int = 3) -> np.ndarray:
    """Return one image to time networks on where there is none, (1, C, H, W), from -2 to 2."""
    ramp = np.linspace(-2, 2, input_size[0] * input_size[1], dtype=np.float32).reshape(1, 1, *input_size)
    return np.repeat(ramp, in_channels, axis=1)


def summarize(times_ms: np.ndarray, batch: int) -> Latency:
    """Return trtexec's figures for single-run times; throughput is batch / mean, in images per second."""
    from edgeconvnext.schema.report import Latency

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
    from edgeconvnext.schema.report import Interval

    value, low, high = ratio_of_medians(fp32, artifact)
    return Interval(value=value, low=low, high=high)


def settings(seconds: float) -> dict[str, str]:
    """Return how the times were taken, for the report."""
    return {
        "warm-up": f"{1000 * WARM_UP_S:.0f} ms each",
        "measured": f"at least {seconds:g} s and {MIN_RUNS} runs each",
        "order": f"interleaved, turns of about {1000 * BLOCK_S:.0f} ms, first run of a turn not counted",
        "timed": "one call, from host memory to host memory",
        "clock": "time.perf_counter",
    }


def current_load() -> float | None:
    """Return how many processes ran on average over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def load_before() -> str:
    """Return what else was running: on a busy machine the longer run is interrupted more often, and ratios grow."""
    load = current_load()
    return "unknown" if load is None else f"{load:.1f} processes on {os.cpu_count()} cores (1 minute average)"
