"""Weight gradients of depthwise convs on a CPU, where oneDNN's took more than a third of a ConvNeXt's training step.

Two ways around its kernels, which are slow for few places and in bfloat16 (7x7, batch 64, one AVX2 thread, torch 2.13):

- few places, up to 8x8: the products of every place of the input with every place of the gradient are one small matrix product
  for each channel, and each weight is the sum of those products whose places lie apart as far as it reaches. 160 channels of 8x8
  take 10 ms instead of 19 in float32 and 34 in bfloat16; 320 of 4x4 3 ms instead of 16 and 34.
- more places: in float32, also where the rest of the step is bfloat16: 40 channels of 32x32 take 71 ms instead of 108.

The gradient of the input is a depthwise conv as well, of the output's gradient with the kernels turned by 180 degrees. As that it
takes half as long as in oneDNN's backward kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import custom_bwd, custom_fwd

_MOST_PLACES = 64

_backward = torch.ops.aten.convolution_backward


@contextmanager
def fast_weight_gradients(module: nn.Module) -> Iterator[None]:
    """Let the depthwise convs inside `module` compute their weight gradients as said above, for what runs forward inside.

    Meanwhile other modules with the same parameters are in their places.
    """
    convs = {
        path: conv for path, conv in module.named_modules() if path and type(conv) is nn.Conv2d and _is_depthwise(conv)
    }
    for path, conv in convs.items():
        module.set_submodule(path, _DepthwiseConv(conv))
    try:
        yield
    finally:
        for path, conv in convs.items():
            module.set_submodule(path, conv)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether each channel has its own kernel, of odd sides, and the output the input's size."""
    sides = conv.kernel_size
    return (
        conv.groups == conv.in_channels == conv.out_channels > 1
        and (conv.stride, conv.dilation) == ((1, 1), (1, 1))
        and all(side % 2 for side in sides)
        and conv.padding == tuple(side // 2 for side in sides)
        and conv.padding_mode == "zeros"
    )


class _DepthwiseConv(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Convolution.apply(x, self.weight, self.bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return F.conv2d(x, weight, bias, padding="same", groups=len(weight))

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            F.conv2d(gradient, weight.flip(2, 3), padding="same", groups=len(weight)) if of_x else None,
            weight_gradient(x, gradient, weight) if of_weight else None,
            gradient.sum(dim=(0, 2, 3), dtype=torch.float32) if ctx.has_bias and of_bias else None,
        )


def weight_gradient(x: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a depthwise conv's weights, (C, 1, k, l), float32.

    x, gradient: the conv's input and the gradient of its output, (N, C, H, W) each.
    """
    images, channels, height, width = x.shape
    if height * width > _MOST_PLACES:
        options = (*_geometry(weight), (False, True, False))
        return _backward(gradient.float(), x.float(), weight.float(), None, *options)[1]
    # Strided matrices of a batch would be multiplied one by one.
    places = x.float().permute(1, 2, 3, 0).reshape(channels, height * width, images).contiguous()
    owed = gradient.float().permute(1, 0, 2, 3).reshape(channels, images, height * width).contiguous()
    products = torch.bmm(places, owed).view(channels, -1)
    return (products @ _reached_by(height, width, *weight.shape[2:])).view(weight.shape)


def _geometry(weight: torch.Tensor) -> tuple[Any, ...]:
    """Stride, padding, dilation, whether transposed, output padding and groups, as aten takes them."""
    return (1, 1), [side // 2 for side in weight.shape[2:]], (1, 1), False, (0, 0), len(weight)


@lru_cache(maxsize=16)
def _reached_by(height: int, width: int, rows: int, columns: int) -> torch.Tensor:
    """Return 1 where a weight reaches from a place of the output to one of the input, (input and output place, weight), else 0."""
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    row, column = (place[:, None] - place[None, :] + side // 2 for place, side in ((y, rows), (x, columns)))
    weight = torch.where((column >= 0) & (column < columns) & (row >= 0) & (row < rows), row * columns + column, -1)
    return (weight.flatten()[:, None] == torch.arange(rows * columns)).float()
