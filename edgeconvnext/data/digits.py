"""The embedded image set: 1,797 handwritten digits of 8x8 pixels, split once and for all; `digits.md` names their source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from edgeconvnext.data.image_set import ImageSet

DigitsSplit = Literal["train", "calibration", "test"]

CLASS_NAMES = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class DigitsReader:
    """Reads the embedded digits; ids are "digits/0042", the position in the file."""

    in_memory: bool = True

    def read(self, image_id: str, shorter_side: int | None = None) -> Image.Image:
        images, _ = _load()
        return Image.fromarray(images[int(image_id.rpartition("/")[2])]).convert("RGB")

    def stamp(self, image_id: str) -> str:
        images, _ = _load()
        return images[int(image_id.rpartition("/")[2])].tobytes().hex()


def digits_set(split: DigitsSplit) -> ImageSet:
    """Return one split: train 1198 images, calibration 400 of these, test 599 that no fitting ever sees."""
    _, labels = _load()
    indices = split_indices(split)
    return ImageSet(
        name={"train": "digits_train", "calibration": "digits", "test": "digits_test"}[split],
        ids=tuple(f"digits/{index:04d}" for index in indices),
        reader=DigitsReader(),
        labels=tuple(int(labels[index]) for index in indices),
        class_names=CLASS_NAMES,
    )


def split_indices(split: DigitsSplit) -> list[int]:
    """Return the positions of a split: every third image of each digit is test, every third of the rest calibrates."""
    _, labels = _load()
    by_digit = np.argsort(labels, kind="stable")
    is_test = np.arange(len(labels)) % 3 == 1
    if split == "test":
        return sorted(by_digit[is_test].tolist())
    train = by_digit[~is_test]
    return sorted((train if split == "train" else train[::3]).tolist())


@cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 (1797, 8, 8), and labels, int64 (1797,). The pixels count 0..16 and are scaled to 0..255."""
    with np.load(Path(__file__).with_name("digits.npz")) as stored:
        return np.round(stored["counts"] * (255 / 16)).astype(np.uint8), stored["labels"].astype(np.int64)
