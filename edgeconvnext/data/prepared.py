"""Images that were prepared before they came: tensors in memory or on disk, and what their values say of mean and std."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from edgeconvnext.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from edgeconvnext.data.size import Size, size_text
from edgeconvnext.data.spool import Spool, array_sha256
from edgeconvnext.errors import ImageSetError

Statistic = tuple[float, ...]

_KNOWN_NORMALIZATIONS: tuple[tuple[Statistic, Statistic], ...] = (
    ((0.0,), (1.0,)),
    ((0.0,), (1 / 255,)),
    (IMAGENET_MEAN, IMAGENET_STD),
    ((0.5,), (0.5,)),
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # CLIP
    ((0.1307,), (0.3081,)),  # MNIST
)
# float32 values up to 3 have steps of 2.4e-7; times std and 255 that is 2e-5 of an 8-bit level.
_LEVEL_ERROR = 1e-3


@dataclass(frozen=True)
class PreparedReader:
    """Images as float32 rows (N, C, H, W), prepared by whoever made them.

    hashes: sha256 of each row. mean, std: what they were normalised by, for pixels in 0..1; None where nobody said it. file: what
    holds the rows on disk, removed with the last reader of it.
    """

    rows: np.ndarray
    hashes: tuple[str, ...]
    mean: Statistic | None = None
    std: Statistic | None = None
    file: Spool | None = field(default=None, repr=False)
    in_memory: bool = True

    @property
    def channels(self) -> int:
        return int(self.rows.shape[1])

    @property
    def size(self) -> Size:
        """Height and width."""
        return int(self.rows.shape[2]), int(self.rows.shape[3])

    def normalized_by(self, mean: Sequence[float], std: Sequence[float]) -> PreparedReader:
        """Return the same images, said to be normalised by `mean` and `std`, one value a channel."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def values(self, image_id: str) -> np.ndarray:
        """Return one image as it was given, float32 (H, W, C)."""
        return np.array(self.rows[position_of(image_id)]).transpose(1, 2, 0)

    def normalize(self, values: np.ndarray, preprocess: Preprocess) -> np.ndarray:
        """Return images (N, H, W, C) as `preprocess` normalises them; those that already are stay bit for bit.

        Raises ImageSetError for another size: prepared images cannot be resized as photographs are.
        """
        if values.shape[1:3] != preprocess.input_size:
            raise ImageSetError(
                f"The images in memory are {size_text(self.size)}, and {size_text(preprocess.input_size)} is asked for. They are "
                "prepared already; make them of that size, or name a folder of photographs."
            )
        if (self.mean, self.std) == (preprocess.mean, preprocess.std) or self.mean is None or self.std is None:
            return values
        pixels = values * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        normalized = (pixels - np.asarray(preprocess.mean, np.float32)) / np.asarray(preprocess.std, np.float32)
        return normalized.astype(np.float32)

    def read(self, image_id: str, shorter_side: int | None = None) -> Image.Image:
        """Return an image to look at: its pixels, or its values stretched to 0..255 where their range is not known."""
        values = self.values(image_id)
        if self.mean is None or self.std is None:
            low, high = float(values.min()), float(values.max())
            values = (values - low) / max(high - low, 1e-12)
        else:
            values = values * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        pixels = (values.clip(0, 1) * 255).round().astype(np.uint8)
        pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
        return Image.fromarray(pixels)

    def stamp(self, image_id: str) -> str:
        return self.hashes[position_of(image_id)]


def numbered_ids(hashes: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each image in memory: its position and the beginning of its hash."""
    return tuple(f"{number:05d}-{text[:12]}" for number, text in enumerate(hashes))


def position_of(image_id: str) -> int:
    """Return the position of an image by its name."""
    return int(image_id.partition("-")[0])


def prepared_array(images: np.ndarray) -> PreparedReader:
    """Return a reader of images in memory, float32 (N, C, H, W)."""
    return PreparedReader(images, tuple(map(array_sha256, images)))


def prepared_spool(spool: Spool) -> PreparedReader:
    """Return a reader of images on disk, float32 (C, H, W) each, all of one shape."""
    return PreparedReader(spool.rows(np.float32), tuple(spool.hashes), file=spool)


def recognised_normalization(images: np.ndarray) -> tuple[Statistic, Statistic] | None:
    """Return the mean and std that turn values into 8-bit levels, of those in common use; None where none does.

    images: float (N, C, H, W). Photographs are decoded to 256 levels, so x * std + mean is a whole number of 255ths for the right
    pair, and next to never for another one. Values of images that were resized as tensors are no levels, and tell nothing.
    """
    channels = images.shape[1]
    for mean, std in _KNOWN_NORMALIZATIONS:
        if len(mean) not in (1, channels):
            continue
        column = (1, -1, 1, 1)
        levels = (images.astype(np.float64) * np.reshape(std, column) + np.reshape(mean, column)) * 255
        whole = np.abs(levels - levels.round()).max() < _LEVEL_ERROR
        if whole and levels.min() > -_LEVEL_ERROR and levels.max() < 255 + _LEVEL_ERROR:
            wide = channels // len(mean)
            return mean * wide, std * wide
    return None
