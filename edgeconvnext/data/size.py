"""Height and width of images, and how the command line writes them."""

from __future__ import annotations

import re

from edgeconvnext.errors import ModelConfigError

Size = tuple[int, int]
"""Height and width, pixels."""

LARGEST_SIDE = 4096
"""Pixels; at this input the first stage of the smallest ConvNeXt alone holds 168 MB per image and activation."""


def parse_size(text: str) -> Size:
    """Read "224" (a square) or "224x320" (height x width). Raises ModelConfigError for other text."""
    found = re.fullmatch(r"(-?\d+)(?:x(-?\d+))?", text.strip())
    if found is None:
        raise ModelConfigError(
            f"An input size is one side in pixels, as in 224, or height x width, as in 224x320; it is {text!r}."
        )
    return int(found[1]), int(found[2] or found[1])


def size_text(size: Size) -> str:
    """Write a size as `parse_size` reads it."""
    height, width = size
    return f"{height}" if height == width else f"{height}x{width}"


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Read sizes separated by commas, as in "224,384x512"; one that is named twice counts once."""
    return tuple(dict.fromkeys(parse_size(part) for part in text.split(",")))
