"""From a decoded image to the tensor a checkpoint was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from edgeconvnext.choices import CropOffset, Interpolation
from edgeconvnext.errors import ModelConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ValueRange = Literal["normalized", "0..1", "0..255"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Beyond this aspect ratio the ends of an image, which the centre crop discards, are cut off before resizing: a 1 x
# 10,000 strip would otherwise become 256 x 2,560,000.
_MAX_ASPECT = 16


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input; numerically the evaluation transform of timm, torchvision and transformers.

    The shorter side is resized to `input_size / crop_pct` (aspect ratio kept), the centre `input_size` is cropped,
    values go from 0..255 to 0..1, then `(x - mean) / std` per channel. `crop_mode="squash"` resizes both sides to
    `input_size / crop_pct`, whatever the aspect ratio.

    input_size: (height, width) in pixels.
    mean, std: per channel, for values in 0..1; their length is the number of input channels.
    crop_offset: where a crop begins that cannot be centred: 3 pixels too many leave 2 (nearest even, torchvision and timm) or 1
    (floor, transformers) before it.
    """

    input_size: tuple[int, int] = (224, 224)
    crop_pct: float = 0.875
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_offset: CropOffset = "nearest"

    def __post_init__(self) -> None:
        if len(self.input_size) != 2 or min(self.input_size) < 1:
            raise ModelConfigError(f"input_size must be (height, width) in pixels, from 1 on; it is {self.input_size}.")
        if not 0 < self.crop_pct <= 1:
            raise ModelConfigError(
                f"crop_pct is the share of the resized image that is kept, 0 < crop_pct <= 1; it is {self.crop_pct}."
            )
        if not self.mean or len(self.mean) != len(self.std):
            raise ModelConfigError(f"mean {self.mean} and std {self.std} must have one value for each input channel.")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ModelConfigError(f"mean {self.mean} must be finite and std {self.std} above zero.")

    @property
    def in_channels(self) -> int:
        return len(self.mean)

    @property
    def resize_size(self) -> tuple[int, int]:
        """Height and width the crop is taken from, input_size / crop_pct rounded down: 224 / 0.875 = 256."""
        height, width = self.input_size
        # 224 / (224 / 236) is a hair off 236 in binary; the margin keeps such ratios at the integer they were made
        # from.
        return math.floor(height / self.crop_pct + 1e-6), math.floor(width / self.crop_pct + 1e-6)

    def apply(self, image: Image.Image) -> np.ndarray:
        """Return the network's input for one image, float32 (C, H, W)."""
        return self.normalize(self.pixels(image)[None])[0].transpose(2, 0, 1)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an image, uint8 (H, W, C)."""
        self.check_channels()
        image = image.convert("RGB" if self.in_channels == 3 else "L")
        cropped = _centre_crop(self._resize(image), self.input_size, self.crop_offset)
        array = np.asarray(cropped, dtype=np.uint8)
        return array if array.ndim == 3 else array[:, :, None]

    def check_channels(self) -> None:
        """Raise ModelConfigError unless images can have as many channels as the network takes."""
        if self.in_channels not in (1, 3):
            raise ModelConfigError(
                f"This model takes {self.in_channels} input channels; images have 3 (colour) or 1 (grey), so no image "
                "set fits it."
            )

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Turn uint8 pixels (N, H, W, C) into float32 values (N, H, W, C): x / 255, minus mean, over std."""
        values = pixels.astype(np.float32)
        values /= np.float32(255)
        values -= np.asarray(self.mean, dtype=np.float32)
        values /= np.asarray(self.std, dtype=np.float32)
        return values

    def with_value_range(self, value_range: ValueRange) -> Preprocess:
        """Return the same geometry with values left in 0..1 or 0..255, for a network that normalises inside.

        0..255 is mean 0 and std 1/255, so that x / 255 is undone.
        """
        if value_range == "normalized":
            return self
        std = 1.0 if value_range == "0..1" else 1 / 255
        return replace(self, mean=(0.0,) * self.in_channels, std=(std,) * self.in_channels)

    def _resize(self, image: Image.Image) -> Image.Image:
        """Resize as torchvision's Resize and timm's ResizeKeepRatio do."""
        height, width = self.resize_size
        if self.crop_mode == "center":
            image = _limit_aspect(image)
            height, width = _cover(image.size, (height, width))
        if image.size == (width, height):
            return image
        return image.resize((width, height), _RESAMPLING[self.interpolation])


def _cover(image_size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of an image scaled, aspect ratio kept, until it just covers `target` (height, width).

    image_size: (width, height), as Pillow gives it. A square target rounds the longer side down (torchvision), any
    other one rounds to the nearest (timm).
    """
    width, height = image_size
    if target[0] == target[1]:
        shorter, longer = target[0], int(target[0] * max(width, height) / min(width, height))
        return (shorter, longer) if height <= width else (longer, shorter)
    ratio = min(height / target[0], width / target[1])
    return round(height / ratio), round(width / ratio)


def _limit_aspect(image: Image.Image) -> Image.Image:
    """Cut the ends off an extremely long image, centred."""
    width, height = image.size
    longest = min(width, height) * _MAX_ASPECT
    if max(width, height) <= longest:
        return image
    return _centre_crop(image, (min(height, longest), min(width, longest)))


def _centre_crop(image: Image.Image, size: tuple[int, int], offset: CropOffset = "nearest") -> Image.Image:
    """Crop `size` (height, width) from the centre; black fills what a smaller image lacks, as in torchvision."""
    width, height = image.size
    if offset == "floor":
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
    else:
        top, left = round((height - size[0]) / 2.0), round((width - size[1]) / 2.0)
    return image.crop((left, top, left + size[1], top + size[0]))


def to_value_range(images: np.ndarray, preprocess: Preprocess, value_range: ValueRange) -> np.ndarray:
    """Undo the normalisation for a network that does it itself. images: (N, C, H, W)."""
    if value_range == "normalized":
        return images
    mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std))
    pixels = images * std + mean
    return pixels * np.float32(255) if value_range == "0..255" else pixels


def as_element_type(images: np.ndarray, kind: type[np.generic]) -> np.ndarray:
    """Return images, (N, C, H, W), as `kind`; as uint8 they are rounded to what an image file holds."""
    if kind is np.uint8 and images.dtype != np.uint8:
        images = np.clip(np.rint(images), 0, 255)
    return np.ascontiguousarray(images, dtype=kind)
