"""Which parameters are trained how fast, and which are decayed."""

from __future__ import annotations

from typing import Any

import torch

from edgeconvnext.model.network import Network
from edgeconvnext.model.units import units_of
from edgeconvnext.train.recipe import Recipe


def parameter_groups(
    module: Network, rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return the optimiser's groups; "rate" is what the schedule's factor multiplies.

    layer_decay: the rate of a unit (stem, block, downsampling, head) is this times that of the unit behind it. Vectors (norms,
    biases, layer scales) are not decayed.
    """
    units = [unit.name for unit in units_of(module)]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        unit = next((index for index, unit in enumerate(units) if name.startswith(f"{unit}.")), len(units) - 1)
        decays = parameter.dim() > 1
        group = groups.setdefault(
            (unit if layer_decay < 1 else 0, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "rate": rate * layer_decay ** (len(units) - 1 - unit),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def recipe_optimizer(module: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over all parameters of `module`."""
    groups = parameter_groups(module, recipe.step_rate, recipe.weight_decay, recipe.layer_decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.step_rate, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.step_rate)
