"""Input sizes: read from text, written as text, and held against the network they are for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeconvnext.data.size import LARGEST_SIDE, Size, size_text
from edgeconvnext.errors import ModelConfigError
from edgeconvnext.model.network import NetworkConfig


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
