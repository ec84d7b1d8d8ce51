"""Geometry of the plots of accuracy, latency and size; the template draws them as SVG, so that one style sheet colours
light, dark and paper."""

from __future__ import annotations

from dataclasses import dataclass

from edgeconvnext.axis import NARROW, Axis, Tick
from edgeconvnext.report.verdict import capitalized
from edgeconvnext.schema import format
from edgeconvnext.schema.report import Accuracy, Latency, LatencyComparison, Sizes

_EDGE = 14
"""Pixels left free on either side, so that the outermost tick's label is not cut."""


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
    title: str
    width: int
    height: int
    ticks: list[Tick]
    rows: list[WhiskerRow]


def accuracy_chart(accuracy: Accuracy, width: int) -> AccuracyChart | None:
    """Lay out the score of FP32, simulation and artifact with their 95 % intervals; None where no image was labelled."""
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
    low, high = min(s.low for *_, s in measured), max(s.high for *_, s in measured)
    margin = max(0.5, 0.1 * (high - low))
    axis = Axis(max(0.0, low - margin), min(100.0, high + margin), _EDGE, width - _EDGE)
    rows = [
        WhiskerRow(
            kind,
            name,
            f"{format.percent(s.value)} ({s.low:.2f} to {s.high:.2f})",
            34 + 44 * index,
            axis.at(s.value),
            axis.at(s.low),
            axis.at(s.high),
        )
        for index, (kind, name, s) in enumerate(measured)
    ]
    title = capitalized(accuracy.score or "top-1")
    return AccuracyChart(title, width, 44 * len(rows) + 34, axis.ticks(4 if width == NARROW else 8), rows)


@dataclass(frozen=True)
class LatencyRow:
    """Samples of one model: dots, the box of the middle half, the median; `beyond` tells of samples off the axis."""

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
    rows = [_latency_row(kind, name, times, axis, 50 + 84 * index) for index, (kind, name, times) in enumerate(timed)]
    return LatencyChart(width, 84 * len(rows) + 36, axis.ticks(4 if width == NARROW else 8), rows)


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
    known = [
        (kind, name, size)
        for kind, name, size in (("fp32", "FP32", sizes.fp32), ("artifact", "Artifact", sizes.artifact))
        if size
    ]
    if not known:
        return None
    axis = Axis(0.0, max(size for *_, size in known), 0, width)
    rows = [
        SizeRow(kind, name, f"{format.size(size)} ({format.count(size)} bytes)", 22 + 44 * index, axis.at(size))
        for index, (kind, name, size) in enumerate(known)
    ]
    return SizeChart(width, 44 * len(rows) + 8, rows)
