"""Geometry of an analysis' plots: what each layer costs in forward order, and a tensor's values before and after rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeconvnext.axis import Axis, Tick
from edgeconvnext.report.layer_charts import (
    HISTOGRAM_WIDTH,
    HistogramChart,
    histogram_chart,
    marker,
    stage_marks,
)
from edgeconvnext.schema import format
from edgeconvnext.schema.analysis import LayerAnalysis, TensorAnalysis
from edgeconvnext.schema.report import LayerError

CODES_HEIGHT = 44
SMALLEST_KL = 1e-9
"""Nats; what is below is drawn there: float32 sums cannot tell it from nothing."""

_SMALLEST_SHARE = 1e-6


@dataclass(frozen=True)
class CostPoint:
    """One layer's cost alone. title: what a pointer over it shows."""

    operator: str
    path: str
    title: str


@dataclass(frozen=True)
class CostChart:
    """KL divergence on a logarithmic axis over the layers: marks alone, a line with all layers up to this one."""

    width: int
    height: int
    left: float
    bottom: float
    y_ticks: list[Tick]
    stages: list[Tick]
    separators: list[float]
    points: list[CostPoint]
    line: str
    worst: Tick
    worst_y: float
    worst_anchor: str


def cost_chart(layers: Sequence[LayerAnalysis], width: int) -> CostChart | None:
    """Lay out what each layer costs alone and with all before it; None where nothing was measured."""
    measured = [
        (layer, max(layer.kl_alone, SMALLEST_KL), max(layer.kl_cumulative, SMALLEST_KL))
        for layer in layers
        if layer.kl_alone is not None and layer.kl_cumulative is not None
    ]
    if not measured:
        return None
    left, top, bottom = 52, 26, 250
    values = [value for _, *pair in measured for value in pair]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    axis = Axis(low, high, bottom, top)
    step = (width - left - 8) / len(measured)
    xs = [round(left + (index + 0.5) * step, 2) for index in range(len(measured))]
    points = [
        CostPoint(layer.operator, marker(layer.operator, x, axis.at(math.log10(alone))), cost_sentence(layer))
        for x, (layer, alone, _) in zip(xs, measured, strict=True)
    ]
    heights = [axis.at(math.log10(cumulative)) for *_, cumulative in measured]
    stages, separators = stage_marks([layer.layer for layer, *_ in measured], left, step)
    worst = max(range(len(measured)), key=lambda index: measured[index][1])
    x = xs[worst]
    anchor = "start" if x < left + 0.25 * width else "end" if x > 0.75 * width else "middle"
    return CostChart(
        width,
        300,
        left,
        bottom,
        [Tick(axis.at(power), _power(power)) for power in range(low, high + 1, 1 if high - low <= 6 else 2)],
        stages,
        separators,
        points,
        "M" + "L".join(f"{x} {y}" for x, y in zip(xs, heights, strict=True)),
        Tick(x, measured[worst][0].layer),
        axis.at(math.log10(measured[worst][1])) - 11,
        anchor,
    )


def cost_sentence(layer: LayerAnalysis) -> str:
    """Describe what one layer costs, for the tool tip of its mark."""
    if layer.kl_alone is None or layer.kl_cumulative is None:
        return f"{layer.layer} ({layer.operator}): not quantised"
    return (
        f"{layer.layer} ({layer.operator}): {format.significant(layer.kl_alone)} nats alone, "
        f"{format.significant(layer.kl_cumulative)} with all layers before it, {format.share(layer.macs_share)} of MACs"
    )


@dataclass(frozen=True)
class TensorChart:
    """One tensor before and after quantization, over the same axis."""

    tensor: TensorAnalysis
    before: HistogramChart
    codes: str


def tensor_chart(layer: LayerAnalysis, tensor: TensorAnalysis) -> TensorChart:
    """Lay out a tensor's values and the codes they get, on logarithmic share axes."""
    before = histogram_chart(layer_error(layer, tensor))
    axis = Axis(tensor.low, tensor.high, before.low, before.high)
    shares = Axis(math.log10(_SMALLEST_SHARE), 0.0, CODES_HEIGHT, 2)
    step = (tensor.high - tensor.low) / max(1, len(tensor.codes))
    outline = [f"M{axis.at(tensor.low):g} {CODES_HEIGHT}"]
    for index, part in enumerate(tensor.codes):
        # A group that holds anything stays visible, as in the histogram of values.
        y = shares.at(math.log10(max(part, 2 * _SMALLEST_SHARE))) if part > 0 else CODES_HEIGHT
        outline.append(f"V{y:.1f}H{min(axis.at(tensor.low + (index + 1) * step), HISTOGRAM_WIDTH):.1f}")
    return TensorChart(tensor, before, "".join([*outline, f"V{CODES_HEIGHT}z"]))


def layer_error(layer: LayerAnalysis, tensor: TensorAnalysis) -> LayerError:
    """Return a tensor as the record that the report's plots take."""
    weights = layer.weights if tensor is layer.input else None
    return LayerError(
        layer=layer.layer if tensor is layer.input else tensor.name,
        operator=layer.operator,
        estimator=tensor.estimator,
        sqnr_db=tensor.sqnr_db,
        low=tensor.low,
        high=tensor.high,
        scale=tensor.scale,
        zero_point=tensor.zero_point,
        bits=tensor.bits,
        observed_low=tensor.observed_low,
        observed_high=tensor.observed_high,
        saturated=tensor.saturated,
        histogram=tensor.histogram,
        weight_bits=None if weights is None else weights.bits,
        weight_sqnr_db=None if weights is None else weights.sqnr_db,
    )


def _power(exponent: int) -> str:
    """Write a power of ten: 10⁻³, and 1 and 10 as they are."""
    if exponent in (0, 1):
        return str(10**exponent)
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
