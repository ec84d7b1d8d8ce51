"""Input sizes: read from text, written as text, and held against the network they are for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgeconvnext.errors import ModelConfigError

if TYPE_CHECKING:
    from edgeconvnext.model.build import NetworkConfig

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


def check_input_size(config: NetworkConfig, size: Size) -> None:
    """Raise ModelConfigError unless height and width are multiples of the network's total stride, up to LARGEST_SIDE."""
    stride = config.total_stride
    if max(size) > LARGEST_SIDE:
        raise ModelConfigError(
            f"Input size {size[0]}x{size[1]} is larger than {LARGEST_SIDE} pixels a side, beyond what fits in memory. "
            "Use a smaller --resolution."
        )
    if any(side < stride or side % stride for side in size):
        lower = tuple(max(stride, side // stride * stride) for side in size)
        upper = tuple(below + (0 if side == below else stride) for side, below in zip(size, lower, strict=True))
        raise ModelConfigError(
            f"Input size {size[0]}x{size[1]} does not fit this network: height and width must be multiples of {stride}. "
            f"Use --resolution {size_text((lower[0], lower[1]))} or {size_text((upper[0], upper[1]))}."
        )
