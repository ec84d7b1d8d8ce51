"""Intervals of figures that are no share of images: both networks are scored on the same seeded draws of the images."""

from __future__ import annotations

import numpy as np

from edgeconvnext.schema.report import Interval

SEED = 0
RESAMPLES = 1000


def bootstrap_counts(images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Return how often each image is drawn, (1 + resamples, N): once each in the first row, then N draws with replacement."""
    drawn = np.random.default_rng(SEED).multinomial(images, np.full(images, 1 / images), size=resamples)
    return np.concatenate([np.ones((1, images), np.int64), drawn])


def percentiles(figures: np.ndarray) -> Interval:
    """Return the first figure with the middle 95 % of the others, widened to hold it (B. Efron, 1979, Ann. Stat. 7:1)."""
    value = float(figures[0])
    low, high = np.percentile(figures[1:], [2.5, 97.5])
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))
