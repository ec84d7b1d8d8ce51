"""What goes from one part of the network to the next, and the torch form of parts that the kernels do not know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from edgeconvnext.backends.triton.grids import Int8Grid
from edgeconvnext.backends.triton.quantize import quantize

Codes = dict[str, torch.Tensor]
"""The int8 codes that layers read, by layer, in the layout of its own input: (N, C, H, W) of convs, (..., C) of linears."""


@dataclass(frozen=True)
class Stream:
    """Activations between units. floats: (N, H, W, C). codes: the same rounded for the next depthwise conv, where that is int8."""

    floats: torch.Tensor
    codes: torch.Tensor | None


class Unit(Protocol):
    """A stem, block or downsampling. seen: where it notes what its layers read; None outside of tests and checks."""

    def __call__(self, x: Stream, seen: Codes | None) -> Stream: ...


@dataclass(frozen=True)
class TorchUnit:
    """A part of the network in torch, float32, with its quantizers as the simulation has them.

    module: (N, C, H, W) to (N, C, H, W). grid: of the codes that the next unit reads.
    """

    module: Callable[[torch.Tensor], torch.Tensor]
    float_type: torch.dtype
    grid: Int8Grid | None

    def __call__(self, x: Stream, seen: Codes | None) -> Stream:
        images = x.floats.float().permute(0, 3, 1, 2)
        with exact_convs():
            floats = self.module(images).permute(0, 2, 3, 1).to(self.float_type).contiguous()
        return Stream(floats, None if self.grid is None else quantize(floats, self.grid, channel_axis=3))


def exact_convs() -> AbstractContextManager[None]:
    """Return a context in which convs multiply in float32; by default NVIDIA's round to 11 bits first (TF32)."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
