"""Outputs of single blocks as a kit compares them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COMPARED_IMAGES = 4
COMPARED_VALUES = 512
"""Values compared of each block and image, evenly spread: enough for a ratio in dB, and little to carry."""


@dataclass(frozen=True)
class LayerOutput:
    """The output of one block. tensor: its name in the artifact; size: values of an image; values: (images, samples) float32.

    Sample i of n is the value at position i * size // n of the flattened tensor, in the file's order of axes.
    """

    name: str
    tensor: str
    size: int
    values: np.ndarray


def sample(flat: np.ndarray, most: int = COMPARED_VALUES) -> np.ndarray:
    """Return `most` evenly spread values of each row, or all where there are fewer. flat: (N, size)."""
    size = flat.shape[1]
    count = min(most, size)
    return flat[:, [index * size // count for index in range(count)]].astype(np.float32)
