"""Names and kinds of the layers that carry weights, in forward order."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from edgeconvnext.model.convnext import ConvNeXt
from edgeconvnext.targets import Operator


def weighted_layers(module: ConvNeXt) -> dict[str, Operator]:
    """Return every conv and linear of `module` by its path, with its kind, in the order data passes them."""
    layers: dict[str, Operator] = {}
    *stem_convs, _norm = cast(nn.Sequential, module.downsample_layers[0])
    for index in range(len(stem_convs)):
        layers[f"downsample_layers.0.{index}"] = "stem"
    for stage, depth in enumerate(module.config.depths):
        if stage:
            layers[f"downsample_layers.{stage}.1"] = "downsample"
        for block in range(depth):
            path = f"stages.{stage}.{block}"
            layers[f"{path}.dwconv"] = "depthwise"
            layers[f"{path}.pwconv1"] = "pointwise1"
            layers[f"{path}.pwconv2"] = "pointwise2"
    if module.config.num_classes:
        layers["head"] = "head"
    return layers


def weight_of(module: ConvNeXt, layer: str) -> torch.Tensor:
    """Return the weight of a conv or linear by its path, (out, in, ...), without its gradient."""
    return cast(torch.Tensor, module.get_submodule(layer).weight).detach()
