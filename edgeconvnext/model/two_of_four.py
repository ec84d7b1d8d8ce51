"""The 2:4 pattern: at most two of four weights in a row that are not zero."""

from __future__ import annotations

from typing import cast

import torch

from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network

LINEARS = (".pwconv1", ".pwconv2")
"""The layers that are pruned to the pattern, by the end of their names."""

GROUP = 4

KEPT = 2


def is_two_of_four(weight: torch.Tensor) -> bool:
    """Tell whether a weight (out, in) has the pattern: `in` a multiple of four, and zeros where the pattern wants them."""
    if weight.dim() != 2 or weight.shape[1] % GROUP:
        return False
    return bool(((weight != 0).view(len(weight), -1, GROUP).sum(dim=2) <= KEPT).all())


def zero_mask(weight: torch.Tensor) -> torch.Tensor | None:
    """Return which weights of a 2:4 layer may differ from zero, bool (out, in); None for any other layer.

    A layer of nothing but zeros counts as none.
    """
    return weight != 0 if is_two_of_four(weight) and bool(weight.any()) else None


def sparse_layers(network: Network) -> tuple[str, ...]:
    """Return the linears of a network's blocks that are 2:4 sparse, by path."""
    weights = {
        name: cast(torch.Tensor, network.get_submodule(name).weight)
        for name in weighted_layers(network)
        if name.endswith(LINEARS)
    }
    return tuple(name for name, weight in weights.items() if zero_mask(weight.detach()) is not None)
