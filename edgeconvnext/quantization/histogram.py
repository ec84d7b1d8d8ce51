"""A histogram that grows with its data and needs the same memory for ten images as for ten thousand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

MAX_BINS = 8192
# Whole numbers up to here, and their differences, are float32 values.
_WHOLE_IN_FLOAT32 = 2**23


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of equal width; bin i covers [(first + i) * width, (first + i + 1) * width).

    counts: float64, (bins,). low, high: smallest and largest value seen. width is a power of two, so that two bins of one
    histogram are exactly one bin of the next coarser one.
    """

    counts: np.ndarray
    first: int
    width: float
    low: float
    high: float

    @property
    def centers(self) -> np.ndarray:
        """Middle of each bin; the outermost ones are moved to the extremes seen, so that min-max ranges cover them."""
        centers = (self.first + np.arange(len(self.counts)) + 0.5) * self.width
        return np.clip(centers, self.low, self.high)

    @property
    def total(self) -> float:
        return float(self.counts.sum())

    def mean_square(self) -> float:
        """Mean of x^2, the signal power that SQNR is relative to."""
        return float((self.counts * self.centers**2).sum() / max(self.total, 1.0))

    def scaled(self, factor: float) -> Histogram:
        """Return the histogram of the same values times a power of two: every bin becomes one bin."""
        return Histogram(self.counts, self.first, self.width * factor, self.low * factor, self.high * factor)

    def share_outside(self, low: float, high: float) -> float:
        """Share of values below `low` or above `high`, to the precision of one bin."""
        centers = self.centers
        return float(self.counts[(centers < low) | (centers > high)].sum() / max(self.total, 1.0))

    def rebinned(self, bins: int) -> np.ndarray:
        """Shares of values in `bins` equal bins over low..high, for drawing."""
        if self.high <= self.low:
            return np.eye(bins)[0]
        index = ((self.centers - self.low) / (self.high - self.low) * bins).astype(int).clip(0, bins - 1)
        return np.bincount(index, weights=self.counts, minlength=bins) / max(self.total, 1.0)


class StreamingHistogram:
    """Builds a `Histogram` batch by batch.

    The bin width is the smallest power of two for which everything seen fits in `MAX_BINS` bins. When a batch exceeds
    the range, bins double their width by merging neighbours: the result does not depend on how the data was cut.
    Example: width 1/256 covers 32 units; a value of 40 doubles it to 1/128, and every old pair of bins becomes one.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(0)
        self._first = 0
        self._exponent: int | None = None
        self._low = math.inf
        self._high = -math.inf

    def update(self, values: torch.Tensor, low: float, high: float) -> None:
        """Count `values`, any shape, whose extremes are `low` and `high`."""
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._grow()
        assert self._exponent is not None
        # Scaling by a power of two is exact, so that every value is counted in its own bin, wherever the bins begin.
        scaled = values.float() if abs(self._first) < _WHOLE_IN_FLOAT32 else values.double()
        index = scaled.mul(2.0**-self._exponent).floor_().sub_(self._first).to(torch.int64)
        self._counts += np.bincount(index.flatten().numpy(), minlength=len(self._counts))

    def _grow(self) -> None:
        """Widen bins and range until low..high is covered."""
        span = max(self._high - self._low, abs(self._high) * 2.0**-20, 2.0**-100)
        exponent = math.ceil(math.log2(span / (MAX_BINS - 2)))
        if self._exponent is None:
            self._exponent = exponent
        while self._exponent < exponent:
            self._merge_pairs()
        width = 2.0**self._exponent
        first = math.floor(self._low / width)
        # In float32, as `update` scales the values, -2^-149 / 2 is zero, and 0.99999999 is one: the bin above counts them.
        last = max(math.floor(self._high / width), math.floor(np.float32(self._high / width)))
        counts = np.zeros(last - first + 1)
        if len(self._counts):
            counts[self._first - first : self._first - first + len(self._counts)] = self._counts
        self._first, self._counts = first, counts

    def _merge_pairs(self) -> None:
        assert self._exponent is not None
        counts = self._counts
        if self._first % 2:
            counts = np.concatenate([[0.0], counts])
        if len(counts) % 2:
            counts = np.concatenate([counts, [0.0]])
        self._counts = counts[::2] + counts[1::2]
        self._first //= 2
        self._exponent += 1

    def result(self) -> Histogram:
        """Return what was counted so far."""
        if self._exponent is None:
            return Histogram(np.zeros(1), 0, 1.0, 0.0, 0.0)
        return Histogram(self._counts.copy(), self._first, 2.0**self._exponent, self._low, self._high)
