"""Compressed constants of a MIL program: constexpr operators, which Core ML expands when it loads a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from edgeconvnext.backends.coreml.mil.operators import along


def affine_dequantize(
    quantized_data: torch.Tensor, zero_point: torch.Tensor, scale: torch.Tensor, axis: int
) -> torch.Tensor:
    """scale (data - zero_point), with one scale for all or one along `axis` (iOS 16)."""
    rank = quantized_data.dim()
    return (quantized_data.float() - along(zero_point.float(), axis, rank)) * along(scale.float(), axis, rank)


def blockwise_shift_scale(data: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
    """scale (data - offset), each holding for a block of data.shape[i] / scale.shape[i] along every axis (iOS 18)."""
    codes = data.float()
    if offset is not None:
        codes = codes - repeated(offset.float(), data.shape)
    return codes * repeated(scale.float(), data.shape)


def lut_to_dense(
    indices: torch.Tensor,
    lut: torch.Tensor,
    shape: Sequence[int] | None = None,
    vector_axis: int | None = None,
) -> torch.Tensor:
    """Look indices up in their palette.

    iOS 16: indices packed into bytes, lut (palette,), shape of the result. iOS 18: indices (d0, d1, ...), and a lut of shape
    (b0, b1, ..., palette, vector) with one palette for each block of d0 / b0 x d1 / b1 x ... indices; vectors longer than one
    element fill the result along `vector_axis`.
    """
    if shape is not None:
        bits = int(math.log2(len(lut)))
        return lut[unpacked(indices, bits, math.prod(shape))].view(tuple(shape))
    blocks = lut.shape[:-2]
    block = repeated(torch.arange(math.prod(blocks)).view(blocks), indices.shape)
    dense = lut.flatten(0, -3)[block, indices.long()]
    if vector_axis is None:
        return dense.squeeze(-1)
    axis = vector_axis % indices.dim()
    # (..., d_axis, vector, ...) flattened over both gives the elements of one vector side by side.
    return dense.movedim(-1, axis + 1).flatten(axis, axis + 1)


def repeated(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return `values` with its first axes repeated, element by element, to `shape`."""
    for axis, size in enumerate(shape):
        if values.shape[axis] != size:
            values = values.repeat_interleave(size // values.shape[axis], dim=axis)
    return values


def unpacked(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return `count` unsigned numbers of so many bits from bytes that hold them from the lowest bit on, as int64."""
    stream = (packed.long()[:, None] >> torch.arange(8)) & 1
    return (stream.flatten()[: count * bits].view(count, bits) << torch.arange(bits)).sum(dim=1)


def cast(source_val: torch.Tensor, output_dtype: str) -> torch.Tensor:
    """The reader gives every constant its declared type, which is all that a cast does."""
    return source_val


CONSTEXPR: dict[str, Callable[..., torch.Tensor]] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_cast": cast,
}
"""Operators that make a constant, by their MIL name."""
