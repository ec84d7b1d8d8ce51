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
    return torch.optim.AdamW(groups, lr=recipe.step_rate, fused=True)


def recovery_optimizers(module: Network, rate: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices (linears' weights) and AdamW at an eighth of the rate for the rest; nothing is decayed.

    Muon's steps change a matrix in all directions alike, also those that few gradients point in (Jordan et al., 2024; scaled to
    AdamW's as in arXiv 2502.16982). The classifier is left to AdamW, as there: answers that are certain give it hardly a gradient,
    and steps as large as anywhere carried it away (benchmarks/results/recovery_rates.csv).
    """
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in module.named_parameters():
        by_muon = parameter.dim() == 2 and not name.startswith("head.")
        (matrices if by_muon else others).append(parameter)
    return (
        torch.optim.Muon([{"params": matrices, "rate": rate}], weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{"params": others, "rate": rate / 8}], weight_decay=0.0),
    )
