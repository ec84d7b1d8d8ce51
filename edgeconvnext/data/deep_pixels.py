"""Pixels deeper than 8 bits as 8-bit grey: 16-bit and 32-bit integers, and floats, whose range the values themselves show."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Pixels that are scaled at a time; each needs 8 bytes more while that lasts.
_SCALED_AT_ONCE = 2**20
_SIXTEEN_BIT = 65535


class UnknownRange(Exception):
    """Pixels whose range nothing states; the message says which values they have."""


def is_deep(image: Image.Image) -> bool:
    """Say whether an image has pixels that `deep_to_grey` is for."""
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def deep_to_grey(image: Image.Image, image_format: str | None) -> Image.Image:
    """Return an 8-bit grey image, in Pillow's mode L, of one with deeper pixels; Pillow's own conversion clips at 255.

    16-bit pixels are scaled from 0..65535 (65535 / 257 = 255). A TIFF of 32-bit integers or floats states no range: values that
    all lie in 0..255 are taken as they are, others in 0..65535 are scaled, and floats that all lie in 0..1 are multiplied by 255.
    image_format: as Pillow calls it; Pillow scales the deep pixels of a PPM to 0..65535 itself.

    Raises UnknownRange for values beyond 0..65535 or that are no numbers.
    """
    values = np.asarray(image)
    lowest, highest = float(values.min()), float(values.max())
    if not (lowest >= 0 and highest <= _SIXTEEN_BIT):  # NaN compares with nothing
        kind = "floating point numbers" if image.mode == "F" else "32-bit integers"
        raise UnknownRange(
            f"its pixels are {kind} from {lowest:g} to {highest:g}, beyond 0..65535, and the file states no range; save it as 8 "
            "or 16 bit"
        )
    if image.mode == "F" and highest <= 1:
        scale = 255.0
    elif image_format == "TIFF" and not image.mode.startswith("I;16") and highest <= 255:
        scale = 1.0
    else:
        scale = 1 / 257
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, _SCALED_AT_ONCE // values.shape[1])
    for top in range(0, len(values), rows):
        grey[top : top + rows] = np.floor(values[top : top + rows].astype(np.float64) * scale + 0.5)
    return Image.fromarray(grey)
