"""One record for each quantised layer: what its input looks like and what the chosen grid does to it."""

from __future__ import annotations

from edgeconvnext.model.convnext import ConvNeXt
from edgeconvnext.model.layers import weight_of, weighted_layers
from edgeconvnext.quantize.plan import QuantPlan
from edgeconvnext.quantize.statistics import Statistics
from edgeconvnext.quantize.weights import weight_sqnr_db
from edgeconvnext.report.schema import LayerError

HISTOGRAM_BINS = 64


def layer_errors(module: ConvNeXt, plan: QuantPlan, statistics: Statistics) -> list[LayerError]:
    """Describe every quantised activation of the plan, in forward order, on the held-out calibration images."""
    operators = weighted_layers(module)
    records = []
    for name, activation in plan.activations.items():
        layer, _, side = name.partition(":")
        held_out = statistics.tensors[name].held_out
        low, high = activation.qparams.range()
        weight = plan.weights.get(layer) if side == "input" else None
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
                bits=(activation.qparams.quant_max - activation.qparams.quant_min + 1).bit_length() - 1,
                observed_low=held_out.low,
                observed_high=held_out.high,
                saturated=held_out.share_outside(low, high),
                candidates=activation.candidates,
                histogram=[float(share) for share in held_out.rebinned(HISTOGRAM_BINS)],
                weight_sqnr_db=None if weight is None else weight_sqnr_db(weight_of(module, layer), weight),
            )
        )
    return records
