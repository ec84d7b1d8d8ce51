"""Signal to quantization noise ratio, in decibels."""

from __future__ import annotations

import math

import numpy as np

LARGEST_DB = 200.0
"""SQNR of identical logits: finite, so that report.json holds a number, and beyond float32, which ends near 150 dB."""


def logit_sqnr_db(reference: np.ndarray, quantized: np.ndarray) -> float:
    """Return 10 log10(sum ref^2 / sum (ref - q)^2) over all images and classes, in dB.

    Identical logits give LARGEST_DB. Twice the reference gives 0 dB, a tenth of it too much gives 20 dB.
    """
    wide = reference.astype(np.float64)
    return power_ratio_db(float(np.square(wide).sum()), float(np.square(wide - quantized).sum()))


def power_ratio_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), within LARGEST_DB either way."""
    if noise == 0:
        return LARGEST_DB
    if signal == 0:
        return -LARGEST_DB
    return min(LARGEST_DB, max(-LARGEST_DB, 10 * math.log10(signal / noise)))
