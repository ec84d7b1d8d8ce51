"""Names and kinds of the layers that carry weights, in forward order."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from edgeconvnext.choices import Operator
from edgeconvnext.model.network import Network


def weighted_layers(module: Network) -> dict[str, Operator]:
    """Return every conv and linear of `module` by its path, with its kind, in the order data passes them."""
    layers: dict[str, Operator] = {}
    present = dict(module.named_modules())
    for stage in range(len(module.stages)):
        kind: Operator = "downsample" if stage else "stem"
        convs = (
            name for name, child in module.downsample_layers[stage].named_children() if isinstance(child, nn.Conv2d)
        )
        layers.update({f"downsample_layers.{stage}.{name}": kind for name in convs})
        for index, block in enumerate(module.blocks(stage)):
            path = f"stages.{stage}.{index}"
            layers.update({f"{path}.{n}": k for n, k in block.operators.items() if f"{path}.{n}" in present})
    if module.config.num_classes:
        layers["head"] = "head"
    return layers


def weight_of(module: Network, layer: str) -> torch.Tensor:
    """Return the weight of a conv or linear by its path, (out, in, ...), without its gradient."""
    return cast(torch.Tensor, module.get_submodule(layer).weight).detach()
