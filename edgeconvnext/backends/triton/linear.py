"""Kernel: int8 matrix product with what follows it: GELU, the residual, and the codes of the next layer."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from edgeconvnext.backends.triton.device_functions import codes_of, gelu, tuned
from edgeconvnext.backends.triton.grids import Int8Grid, LinearWeights


def _config(rows: int, columns: int, depth: int, stages: int, warps: int) -> triton.Config:
    blocks = {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns, "BLOCK_DEPTH": depth}
    return triton.Config(blocks, num_stages=stages, num_warps=warps)


# Large blocks for large batches, where reuse counts; small ones for batch 1, whose last stage has 49 rows at 224 px.
_CONFIGS = [
    _config(128, 256, 128, stages=3, warps=8),
    _config(128, 128, 128, stages=3, warps=8),
    _config(128, 64, 128, stages=3, warps=4),
    _config(64, 128, 128, stages=3, warps=4),
    _config(64, 64, 128, stages=4, warps=4),
    _config(32, 64, 128, stages=4, warps=4),
    _config(16, 64, 256, stages=4, warps=4),
]


def int8_linear(
    x: torch.Tensor,
    weights: LinearWeights,
    *,
    activate: bool = False,
    residual: torch.Tensor | None = None,
    float_type: torch.dtype | None = None,
    grid: Int8Grid | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return y = x W^T + b, (..., out), as floats of `float_type` and as codes of `grid`, each where asked for.

    x: (..., in) int8. activate: y becomes GELU(y). residual: (..., out) float, added behind that. Codes are of the floats as
    stored.
    """
    depth, columns = x.shape[-1], len(weights.codes)
    rows = x.numel() // depth
    shape = (*x.shape[:-1], columns)
    floats = None if float_type is None else torch.empty(shape, dtype=float_type, device=x.device)
    codes = None if grid is None else torch.empty(shape, dtype=torch.int8, device=x.device)

    def programs(meta: dict[str, Any]) -> tuple[int]:
        return (triton.cdiv(rows, meta["BLOCK_ROWS"]) * triton.cdiv(columns, meta["BLOCK_COLUMNS"]),)

    _int8_linear_kernel[programs](
        x,
        weights.codes,
        weights.start,
        weights.scale,
        weights.bias,
        x if residual is None else residual,
        x if floats is None else floats,
        x if codes is None else codes,
        x if grid is None else grid.table,
        rows,
        columns,
        depth,
        ACTIVATE=activate,
        RESIDUAL=residual is not None,
        FLOATS=floats is not None,
        CODES=codes is not None,
    )
    return floats, codes


@tuned(
    ["rows", "columns", "depth", "ACTIVATE", "RESIDUAL", "FLOATS", "CODES"],
    _CONFIGS,
    interpreted=_config(512, 64, 64, stages=1, warps=4),
)
@triton.jit
def _int8_linear_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    start_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    floats_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    grid_ptr: tl.tensor,
    rows: int,
    columns: int,
    depth: int,
    ACTIVATE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    FLOATS: tl.constexpr,
    CODES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
) -> None:
    # Programs next to each other share rows of x, which are many; the weights stay in the cache.
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    row = tl.program_id(0) // column_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(0) % column_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    row_inside, column_inside = row < rows, column < columns
    k = tl.arange(0, BLOCK_DEPTH)
    x_place = x_ptr + row.to(tl.int64)[:, None] * depth + k[None, :]
    weight_place = weight_ptr + column.to(tl.int64)[None, :] * depth + k[:, None]
    start = tl.load(start_ptr + column, mask=column_inside, other=0)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.int32) + start[None, :]
    for step in range(0, tl.cdiv(depth, BLOCK_DEPTH)):
        left = depth - step * BLOCK_DEPTH
        x = tl.load(x_place, mask=row_inside[:, None] & (k < left)[None, :], other=0)
        weight = tl.load(weight_place, mask=column_inside[None, :] & (k < left)[:, None], other=0)
        total = tl.dot(x, weight, total, out_dtype=tl.int32)
        x_place += BLOCK_DEPTH
        weight_place += BLOCK_DEPTH
    scale = tl.load(scale_ptr + column, mask=column_inside, other=0)
    bias = tl.load(bias_ptr + column, mask=column_inside, other=0)
    value = total.to(tl.float32) * scale[None, :] + bias[None, :]
    mask = row_inside[:, None] & column_inside[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    if ACTIVATE:
        value = gelu(value)
    if RESIDUAL:
        value += tl.load(residual_ptr + place, mask=mask, other=0).to(tl.float32)
    if FLOATS:
        stored = value.to(floats_ptr.dtype.element_ty)
        tl.store(floats_ptr + place, stored, mask=mask)
        value = stored.to(tl.float32)
    if CODES:
        channel, inside = column[None, :], column_inside[None, :]
        codes = codes_of(value, channel, inside, grid_ptr, columns)
        tl.store(codes_ptr + place, codes, mask=mask)
