"""Rewrites that change what a quantizer sees and nothing else: per-channel scales and shifts, taken back behind it.

A layer computes W x + b. With x' = x * scale + shift (per input channel) the layer W' = W / scale, b' = b - W' shift gives
the same output from x', and x' is what gets quantised. Scale migration of SmoothQuant (arXiv 2211.10438) and the shifts of
Outlier Suppression+ (arXiv 2304.09145) are of this form.

Behind a LayerNorm the scaling costs nothing: it goes into the norm's own weight and bias. Elsewhere it becomes one
multiply-add in front of the layer (`ScaledLinear`, `ScaledConv2d`). A conv with padding takes no shift: the zeros around the
image would have to be shifted as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network


@dataclass(frozen=True)
class ChannelScaling:
    """x' = x * scale + shift per input channel of a layer; scale, shift: (C,), float32. name: how it was chosen."""

    scale: torch.Tensor
    shift: torch.Tensor
    name: str

    @property
    def is_identity(self) -> bool:
        return bool((self.scale == 1).all()) and bool((self.shift == 0).all())

    @classmethod
    def identity(cls, channels: int) -> ChannelScaling:
        return cls(torch.ones(channels), torch.zeros(channels), "none")

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: (..., C)."""
        return rows if self.is_identity else rows * self.scale + self.shift


class ScaleShift(nn.Module):
    """The multiply-add in front of a layer. scale, shift: (C,) for channels-last input, (1, C, 1, 1) for images.

    A shift of zero everywhere is left out, so that the exported graph has a multiplication only, and likewise a scale of one.
    """

    scale: torch.Tensor | None
    shift: torch.Tensor | None

    def __init__(self, scaling: ChannelScaling, images: bool) -> None:
        super().__init__()
        shape = (1, -1, 1, 1) if images else (-1,)
        scale, shift = scaling.scale, scaling.shift
        if bool((scale == scale[0]).all()):  # one number for all channels stays one number in the file
            scale = scale[:1]
        if bool((shift == shift[0]).all()):
            shift = shift[:1]
        self.register_buffer("scale", None if bool((scale == 1).all()) else scale.clone().view(shape))
        self.register_buffer("shift", None if bool((shift == 0).all()) else shift.clone().view(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale is not None:
            x = x * self.scale
        return x if self.shift is None else x + self.shift


class ScaledLinear(nn.Linear):
    """A linear layer behind a `ScaleShift`; its parameters are those of `layer`. x: (..., in)."""

    def __init__(self, layer: nn.Linear, scaling: ChannelScaling) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.channel_scaling = ScaleShift(scaling, images=False)
        self.train(layer.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.channel_scaling(x), self.weight, self.bias)


class ScaledConv2d(nn.Conv2d):
    """A conv behind a `ScaleShift`; its parameters are those of `layer`. x: (N, in, H, W)."""

    def __init__(self, layer: nn.Conv2d, scaling: ChannelScaling) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            cast(tuple[int, int], layer.kernel_size),
            cast(tuple[int, int], layer.stride),
            cast(tuple[int, int], layer.padding),
            groups=layer.groups,
            bias=layer.bias is not None,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.channel_scaling = ScaleShift(scaling, images=True)
        self.train(layer.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(self.channel_scaling(x), self.weight, self.bias)


def norm_before(module: Network, layer: str) -> nn.LayerNorm | None:
    """Return the LayerNorm whose output is this layer's input and nothing else's, or None."""
    kind, owner = weighted_layers(module)[layer], layer.rpartition(".")[0]
    paths = {"pointwise1": f"{owner}.norm", "downsample": f"{owner}.0", "head": "norm"}
    norm = module.get_submodule(paths[kind]) if kind in paths else None
    return norm if isinstance(norm, nn.LayerNorm) else None


def takes_shift(module: Network, layer: str) -> bool:
    """Return whether a shift in front of this layer can be taken back exactly: not where zeros are padded."""
    layer_module = module.get_submodule(layer)
    return not isinstance(layer_module, nn.Conv2d) or not any(cast(tuple[int, ...], layer_module.padding))


def absorbed(layer: nn.Module, scaling: ChannelScaling) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the layer's weight and bias for inputs x * scale + shift in place of x, float64.

    weight: as the layer's own, (out, in) or (out, in / groups, kH, kW).
    """
    weight, bias = _parameters(layer)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    # Row r of the weight belongs to group r // (out / groups) and meets that group's channels only: (out, in / groups).
    scale, shift = (
        values.double().view(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
        for values in (scaling.scale, scaling.shift)
    )
    new_weight = weight / scale.view(*scale.shape, *[1] * (weight.dim() - 2))
    return new_weight, bias - (new_weight.reshape(*scale.shape, -1).sum(dim=2) * shift).sum(dim=1)


def place_scaling(module: Network, layer: str, scaling: ChannelScaling) -> None:
    """Put `scaling` in front of a layer without touching the layer's weights: into its norm, or as a multiply-add.

    A multiply-add comes with another module in the layer's place, with the same parameters under the same names. Hooks of the
    layer stay with the old one.
    """
    norm = norm_before(module, layer)
    if norm is not None:
        norm.bias.data.copy_(norm.bias.detach().double() * scaling.scale.double() + scaling.shift.double())
        norm.weight.data.copy_(norm.weight.detach().double() * scaling.scale.double())
        return
    layer_module = module.get_submodule(layer)
    if isinstance(layer_module, nn.Conv2d):
        module.set_submodule(layer, ScaledConv2d(layer_module, scaling))
    else:
        module.set_submodule(layer, ScaledLinear(cast(nn.Linear, layer_module), scaling))


def _parameters(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return cast(torch.Tensor, layer.weight).detach().double(), cast(torch.Tensor, layer.bias).detach().double()
