"""From statistics and a target to a plan: which tensors are quantised, each on which grid."""

from __future__ import annotations

from typing import Literal

import torch

from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.convnext import ConvNeXt
from edgeconvnext.model.layers import weight_of, weighted_layers
from edgeconvnext.quantize.plan import ActivationPlan, QParams, QuantPlan
from edgeconvnext.quantize.ranges import ESTIMATORS, Estimator, Grid, choose_range
from edgeconvnext.quantize.statistics import Statistics
from edgeconvnext.quantize.weights import weight_grid
from edgeconvnext.targets import Target

Calibrator = Literal["auto", "minmax", "percentile", "entropy", "mse"]
Effort = Literal["quick", "default", "best"]

# Candidates of each line search over clipping ranges; quick skips the searches.
SEARCH_STEPS: dict[Effort, int] = {"quick": 0, "default": 80, "best": 240}


def activation_grid(target: Target) -> Grid:
    """Return the integer codes that the target's activations use."""
    activations = target.quantize.activations
    signed = activations.signed
    return Grid(
        quant_min=-128 if signed else 0,
        quant_max=127 if signed else 255,
        symmetric=activations.scheme == "symmetric",
        float16_scale=target.float_type == "float16",
    )


def estimators_for(calibrator: Calibrator, effort: Effort) -> tuple[Estimator, ...]:
    """Return the range estimators that compete for each tensor."""
    if calibrator != "auto":
        return (calibrator,)
    return ("minmax", "percentile") if effort == "quick" else ESTIMATORS


def build_plan(
    module: ConvNeXt,
    statistics: Statistics,
    target: Target,
    *,
    calibrator: Calibrator = "auto",
    effort: Effort = "default",
) -> QuantPlan:
    """Choose a grid for every activation and weight that the target's placement quantises.

    Each activation gets the estimator with the least error on held-out calibration images.
    Raises QuantizationError when the statistics lack a tensor that the placement names.
    """
    grid = activation_grid(target)
    estimators = estimators_for(calibrator, effort)
    steps = max(SEARCH_STEPS[effort], 40)
    activations: dict[str, ActivationPlan] = {}
    weights: dict[str, QParams] = {}
    for layer, operator in weighted_layers(module).items():
        if operator in target.quantize.operators:
            name = f"{layer}:input"
            activations[name] = _plan_activation(name, statistics, grid, estimators, steps)
            weights[layer] = weight_grid(
                weight_of(module, layer),
                target.quantize.weights.range_bits,
                float16_scale=grid.float16_scale,
                search=effort != "quick",
            )
        if operator in target.quantize.outputs:
            name = f"{layer}:output"
            activations[name] = _plan_activation(name, statistics, grid, estimators, steps)
    return QuantPlan(activations, weights)


def _plan_activation(
    name: str, statistics: Statistics, grid: Grid, estimators: tuple[Estimator, ...], steps: int
) -> ActivationPlan:
    tensor = statistics.tensors.get(name)
    if tensor is None:
        raise QuantizationError(
            f"The calibration statistics hold nothing about {name}, which the target quantises. They were gathered for another "
            "model or placement; run without --from, so that they are gathered again."
        )
    choice = choose_range(tensor.fit, tensor.held_out, grid, estimators, steps)
    qparams = QParams(
        torch.tensor(choice.scale, dtype=torch.float32),
        torch.tensor(choice.zero_point, dtype=torch.int32),
        grid.quant_min,
        grid.quant_max,
    )
    return ActivationPlan(
        name,
        qparams,
        choice.estimator,
        choice.mse,
        tensor.held_out.mean_square(),
        {str(name): mse for name, mse in choice.candidates.items()},
    )
