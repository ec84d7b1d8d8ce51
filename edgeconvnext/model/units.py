"""The network cut into units that are quantised one after the other: stem, blocks, downsampling layers, and a head if it has one.

Stage outputs need no unit of their own: each is the output of its stage's last block, which is fitted to the float network's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network


@dataclass(frozen=True)
class Unit:
    """One piece of the network. name: its module path; layers: its convs and linears, in forward order.

    residual: whether its output holds its input, so that what it computes is the difference.
    """

    name: str
    layers: tuple[str, ...]
    residual: bool

    def run(self, module: Network, x: torch.Tensor) -> torch.Tensor:
        """Return the unit's output. x: (N, C, H, W), the output of the unit before it."""
        if self.name == "head":
            return module.forward_head(x)
        if self.name == "downsample_layers.0":
            return module.forward_stem(x)
        return module.get_submodule(self.name)(x)

    def branch(self, module: Network, x: torch.Tensor) -> torch.Tensor:
        """Return what the unit computes: its output, without its input where that is added."""
        return self.run(module, x) - x if self.residual else self.run(module, x)


def units_of(module: Network) -> list[Unit]:
    """Return the units of `module` in the order data passes them."""
    names: list[tuple[str, bool]] = []
    for stage in range(len(module.stages)):
        names.append((f"downsample_layers.{stage}", False))
        names += [(f"stages.{stage}.{index}", block.is_residual) for index, block in enumerate(module.blocks(stage))]
    if module.config.ends_with == "head":
        names.append(("head", False))
    layers = list(weighted_layers(module))
    return [
        Unit(name, tuple(layer for layer in layers if layer == name or layer.startswith(f"{name}.")), residual)
        for name, residual in names
    ]
