"""MIL operators on torch tensors, as coremltools' reference of them documents (opsets iOS 15 to iOS 18).

Arguments are called as in MIL. Every operator computes in float32 from what it is given and returns that; the evaluator then
rounds the result to the type that the program declares for it. So a float16 program rounds between operators, never within one:
what hardware does in there is not part of the format.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

Axes = Sequence[int]
Operator = Callable[..., torch.Tensor]

_GELU = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}
_CODES = {"int8": (-128, 127), "uint8": (0, 255)}


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    strides: Axes | None = None,
    pad_type: str = "valid",
    pad: Axes | None = None,
    dilations: Axes | None = None,
    groups: int = 1,
) -> torch.Tensor:
    """x: (N, C_in, H, W); weight: (C_out, C_in / groups, kH, kW). pad: before and after each axis, for pad_type "custom"."""
    spatial = x.dim() - 2
    steps, spread = tuple(strides or (1,) * spatial), tuple(dilations or (1,) * spatial)
    around = [0] * (2 * spatial)
    if pad_type == "custom":
        around = list(pad or around)
    elif pad_type in ("same", "same_lower"):
        around = _same_padding(x.shape[2:], weight.shape[2:], steps, spread, lower=pad_type == "same_lower")
    before, after = around[0::2], around[1::2]
    if before != after:
        # F.pad counts from the last axis.
        x = F.pad(x, [size for pair in reversed(list(zip(before, after, strict=True))) for size in pair])
        before = [0] * spatial
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[spatial]
    return convolve(x.float(), weight.float(), bias, steps, tuple(before), spread, groups)


def _same_padding(sizes: Axes, kernel: Axes, strides: Axes, dilations: Axes, *, lower: bool) -> list[int]:
    """Return the padding that makes outputs ceil(size / stride) long; the odd element goes behind, or before with `lower`."""
    around = []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        less = total // 2
        around += [total - less, less] if lower else [less, total - less]
    return around


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x: (..., in); weight: (out, in)."""
    return F.linear(x.float(), weight.float(), bias)


def matmul(x: torch.Tensor, y: torch.Tensor, transpose_x: bool = False, transpose_y: bool = False) -> torch.Tensor:
    """Multiply the last two axes, broadcasting the others."""
    left = x.float().transpose(-1, -2) if transpose_x else x.float()
    right = y.float().transpose(-1, -2) if transpose_y else y.float()
    return left @ right


def layer_norm(
    x: torch.Tensor,
    axes: Axes | None = None,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    epsilon: float = 1e-5,
) -> torch.Tensor:
    """Normalise over `axes` (all, by default); gamma and beta have the shape of these axes."""
    rank = x.dim()
    normalised = sorted(axis % rank for axis in (range(rank) if axes is None else axes))
    last = range(rank - len(normalised), rank)
    moved = x.float().movedim(normalised, list(last))
    shape = moved.shape[rank - len(normalised) :]
    result = F.layer_norm(moved, shape, None, None, float(epsilon))
    if gamma is not None:
        result = result * gamma
    if beta is not None:
        result = result + beta
    return result.movedim(list(last), normalised)


def batch_norm(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    epsilon: float = 1e-5,
) -> torch.Tensor:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta for each channel. x: (N, C, ...)."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (variance + float(epsilon)).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    result = (x.float() - mean.view(shape)) * scale.view(shape)
    return result if beta is None else result + beta.view(shape)


def gelu(x: torch.Tensor, mode: str = "EXACT") -> torch.Tensor:
    """x times the normal distribution function, exactly, or by tanh or sigmoid."""
    single = x.float()
    if mode == "SIGMOID_APPROXIMATION":
        return single * torch.sigmoid(1.702 * single)
    return F.gelu(single, approximate=_GELU[mode])


def softmax(x: torch.Tensor, axis: int = -1) -> torch.Tensor:
    return x.float().softmax(dim=axis)


