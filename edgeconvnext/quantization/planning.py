"""From statistics and a target to a plan: which tensors are quantised, each with which scale and zero point."""

from __future__ import annotations

import torch

from edgeconvnext.choices import Calibrator, Effort
from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.layers import weight_of, weighted_layers
from edgeconvnext.model.network import Network
from edgeconvnext.quantization.plan import ActivationPlan, QParams, QuantPlan
from edgeconvnext.quantization.precision import BitPlan, Precision, resolve_precision
from edgeconvnext.quantization.ranges import ESTIMATORS, CodeRange, Estimator, choose_range
from edgeconvnext.quantization.statistics import Statistics
from edgeconvnext.quantization.weights import palette_qparams, weight_qparams
from edgeconvnext.targets import Target

# Candidates of each line search over clipping ranges; quick skips the searches.
SEARCH_STEPS: dict[Effort, int] = {"quick": 0, "default": 80, "best": 240}


def activation_code_range(target: Target, bits: int = 8) -> CodeRange:
    """Return the integer codes that the target's activations use, at `bits` bits."""
    activations = target.quantize.activations
    half = 2 ** (bits - 1)
    return CodeRange(
        quant_min=-half if activations.signed else 0,
        quant_max=half - 1 if activations.signed else 2 * half - 1,
        symmetric=activations.scheme == "symmetric",
        float16_scale=target.float_type == "float16",
    )


def weight_limit(target: Target, bits: int) -> int:
    """Return the largest code of a weight at `bits` bits: 127, 64 where the target limits 8-bit weights to 7, or 7."""
    if bits == 4:
        return 7
    return 127 if target.quantize.weights.range_bits == 8 else 64


def palette_of(target: Target, precision: Precision) -> int | None:
    """Return the bits of an index into a layer's palette, or None where its weights take every code."""
    return target.quantize.weights.palette_bits if precision.weights == 8 else None


def estimators_for(calibrator: Calibrator, effort: Effort) -> tuple[Estimator, ...]:
    """Return the range estimators that compete for each tensor."""
    if calibrator != "auto":
        return (calibrator,)
    return ("minmax", "percentile") if effort == "quick" else ESTIMATORS


def build_plan(
    module: Network,
    statistics: Statistics,
    target: Target,
    *,
    calibrator: Calibrator = "auto",
    effort: Effort = "default",
    bits: BitPlan | None = None,
) -> QuantPlan:
    """Choose qparams for every activation and weight that the target's placement quantises, each tensor by itself.

    Each activation gets the estimator with the least error on held-out calibration images; weights keep their values and are
    rounded to the nearest code. `reconstruct` is the method that looks at what the layers compute.
    Raises QuantizationError when the statistics lack a tensor that the placement names.
    """
    precisions = resolve_precision(module, target, bits or BitPlan())
    estimators = estimators_for(calibrator, effort)
    steps = max(SEARCH_STEPS[effort], 40)
    activations: dict[str, ActivationPlan] = {}
    weights: dict[str, QParams] = {}
    for layer, operator in weighted_layers(module).items():
        precision = precisions.get(layer)
        if precision is not None and precision.activations is not None:
            name, code_range = f"{layer}:input", activation_code_range(target, precision.activations)
            activations[name] = plan_activation(name, statistics, code_range, estimators, steps)
        if precision is not None:
            weight, float16 = weight_of(module, layer), target.float_type == "float16"
            palette_bits = palette_of(target, precision)
            if palette_bits is not None:
                weights[layer] = palette_qparams(weight, palette_bits, float16_scale=float16)
            else:
                limit = weight_limit(target, precision.weights)
                weights[layer] = weight_qparams(weight, limit, float16_scale=float16, search=effort != "quick")
        if target.quantize.takes_output(layer, operator):
            name = f"{layer}:output"
            activations[name] = plan_activation(name, statistics, activation_code_range(target), estimators, steps)
    return QuantPlan(activations, weights)


def plan_activation(
    name: str, statistics: Statistics, code_range: CodeRange, estimators: tuple[Estimator, ...], steps: int
) -> ActivationPlan:
    """Choose the qparams of one activation tensor on its histograms."""
    tensor = statistics.tensors.get(name)
    if tensor is None:
        raise QuantizationError(
            f"The calibration statistics hold nothing about {name}, which the target quantises. They were gathered for another "
            "model or placement; run without --from, so that they are gathered again."
        )
    choice = choose_range(tensor.fit, tensor.held_out, code_range, estimators, steps)
    qparams = QParams(
        torch.tensor(choice.scale, dtype=torch.float32),
        torch.tensor(choice.zero_point, dtype=torch.int32),
        code_range.quant_min,
        code_range.quant_max,
    )
    return ActivationPlan(
        name,
        qparams,
        choice.estimator,
        choice.mse,
        tensor.held_out.mean_square(),
        {str(name): mse for name, mse in choice.candidates.items()},
    )
