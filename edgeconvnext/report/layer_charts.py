"""Geometry of the plots that show each quantised layer: SQNR in forward order, and histograms with the chosen range."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from edgeconvnext.axis import Axis, Tick
from edgeconvnext.schema import format
from edgeconvnext.schema.report import LayerError

MARKERS = {
    "stem": "M{x} {y}m-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "depthwise": "M{x} {y}m-4.5 -4.5h9v9h-9z",
    "pointwise1": "M{x} {y}m0 -5.5l5.5 10h-11z",
    "pointwise2": "M{x} {y}m0 5.5l5.5 -10h-11z",
    "downsample": "M{x} {y}m0 -6l6 6l-6 6l-6 -6z",
    "conv": "M{x} {y}m-5 -2.5h10v5h-10z",
    "projection": "M{x} {y}m-2.5 -5h5v10h-5z",
    "head": "M{x} {y}m-2 -5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
}
"""Outline of each operator's mark, so that colour is never the only cue."""


def marker(operator: str, x: float, y: float) -> str:
    """Return the SVG path of an operator's mark centred on (x, y)."""
    return MARKERS.get(operator, MARKERS["stem"]).format(x=x, y=y)


@dataclass(frozen=True)
class LayerPoint:
    """One layer's input SQNR, and its weights' as a dash. title: what a pointer over it shows."""

    operator: str
    path: str
    title: str
    x: float
    weight_y: float | None


@dataclass(frozen=True)
class LayerChart:
    width: int
    height: int
    left: float
    bottom: float
    y_ticks: list[Tick]
    stages: list[Tick]
    separators: list[float]
    points: list[LayerPoint]
    worst: Tick
    worst_y: float
    worst_anchor: str


def layer_chart(layers: Sequence[LayerError], width: int) -> LayerChart | None:
    """Lay out SQNR over the layers in forward order, with the stages marked; None where nothing was quantised."""
    if not layers:
        return None
    left, top, bottom = 44, 12, 250
    values = [layer.sqnr_db for layer in layers]
    values += [layer.weight_sqnr_db for layer in layers if layer.weight_sqnr_db is not None]
    span = max(values) - min(values) or 10.0
    # A fifth of the height below the lowest mark keeps room for the worst layer's name.
    y_axis = Axis(min(values) - 0.2 * span, max(values) + 0.08 * span, bottom, top)
    step = (width - left - 8) / len(layers)
    xs = [round(left + (index + 0.5) * step, 2) for index in range(len(layers))]
    points = [
        LayerPoint(
            layer.operator,
            marker(layer.operator, x, y_axis.at(layer.sqnr_db)),
            layer_sentence(layer),
            x,
            None if layer.weight_sqnr_db is None else y_axis.at(layer.weight_sqnr_db),
        )
        for x, layer in zip(xs, layers, strict=True)
    ]
    stages, separators = stage_marks([layer.layer for layer in layers], left, step)
    worst = min(range(len(layers)), key=lambda index: layers[index].sqnr_db)
    x = xs[worst]
    anchor = "start" if x < left + 0.25 * width else "end" if x > 0.75 * width else "middle"
    return LayerChart(
        width,
        300,
        left,
        bottom,
        y_axis.ticks(6),
        stages,
        separators,
        points,
        Tick(max(x - 6, left + 4) if anchor == "start" else x + 6 if anchor == "end" else x, layers[worst].layer),
        y_axis.at(layers[worst].sqnr_db) + 19,
        anchor,
    )


def layer_sentence(layer: LayerError) -> str:
    """Describe one layer's input in a sentence: the tool tip of a mark and the text alternative of a histogram."""
    return (
        f"{layer.layer} ({layer.operator}): {format.decibel(layer.sqnr_db)} with {layer.estimator}; values "
        f"{format.significant(layer.observed_low)} to {format.significant(layer.observed_high)}, grid "
        f"{format.significant(layer.low)} to {format.significant(layer.high)}, {format.share(layer.saturated)} outside"
    )


def stage_marks(layers: Sequence[str], left: float, step: float) -> tuple[list[Tick], list[float]]:
    """Return the stages' numbers at their middle, and the x between them. layers: names, `step` pixels apart from `left` on."""
    stages, separators, position = [], [], 0
    for stage, group in groupby(layers, key=_stage):
        end = position + len(list(group))
        if stage is not None:
            stages.append(Tick(round(left + (position + end) / 2 * step, 2), stage))
        if end < len(layers):
            separators.append(round(left + end * step, 2))
        position = end
    return stages, separators


def _stage(layer: str) -> str | None:
    found = re.match(r"(?:stages|downsample_layers)\.(\d+)\b", layer)
    return found.group(1) if found else None


@dataclass(frozen=True)
class HistogramChart:
    """Values of one layer's input on a logarithmic share axis, and the range its grid covers."""

    layer: LayerError
    sentence: str
    outline: str
    low: float
    high: float
    zero: float | None
    left: str
    right: str


HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT = 230, 72
_SMALLEST_SHARE = 1e-6


def histogram_chart(layer: LayerError) -> HistogramChart:
    """Lay out one histogram over everything observed and everything the grid can hold, whichever reaches further."""
    low, high = min(layer.observed_low, layer.low), max(layer.observed_high, layer.high)
    x_axis = Axis(low, high, 2, HISTOGRAM_WIDTH - 2)
    y_axis = Axis(math.log10(_SMALLEST_SHARE), 0.0, HISTOGRAM_HEIGHT, 2)
    bin_width = (layer.observed_high - layer.observed_low) / max(1, len(layer.histogram))
    outline = [f"M{x_axis.at(layer.observed_low):g} {HISTOGRAM_HEIGHT}"]
    for index, part in enumerate(layer.histogram):
        # A bin that holds anything stays visible: one lost outlier is what these plots are for.
        y = y_axis.at(math.log10(max(part, 2 * _SMALLEST_SHARE))) if part > 0 else HISTOGRAM_HEIGHT
        outline.append(f"V{y:.1f}H{x_axis.at(layer.observed_low + (index + 1) * bin_width):.1f}")
    return HistogramChart(
        layer,
        layer_sentence(layer),
        "".join([*outline, f"V{HISTOGRAM_HEIGHT}z"]),
        x_axis.at(layer.low),
        x_axis.at(layer.high),
        x_axis.at(0.0) if low <= 0 <= high else None,
        format.typographic(format.significant(low)),
        format.typographic(format.significant(high)),
    )
