"""Input sizes: read from text, written as text, and held against the network they are for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Read sizes separated by commas, as in "224,384x512"; one that is named twice counts once."""
    return tuple(dict.fromkeys(parse_size(part) for part in text.split(",")))


@dataclass(frozen=True)
class SizeRange:
    """What a file of free input size takes: between the smallest and the largest height and width, in steps of `stride`."""

    smallest: Size
    largest: Size
    stride: int

    @classmethod
    def of(cls, sizes: Sequence[Size], stride: int) -> SizeRange | None:
        """Return the range that holds all `sizes`; None where they are one."""
        heights, widths = zip(*sizes, strict=True)
        smallest, largest = (min(heights), min(widths)), (max(heights), max(widths))
        return None if smallest == largest else cls(smallest, largest, stride)


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
