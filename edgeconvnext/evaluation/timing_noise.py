"""Whether timings can be trusted: how far runs scatter, whether they fall into modes, and what else the machine is busy with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np

from edgeconvnext.evaluation.timing import Samples

MOST_CV = 0.15
"""Standard deviation of single runs over their mean, above which timings are noisy."""

MODE_SHARE = 0.2
MODE_GAP = 0.1
SPARE_LOAD = 0.5
"""The toolkit's own work before the timing keeps the one-minute average up to the number of cores, and a little above it."""


def noise(samples: Mapping[str, Samples], load: float | None) -> str | None:
    """Say what makes the times of these networks doubtful; None where nothing does.

    load: processes that ran before, on average over one minute; None where the system does not say.
    """
    reasons = []
    for name, own in samples.items():
        scatter = variation(own.times_ms)
        if scatter > MOST_CV:
            reasons.append(
                f"runs of {name} scatter by {100 * scatter:.0f} % (standard deviation / mean; {100 * MOST_CV:.0f} % at most)"
            )
        modes = two_modes(_turn_medians(own))
        if modes is not None:
            reasons.append(f"turns of {name} have two modes, {modes[0]:.3g} and {modes[1]:.3g} ms")
    cores = os.cpu_count() or 1
    if load is not None and load > cores + SPARE_LOAD:
        reasons.append(f"{load:.1f} processes ran on {cores} cores")
    return "; ".join(reasons) or None


def variation(times_ms: np.ndarray) -> float:
    """Return the coefficient of variation, standard deviation / mean."""
    return float(times_ms.std() / times_ms.mean())


def two_modes(values: np.ndarray) -> tuple[float, float] | None:
    """Return the medians of the two groups that `values` fall into, or None where they are one group.

    Two groups have MODE_SHARE of the values each, and the gap between them is MODE_GAP of the median and half of the range of all
    values but the outermost tenth. Example: ten turns of 10 ms and ten of 13 ms.
    """
    ordered = np.sort(values)
    fewest = max(2, int(np.ceil(MODE_SHARE * len(ordered))))
    if len(ordered) < 2 * fewest:
        return None
    gaps = np.diff(ordered)[fewest - 1 : len(ordered) - fewest]
    split = fewest + int(gaps.argmax())
    low, high = np.percentile(ordered, [5, 95])
    if gaps.max() < MODE_GAP * np.median(ordered) or gaps.max() < (high - low) / 2:
        return None
    return float(np.median(ordered[:split])), float(np.median(ordered[split:]))


def until_quiet(
    measure: Callable[[], dict[str, Samples]],
    load: Callable[[], float | None],
    seconds: float,
    clock: Callable[[], float],
) -> tuple[dict[str, Samples], str | None, int]:
    """Measure, and measure again for `seconds` while timings are noisy.

    Return the quietest times, what is doubtful of them or None, and how often was measured.

    load: gives the load before each measurement.
    """
    end = clock() + seconds
    best: tuple[float, dict[str, Samples], str] | None = None
    count = 0
    while True:
        before = load()
        samples = measure()
        count += 1
        doubt = noise(samples, before)
        if doubt is None:
            return samples, None, count
        scatter = max(variation(own.times_ms) for own in samples.values())
        if best is None or scatter < best[0]:
            best = (scatter, samples, doubt)
        if clock() >= end:
            return best[1], best[2], count


def _turn_medians(samples: Samples) -> np.ndarray:
    return np.array([np.median(samples.times_ms[samples.blocks == turn]) for turn in np.unique(samples.blocks)])
