"""Geometry of the report's plots; the template draws them as SVG, so that one style sheet colours light, dark and paper.

Every chart is computed for a width in CSS pixels and drawn at that size: a phone gets its own narrow chart with letters of
the normal size instead of a scaled-down one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from edgeconvnext.report import format
from edgeconvnext.report.schema import Accuracy, Latency, LatencyComparison, LayerError, Sizes

WIDE, NARROW = 720, 320
_EDGE = 14


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: pixels from the chart's left or top, and its text."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low`..`high` to pixels `start`..`end` (start may be larger: y grows downwards)."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 2)

    def ticks(self, count: int) -> list[Tick]:
        """Return about `count` ticks at 1, 2 or 5 times a power of ten."""
        rough = ((self.high - self.low) or 1.0) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [
            Tick(self.at(index * step), f"{index * step + 0.0:,.{decimals}f}".replace("-", "\N{MINUS SIGN}"))
            for index in range(first, last + 1)
        ]


@dataclass(frozen=True)
class WhiskerRow:
    """One accuracy with its interval, as x positions."""

    kind: str
    name: str
    text: str
    y: float
    x: float
    low: float
    high: float


@dataclass(frozen=True)
class AccuracyChart:
    width: int
    height: int
    ticks: list[Tick]
    rows: list[WhiskerRow]


def accuracy_chart(accuracy: Accuracy, width: int) -> AccuracyChart | None:
    """Lay out top-1 of FP32, simulation and artifact with their 95 % intervals; None where no image was labelled."""
    measured = [
        (kind, name, scores)
        for kind, name, scores in (
            ("fp32", "FP32", accuracy.fp32),
            ("simulated", "Simulation", accuracy.simulated),
            ("artifact", "Artifact", accuracy.artifact),
        )
        if scores is not None
    ]
    if not measured:
        return None
    low, high = min(s.top1_low for *_, s in measured), max(s.top1_high for *_, s in measured)
    margin = max(0.5, 0.1 * (high - low))
    axis = Axis(max(0.0, low - margin), min(100.0, high + margin), _EDGE, width - _EDGE)
    rows = [
        WhiskerRow(
            kind,
            name,
            f"{format.percent(s.top1)} ({s.top1_low:.2f} to {s.top1_high:.2f})",
            34 + 44 * index,
            axis.at(s.top1),
            axis.at(s.top1_low),
            axis.at(s.top1_high),
        )
        for index, (kind, name, s) in enumerate(measured)
    ]
    return AccuracyChart(width, 44 * len(rows) + 34, axis.ticks(4 if width == NARROW else 8), rows)


@dataclass(frozen=True)
class LatencyRow:
    """Samples of one model: dots, the box of the middle half, the median; `beyond` tells of samples right of the axis."""

    kind: str
    name: str
    text: str
    y: float
    dots: list[tuple[float, float]]
    box: tuple[float, float]
    box_is: str
    median: float
    beyond: str | None


@dataclass(frozen=True)
class LatencyChart:
    width: int
    height: int
    ticks: list[Tick]
    rows: list[LatencyRow]


def latency_chart(latency: LatencyComparison, width: int) -> LatencyChart | None:
    """Lay out the samples of FP32 and artifact over one axis from 0 ms; None where nothing was timed."""
    timed = [
        (kind, name, times)
        for kind, name, times in (("fp32", "FP32", latency.fp32), ("artifact", "Artifact", latency.artifact))
        if times is not None
    ]
    if not timed:
        return None
    # The slowest few runs say what else the machine did: they are counted at the edge instead of squeezing the rest.
    axis = Axis(0.0, 1.1 * max(times.p99_ms for *_, times in timed), _EDGE, width - _EDGE)
    rows = [_latency_row(kind, name, times, axis, 50 + 74 * index) for index, (kind, name, times) in enumerate(timed)]
    return LatencyChart(width, 74 * len(rows) + 40, axis.ticks(4 if width == NARROW else 8), rows)


def _latency_row(kind: str, name: str, times: Latency, axis: Axis, y: float) -> LatencyRow:
    samples = sorted(times.samples_ms)
    inside = [sample for sample in samples if sample <= axis.high]
    # The golden ratio spreads neighbours over the strip without the clumps of random jitter, the same way every time.
    dots = [(axis.at(sample), round(y + 30 * (index * 0.618034 % 1.0) - 15, 2)) for index, sample in enumerate(inside)]
    middle = (samples[len(samples) // 4], samples[3 * len(samples) // 4]) if samples else (times.min_ms, times.p90_ms)
    beyond = len(samples) - len(inside)
    return LatencyRow(
        kind,
        name,
        f"median {format.milliseconds(times.median_ms)}, p99 {format.milliseconds(times.p99_ms)}",
        y,
        dots,
        (axis.at(middle[0]), axis.at(middle[1])),
        "middle half of the samples" if samples else "minimum to p90",
        axis.at(times.median_ms),
        f"{beyond} slower, to {format.milliseconds(samples[-1])}" if beyond else None,
    )


@dataclass(frozen=True)
class SizeRow:
    kind: str
    name: str
    text: str
    y: float
    length: float


@dataclass(frozen=True)
class SizeChart:
    width: int
    height: int
    rows: list[SizeRow]


def size_chart(sizes: Sizes, width: int) -> SizeChart | None:
    """Lay out the bytes on disk as bars from zero; None where no artifact was written."""
    known = [(kind, name, size) for kind, name, size in (("fp32", "FP32", sizes.fp32), ("artifact", "Artifact", sizes.artifact)) if size]
    if not known:
        return None
    axis = Axis(0.0, max(size for *_, size in known), 0, width)
    rows = [
        SizeRow(kind, name, f"{format.size(size)} ({format.count(size)} bytes)", 22 + 44 * index, axis.at(size))
        for index, (kind, name, size) in enumerate(known)
    ]
    return SizeChart(width, 44 * len(rows) + 8, rows)


MARKERS = {
    "stem": "M{x} {y}m-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "depthwise": "M{x} {y}m-4.5 -4.5h9v9h-9z",
    "pointwise1": "M{x} {y}m0 -5.5l5.5 10h-11z",
    "pointwise2": "M{x} {y}m0 5.5l5.5 -10h-11z",
    "downsample": "M{x} {y}m0 -6l6 6l-6 6l-6 -6z",
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
    stages, separators, position = [], [], 0
    for stage, group in groupby(layers, key=_stage):
        end = position + len(list(group))
        if stage is not None:
            stages.append(Tick(round(left + (position + end) / 2 * step, 2), stage))
        if end < len(layers):
            separators.append(round(left + end * step, 2))
        position = end
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


def _stage(layer: LayerError) -> str | None:
    found = re.match(r"(?:stages|downsample_layers)\.(\d+)\b", layer.layer)
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