def clip(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    return x.float().clamp(float(alpha), float(beta))


def rsqrt(x: torch.Tensor, epsilon: float = 1e-12) -> torch.Tensor:
    return (x.float() + float(epsilon)).rsqrt()


def inverse(x: torch.Tensor, epsilon: float = 1e-4) -> torch.Tensor:
    return (x.float() + float(epsilon)).reciprocal()


def log(x: torch.Tensor, epsilon: float = 1e-45) -> torch.Tensor:
    return (x.float() + float(epsilon)).log()


def quantize(
    input: torch.Tensor,
    scale: torch.Tensor,
    output_dtype: str,
    zero_point: torch.Tensor | None = None,
    axis: int | None = None,
) -> torch.Tensor:
    """clip(round(input / scale) + zero_point); halves round to even."""
    codes = (input.float() / along(scale.float(), axis, input.dim())).round_()
    if zero_point is not None:
        codes = codes + along(zero_point.float(), axis, input.dim())
    return codes.clamp_(*_CODES[output_dtype])


def dequantize(
    input: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None, axis: int | None = None
) -> torch.Tensor:
    """scale (input - zero_point)."""
    codes = input.float()
    if zero_point is not None:
        codes = codes - along(zero_point.float(), axis, input.dim())
    return codes * along(scale.float(), axis, input.dim())


def along(values: torch.Tensor, axis: int | None, rank: int) -> torch.Tensor:
    """Return a vector in the shape that broadcasts along `axis` of a tensor of that rank; a scalar as it is."""
    if values.dim() != 1 or axis is None:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.view(shape)


def transpose(x: torch.Tensor, perm: Axes) -> torch.Tensor:
    return x.permute(tuple(perm))


def reshape(x: torch.Tensor, shape: Axes) -> torch.Tensor:
    """shape: without 0 or -1, as the reader makes it. A program for one image, run on several, has them in its leading axis."""
    if shape and math.prod(shape) != x.numel():
        shape = (x.shape[0], *shape[1:])
    return x.reshape(tuple(shape))


def expand_dims(x: torch.Tensor, axes: Axes) -> torch.Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: torch.Tensor, axes: Axes | None = None) -> torch.Tensor:
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if size == 1]
    return x.squeeze(tuple(axes))


def cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """The evaluator gives every result its declared type, which is all that a cast does."""
    return x


def identity(x: torch.Tensor) -> torch.Tensor:
    return x


def _binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    def operator(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return function(x.float(), y.float())

    return operator


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Operator:
    def operator(x: torch.Tensor) -> torch.Tensor:
        return function(x.float())

    return operator


def _reduction(function: Callable[..., torch.Tensor]) -> Operator:
    def operator(x: torch.Tensor, axes: Axes | None = None, keep_dims: bool = False) -> torch.Tensor:
        over = tuple(range(x.dim())) if axes is None else tuple(axes)
        return function(x.float(), dim=over, keepdim=bool(keep_dims))

    return operator


def _sum_of_squares(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    return x.square().sum(dim=dim, keepdim=keepdim)


def _norm(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    return _sum_of_squares(x, dim, keepdim).sqrt()


OPERATORS: dict[str, Operator] = {
    "conv": conv,
    "linear": linear,
    "matmul": matmul,
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "gelu": gelu,
    "softmax": softmax,
    "quantize": quantize,
    "dequantize": dequantize,
    "cast": cast,
    "identity": identity,
    "transpose": transpose,
    "reshape": reshape,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "clip": clip,
    "rsqrt": rsqrt,
    "inverse": inverse,
    "log": log,
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "real_div": _binary(torch.div),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "pow": _binary(torch.pow),
    "abs": _unary(torch.abs),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "relu": _unary(torch.relu),
    "sigmoid": _unary(torch.sigmoid),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "tanh": _unary(torch.tanh),
    "reduce_mean": _reduction(torch.mean),
    "reduce_sum": _reduction(torch.sum),
    "reduce_max": _reduction(torch.amax),
    "reduce_min": _reduction(torch.amin),
    "reduce_sum_square": _reduction(_sum_of_squares),
    "reduce_l2_norm": _reduction(_norm),
}
"""Operators that run for each image, by their MIL name."""


def parameters(operator: Callable[..., Any]) -> frozenset[str]:
    """Return the MIL arguments that an operator takes."""
    return frozenset(inspect.signature(operator).parameters)
