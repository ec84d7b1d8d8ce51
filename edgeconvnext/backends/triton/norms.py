"""Kernel: LayerNorm of rows that lie in memory as floats, to floats, codes or both; behind the stem, in front of downsampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import nn

from edgeconvnext.backends.triton.device_functions import codes_of, layer_norm, tuned
from edgeconvnext.backends.triton.grids import Int8Grid

_CONFIGS = [triton.Config({"ROWS": rows}, num_warps=warps) for rows, warps in ((1, 1), (2, 2), (4, 4), (16, 8))]


@dataclass(frozen=True)
class Norm:
    """A LayerNorm over channels. weight, bias: (C,) float32. epsilon: None where the norm was replaced by an identity."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float | None

    @classmethod
    def of(cls, module: nn.Module, channels: int) -> Norm:
        """Read a LayerNorm, or the identity that replaced it."""
        if isinstance(module, nn.LayerNorm):
            return cls(module.weight.detach().float(), module.bias.detach().float(), module.eps)
        return cls(torch.ones(channels), torch.zeros(channels), None)

    def to(self, device: torch.device) -> Norm:
        """Return the norm on `device`."""
        return Norm(self.weight.to(device), self.bias.to(device), self.epsilon)


def norm_rows(
    x: torch.Tensor, norm: Norm, float_type: torch.dtype | None, grid: Int8Grid | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Normalise the last axis of `x`; return the result as floats of `float_type` and as codes of `grid`, each where asked for.

    The codes are of the floats as stored. x: (..., C) float.
    """
    channels = x.shape[-1]
    rows = x.numel() // channels
    floats = None if float_type is None else torch.empty_like(x, dtype=float_type)
    codes = None if grid is None else torch.empty_like(x, dtype=torch.int8)
    _norm_rows_kernel[lambda meta: (triton.cdiv(rows, meta["ROWS"]),)](
        x,
        norm.weight,
        norm.bias,
        x if floats is None else floats,
        x if codes is None else codes,
        x if grid is None else grid.table,
        rows,
        norm.epsilon or 0.0,
        CHANNELS=channels,
        BLOCK=triton.next_power_of_2(channels),
        HAS_NORM=norm.epsilon is not None,
        FLOATS=floats is not None,
        CODES=codes is not None,
    )
    return floats, codes


@tuned(["rows", "CHANNELS"], _CONFIGS, interpreted=triton.Config({"ROWS": 512}))
@triton.jit
def _norm_rows_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    floats_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    grid_ptr: tl.tensor,
    rows: int,
    epsilon: float,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
    FLOATS: tl.constexpr,
    CODES: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)[None, :]
    inside = channel < CHANNELS
    mask = (row < rows)[:, None] & inside
    place = row.to(tl.int64)[:, None] * CHANNELS + channel
    value = tl.load(x_ptr + place, mask=mask, other=0).to(tl.float32)
    if HAS_NORM:
        value = layer_norm(value, weight_ptr, bias_ptr, channel, inside, CHANNELS, epsilon)
    if FLOATS:
        stored = value.to(floats_ptr.dtype.element_ty)
        tl.store(floats_ptr + place, stored, mask=mask)
        value = stored.to(tl.float32)
    if CODES:
        codes = codes_of(value, channel, inside, grid_ptr, CHANNELS)
        tl.store(codes_ptr + place, codes, mask=mask)
