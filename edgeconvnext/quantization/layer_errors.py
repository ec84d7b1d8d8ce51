"""One record for each quantised layer: what its input looks like and what the chosen grid does to it."""

from __future__ import annotations

from collections import Counter

import torch

from edgeconvnext.model.layers import weight_of, weighted_layers
from edgeconvnext.model.network import Network
from edgeconvnext.quantization.plan import QuantPlan
from edgeconvnext.quantization.statistics import Statistics
from edgeconvnext.rewrite.channel_scaling import absorbed
from edgeconvnext.schema.report import LayerError
from edgeconvnext.sqnr import power_ratio_db
from edgeconvnext.targets import Target

HISTOGRAM_BINS = 64


def scheme(plan: QuantPlan, target: Target, macs: dict[str, int]) -> str:
    """Say what is quantised how: the bits most multiply-adds have, the exceptions, and the type of the rest."""
    rest = "32" if target.float_type == "float32" else "16"
    shares: Counter[str] = Counter()
    layers: Counter[str] = Counter()
    for layer, weight in plan.weights.items():
        source = plan.activations.get(f"{layer}:input")
        name = f"W{weight.bits}A{rest if source is None else source.qparams.bits}"
        shares[name] += macs[layer]
        layers[name] += 1
    if not shares:
        return f"nothing quantised, all {target.float_type}"
    (most, _), *others = shares.most_common()
    text = most + "".join(f" and {name} ({layers[name]} of {len(plan.weights)} layers)" for name, _ in others)
    eight_bits = any(weight.bits == 8 for weight in plan.weights.values())
    return (
        text
        + (f", {target.quantize.activations.scheme} activations" if plan.activations else "")
        + (", palettised weights" if any(weight.levels is not None for weight in plan.weights.values()) else "")
        + (", 7-bit weight range" if target.quantize.weights.range_bits == 7 and eight_bits else "")
        + f", rest {target.float_type}"
    )


def layer_errors(folded: Network, module: Network, plan: QuantPlan, statistics: Statistics) -> list[LayerError]:
    """Describe every quantised activation of the plan, in forward order, on the held-out calibration images.

    folded: the float network; module: the same with scalings and codes in place.
    """
    operators = weighted_layers(module)
    records = []
    for name, activation in plan.activations.items():
        layer, _, side = name.partition(":")
        held_out = statistics.tensors[name].held_out
        low, high = activation.qparams.range()
        weight = plan.weights.get(layer) if side == "input" else None
        decision = plan.decisions.get(layer) if side == "input" else None
        records.append(
            LayerError(
                layer=layer if side == "input" else name,
                operator=operators[layer],
                estimator=activation.estimator,
                sqnr_db=activation.sqnr_db,
                low=low,
                high=high,
                scale=float(activation.qparams.scale),
                zero_point=int(activation.qparams.zero_point),
                bits=activation.qparams.bits,
                observed_low=held_out.low,
                observed_high=held_out.high,
                saturated=held_out.share_outside(low, high),
                candidates=activation.candidates,
                histogram=[float(share) for share in held_out.rebinned(HISTOGRAM_BINS)],
                weight_bits=None if weight is None else weight.bits,
                weight_sqnr_db=None if weight is None else rounded_weight_sqnr_db(folded, module, plan, layer),
                smoothing=None if decision is None else decision.scaling.name,
                rounding=None if decision is None else decision.rounding,
                block_sqnr_db=None if decision is None else decision.block_sqnr_db,
                plain_sqnr_db=None if decision is None else decision.plain_sqnr_db,
            )
        )
    return records


def rounded_weight_sqnr_db(folded: Network, module: Network, plan: QuantPlan, layer: str) -> float:
    """SQNR of a layer's weights, rounded in `module`, against its float ones in `folded`, behind the same scaling."""
    exact = scaled_weight(folded, plan, layer)
    error = (weight_of(module, layer) - exact).square().sum()
    return power_ratio_db(float(exact.square().sum()), float(error))


def scaled_weight(folded: Network, plan: QuantPlan, layer: str) -> torch.Tensor:
    """Return a layer's float weight for the inputs that its scaling makes, (out, in, ...), float64."""
    decision = plan.decisions.get(layer)
    return (
        weight_of(folded, layer).double()
        if decision is None
        else absorbed(folded.get_submodule(layer), decision.scaling)[0]
    )
