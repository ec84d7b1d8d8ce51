"""Kernel: the codes of floats that no other kernel has just computed, as of the image."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from edgeconvnext.backends.triton.device_functions import codes_of
from edgeconvnext.backends.triton.grids import Int8Grid

_BLOCK = 1024


def quantize(x: torch.Tensor, grid: Int8Grid, *, channel_axis: int) -> torch.Tensor:
    """Return the int8 codes of a contiguous float tensor, whose channels lie on `channel_axis`."""
    codes = torch.empty_like(x, dtype=torch.int8)
    _quantize_kernel[(triton.cdiv(x.numel(), _BLOCK),)](
        x,
        codes,
        grid.table,
        x.numel(),
        x.shape[channel_axis],
        x.stride(channel_axis),
        BLOCK=_BLOCK,
    )
    return codes


@triton.jit
def _quantize_kernel(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    grid_ptr: tl.tensor,
    elements: int,
    channels: int,
    channel_stride: int,
    BLOCK: tl.constexpr,
) -> None:
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < elements
    value = tl.load(x_ptr + place, mask=mask, other=0).to(tl.float32)
    channel = (place // channel_stride) % channels
    codes = codes_of(value, channel, mask, grid_ptr, channels)
    tl.store(codes_ptr + place, codes, mask=mask)
