"""Range estimators: from a histogram to the interval that the codes cover.

Each takes the histogram of the images ranges are fitted on; which one a tensor gets is decided by the error on held-out images
(`choose_range`). All of them work on histograms, so their cost does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeconvnext.quantization.histogram import Histogram

Estimator = Literal["minmax", "percentile", "entropy", "mse", "output", "image"]
# "output" is mse over a histogram in which each channel counts by what the layer behind it makes of it; "image" is not searched.
ESTIMATORS: tuple[Estimator, ...] = ("minmax", "percentile", "entropy", "mse")
PERCENTILE = 99.99
LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class CodeRange:
    """Integer codes of an activation. float16_scale rounds scales to what a float16 graph can store."""

    quant_min: int
    quant_max: int
    symmetric: bool
    float16_scale: bool = False

    @property
    def levels(self) -> int:
        return self.quant_max - self.quant_min

    def qparams(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (scale, zero_point) that cover low..high and hold zero exactly.

        Symmetric int8: scale = max(|low|, |high|) / 127, zero point 0. Affine: scale = (high - low) / 255, and zero
        falls on a code; low = -0.17, high = 13.43 in 0..255 gives scale 0.0533 and zero point 3.
        """
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        span = np.maximum(np.abs(low), np.abs(high)) / self.quant_max if self.symmetric else (high - low) / self.levels
        scale = round_scale(np.maximum(span, 1e-12), self.float16_scale)
        if self.symmetric:
            return scale, np.zeros_like(scale)
        zero_point = np.clip(np.round(self.quant_min - low / scale), self.quant_min, self.quant_max)
        return scale, zero_point


def round_scale(scale: np.ndarray, float16: bool) -> np.ndarray:
    """Round scales to float32, or up to float16 for graphs whose float type it is.

    Never below 2**-20, which is 16 float16 steps, and never above float16's largest number, 65504: a larger range is clipped.
    """
    if not float16:
        return scale.astype(np.float32).astype(np.float64)
    rounded = np.clip(scale, 2.0**-20, LARGEST_FLOAT16).astype(np.float16)
    rounded = np.where(rounded.astype(np.float64) < scale, np.nextafter(rounded, np.float16(LARGEST_FLOAT16)), rounded)
    return rounded.astype(np.float64)


def quantization_mse(
    histogram: Histogram, scale: np.ndarray, zero_point: np.ndarray, code_range: CodeRange
) -> np.ndarray:
    """Return the mean squared error of quantising the histogram's values, (K,). scale, zero_point: (K,)."""
    used = histogram.counts > 0
    x, weight = histogram.centers[used], histogram.counts[used] / max(histogram.total, 1.0)
    scale, zero_point = scale[:, None], zero_point[:, None]
    # In place: of (K, bins), each temporary costs more than the arithmetic on it.
    values = x / scale
    np.rint(values, out=values)
    np.clip(values, code_range.quant_min - zero_point, code_range.quant_max - zero_point, out=values)
    values *= scale
    values -= x
    np.square(values, out=values)
    return values @ weight


def _kl_divergence(
    histogram: Histogram, scale: np.ndarray, zero_point: np.ndarray, code_range: CodeRange
) -> np.ndarray:
    """KL(P || Q) for each of K scales and zero points, as in TensorRT's entropy calibration.

    P: the histogram with clipped values counted at the edge of the range. Q: the same counts without the clipped ones, averaged
    over the occupied bins of each code.
    """
    used = histogram.counts > 0
    x, counts = histogram.centers[used], histogram.counts[used]
    result = np.empty(len(scale))
    for k, (step, zero) in enumerate(zip(scale, zero_point, strict=True)):
        codes = np.rint(x / step)
        codes += zero - code_range.quant_min
        # The codes inside the range: centers rise, and so do their codes.
        first, end = np.searchsorted(codes, (0, code_range.levels + 1))
        if first == end:
            result[k] = np.inf
            continue
        inside, p = codes[first:end].astype(int), counts[first:end].copy()
        mean = np.bincount(inside, weights=p) / np.maximum(np.bincount(inside), 1)
        q = mean[inside]
        p[0] += counts[:first].sum()
        p[-1] += counts[end:].sum()
        p, q = p / p.sum(), q / q.sum()
        result[k] = float((p * np.log(p / q)).sum())
    return result


Loss = Callable[[Histogram, np.ndarray, np.ndarray, CodeRange], np.ndarray]


def _search_range(histogram: Histogram, code_range: CodeRange, loss: Loss, steps: int) -> tuple[float, float]:
    """Shrink the observed range for the least loss: both ends together, then (affine grids) each end alone."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    shrink = np.geomspace(0.02, 1.0, steps)

    def best(lows: np.ndarray, highs: np.ndarray) -> tuple[float, float]:
        scale, zero_point = code_range.qparams(lows, highs)
        index = int(np.argmin(loss(histogram, scale, zero_point, code_range)))
        return float(lows[index]), float(highs[index])

    low, high = best(low * shrink, high * shrink)
    if code_range.symmetric:
        return low, high
    wider = np.geomspace(0.3, 3.0, steps)
    for _ in range(2):
        low, high = best(np.full(steps, low), np.clip(high * wider, 0.0, max(histogram.high, 0.0)))
        low, high = best(np.clip(low * wider, min(histogram.low, 0.0), 0.0), np.full(steps, high))
    return low, high


def _percentile_range(histogram: Histogram, share: float) -> tuple[float, float]:
    """The interval that leaves out (100 - share) / 2 per cent of the values at each end."""
    cumulative = np.cumsum(histogram.counts) / max(histogram.total, 1.0)
    tail = (1 - share / 100) / 2
    edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
    low = edges[int(np.searchsorted(cumulative, tail, side="right"))]
    high = edges[min(int(np.searchsorted(cumulative, 1 - tail)) + 1, len(edges) - 1)]
    return max(float(low), histogram.low), min(float(high), histogram.high)


def estimate_range(
    histogram: Histogram, estimator: Estimator, code_range: CodeRange, steps: int = 80
) -> tuple[float, float]:
    """Return the interval (low, high) that `estimator` chooses. steps: candidates per line search (entropy, mse)."""
    if estimator == "minmax":
        return histogram.low, histogram.high
    if estimator == "percentile":
        return _percentile_range(histogram, PERCENTILE)
    return _search_range(histogram, code_range, _kl_divergence if estimator == "entropy" else quantization_mse, steps)


@dataclass(frozen=True)
class RangeChoice:
    """Qparams fitted to a tensor, with the held-out error of every estimator tried."""

    scale: float
    zero_point: int
    estimator: Estimator
    mse: float
    candidates: dict[Estimator, float]


def choose_range(
    fit: Histogram,
    held_out: Histogram,
    code_range: CodeRange,
    estimators: tuple[Estimator, ...] = ESTIMATORS,
    steps: int = 80,
) -> RangeChoice:
    """Fit each estimator on `fit` and keep the one with the least mean squared error on `held_out`."""
    choices: dict[Estimator, RangeChoice] = {}
    for estimator in estimators:
        low, high = estimate_range(fit, estimator, code_range, steps)
        scale, zero_point = code_range.qparams(np.array([low]), np.array([high]))
        mse = float(quantization_mse(held_out, scale, zero_point, code_range)[0])
        choices[estimator] = RangeChoice(float(scale[0]), int(zero_point[0]), estimator, mse, {})
    best = min(choices.values(), key=lambda choice: choice.mse)
    candidates = {estimator: choice.mse for estimator, choice in choices.items()}
    return RangeChoice(best.scale, best.zero_point, best.estimator, best.mse, candidates)
