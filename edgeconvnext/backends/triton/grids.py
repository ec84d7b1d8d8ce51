"""Grids and weights of a plan in the form the kernels take: int8 codes, one float32 scale for each output, exact zero points."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import cast

import torch
from torch import nn

from edgeconvnext.model.network import Network
from edgeconvnext.quantization.plan import QParams, QuantPlan
from edgeconvnext.rewrite.channel_scaling import ScaleShift

_UNSIGNED_SHIFT = 128
"""Codes 0..255 are kept as -128..127: tensor cores multiply int8 by int8, and what a shift adds is known exactly."""


@dataclass(frozen=True)
class Int8Grid:
    """Where an activation is rounded to int8: code = clamp(round((x * factor + summand) / scale)) + zero.

    factor and summand, one for each channel, are the multiply-add of `rewrite/prepare.py`; ones and zeros where there is none,
    which changes no value and is cheaper than a kernel compiled for each case.
    table: what kernels read, float32: 1 / scale, the lowest and the highest code in steps from zero, zero, then all factors and
    all summands.
    """

    scale: float
    zero: int
    table: torch.Tensor

    @classmethod
    def build(
        cls, scale: float, zero: int, ends: tuple[int, int], factor: torch.Tensor, summand: torch.Tensor
    ) -> Int8Grid:
        """zero, ends: int8, ends the lowest and the highest code. factor, summand: (C,)."""
        # 1 / scale is rounded to float32 first: torch's quantizers multiply by that.
        numbers = torch.stack(
            [1 / torch.tensor(scale), *(torch.tensor(float(n)) for n in (ends[0] - zero, ends[1] - zero, zero))]
        )
        return cls(scale, zero, torch.cat([numbers, factor, summand]))

    @classmethod
    def of(cls, qparams: QParams, scaling: ScaleShift | None, channels: int) -> Int8Grid:
        """Read a per-tensor grid of 8 bits and the scaling in front of it."""
        shift = 0 if qparams.signed else _UNSIGNED_SHIFT
        ends = (qparams.quant_min - shift, qparams.quant_max - shift)
        factor = torch.ones(1) if scaling is None or scaling.scale is None else scaling.scale.flatten()
        summand = torch.zeros(1) if scaling is None or scaling.shift is None else scaling.shift.flatten()
        zero = int(qparams.zero_point) - shift
        return cls.build(float(qparams.scale), zero, ends, factor.expand(channels), summand.expand(channels))

    def to(self, device: torch.device) -> Int8Grid:
        """Return the grid with its table on `device`."""
        return replace(self, table=self.table.to(device))


@dataclass(frozen=True)
class LinearWeights:
    """A linear, or a conv that strides by its own size, as integers: y = (sum of codes * weight codes + start) * scale + bias.

    codes: (out, in) int8. scale, bias: (out,) float32; scale is the input's times the weight's. start: (out,) int32, which takes
    off what the input's zero point adds to every sum.
    """

    codes: torch.Tensor
    start: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    def to(self, device: torch.device) -> LinearWeights:
        """Return the weights on `device`."""
        return LinearWeights(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class DepthwiseWeights:
    """A depthwise conv, row by row of its kernel: y = scale * sum of (x - input_zero) * taps + bias, with zeros around the image.

    taps: (kernel_size^2, C), int8 for an input of codes; float32 where the conv stays float, with a scale of one.
    """

    taps: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    kernel_size: int
    input_zero: int

    def to(self, device: torch.device) -> DepthwiseWeights:
        """Return the weights on `device`."""
        tensors = (self.taps.to(device), self.scale.to(device), self.bias.to(device))
        return DepthwiseWeights(*tensors, self.kernel_size, self.input_zero)


def planned_grid(network: Network, plan: QuantPlan, layer: str) -> Int8Grid | None:
    """Return the int8 grid of a layer's input; None unless both its input and its weights are planned in a form kernels take.

    They take one scale for the input and one for each output channel, of at most 8 bits.
    """
    activation, weight = plan.activations.get(f"{layer}:input"), plan.weights.get(layer)
    if activation is None or weight is None or weight.blocked or f"{layer}:output" in plan.activations:
        return None
    if activation.qparams.bits > 8 or weight.bits > 8:
        return None
    found = network.get_submodule(layer)
    channels = found.in_features if isinstance(found, nn.Linear) else cast(nn.Conv2d, found).in_channels
    return Int8Grid.of(activation.qparams, getattr(found, "channel_scaling", None), channels)


def linear_weights(network: Network, plan: QuantPlan, layer: str, grid: Int8Grid) -> LinearWeights:
    """Return a planned linear, or conv that strides by its own size, as a matrix for inputs in the order of `patches`."""
    codes, scale, bias = _integers(network, plan, layer, grid)
    if codes.dim() == 4:
        codes = codes.permute(0, 2, 3, 1)
    codes = codes.flatten(1).contiguous()
    return LinearWeights(codes, -grid.zero * codes.sum(dim=1, dtype=torch.int32), scale, bias)


def depthwise_weights(network: Network, plan: QuantPlan, layer: str, grid: Int8Grid | None) -> DepthwiseWeights:
    """Return a depthwise conv; grid: of its input, None where it stays float."""
    conv = cast(nn.Conv2d, network.get_submodule(layer))
    size, weight = conv.kernel_size[0], conv.weight.detach().float()
    if grid is None:
        scale, bias = torch.ones(len(weight)), cast(torch.Tensor, conv.bias).detach().float()
        return DepthwiseWeights(weight.flatten(1).T.contiguous(), scale, bias, size, 0)
    codes, scale, bias = _integers(network, plan, layer, grid)
    return DepthwiseWeights(codes.flatten(1).T.contiguous(), scale, bias, size, grid.zero)


def patches(codes: torch.Tensor, size: int) -> torch.Tensor:
    """Cut (N, H, W, C) into patches without overlap: (N * H / size * W / size, size * size * C)."""
    n, height, width, channels = codes.shape
    cut = codes.reshape(n, height // size, size, width // size, size, channels).transpose(2, 3)
    return cut.reshape(-1, size * size * channels)


def _integers(
    network: Network, plan: QuantPlan, layer: str, grid: Int8Grid
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a layer's weight codes (int8, as the weight), and scale and bias, (out,) float32."""
    found, weight_grid = network.get_submodule(layer), plan.weights[layer]
    weight, bias = (cast(torch.Tensor, found.get_parameter(name)).detach() for name in ("weight", "bias"))
    codes = weight_grid.nearest_code(weight / weight_grid.broadcast(weight_grid.scale, weight)).to(torch.int8)
    scale = (weight_grid.scale.float() * grid.scale).expand(len(weight))
    return codes, scale.contiguous(), bias.float().clone()
