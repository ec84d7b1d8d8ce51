"""The log of a training: one line for each epoch, as CSV, and its curves as SVG."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgeconvnext.axis import Axis
from edgeconvnext.escape import for_html
from edgeconvnext.evaluation.intervals import wilson

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
_WIDTH, _HEIGHT, _LEFT, _TOP, _PANEL, _LEGEND = 900, 260, 56, 36, 370, 18


@dataclass(frozen=True)
class EpochRow:
    """One epoch. epoch: from 1 on. size: side of the training images, pixels. learning_rate: of the head, in its last step.

    loss: mean over its steps, on augmented images. right, images: of the evaluation at its end; None without one.
    minutes: spent in training since its start, of the processor, all threads together, or of a GPU's wall time.
    """

    epoch: int
    steps: int
    size: int
    learning_rate: float
    loss: float
    minutes: float
    right: int | None = None
    images: int | None = None

    @property
    def top1(self) -> float | None:
        """Per cent; None without evaluation."""
        return None if self.right is None or not self.images else 100 * self.right / self.images

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % Wilson interval of top-1, per cent."""
        if self.right is None or not self.images:
            return None
        low, high = wilson(self.right, self.images)
        return 100 * low, 100 * high


@dataclass(frozen=True)
class Curve:
    """The log of one training under a name."""

    name: str
    rows: Sequence[EpochRow]


def log_csv(rows: Sequence[EpochRow]) -> str:
    """Write the log as CSV; what was not measured is empty."""
    text = io.StringIO()
    names = [field.name for field in fields(EpochRow)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "top1", "top1_low", "top1_high"])
    for row in rows:
        low, high = row.interval or (None, None)
        values: list[Any] = [*asdict(row).values(), row.top1, low, high]
        writer.writerow(
            ["" if value is None else f"{value:.6g}" if isinstance(value, float) else value for value in values]
        )
    return text.getvalue()


def curves_svg(title: str, curves: Sequence[Curve]) -> str:
    """Draw loss and top-1 over the epochs, one line a training, on a white ground."""
    height = _TOP + _HEIGHT + 40 + (_LEGEND * len(curves) if len(curves) > 1 else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{for_html(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    losses = [[(row.epoch, row.loss) for row in curve.rows] for curve in curves]
    top1s = [[(row.epoch, row.top1) for row in curve.rows if row.top1 is not None] for curve in curves]
    parts += _panel("training loss", losses, _LEFT)
    parts += _panel("top-1 of the evaluation, %", top1s, _LEFT + _PANEL + 70)
    if len(curves) > 1:
        for index, curve in enumerate(curves):
            y = _TOP + _HEIGHT + 40 + _LEGEND * index
            parts.append(f'<rect x="{_LEFT}" y="{y}" width="14" height="4" fill="{_COLOURS[index % len(_COLOURS)]}"/>')
            parts.append(_text(_LEFT + 22, y + 6, curve.name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(name: str, lines: Sequence[Sequence[tuple[int, float]]], left: int) -> list[str]:
    parts = [_text(left, 20, name, "start")]
    points = [point for line in lines for point in line]
    if not points:
        return [*parts, _text(left, _TOP + 16, "not measured", "start")]
    bottom = _TOP + _HEIGHT
    values = [value for _, value in points]
    margin = 0.05 * (max(values) - min(values)) or 0.5
    x = Axis(0, max(epoch for epoch, _ in points), left, left + _PANEL)
    y = Axis(min(values) - margin, max(values) + margin, bottom, _TOP)
    for tick in y.ticks(5):
        parts.append(f'<path d="M{left} {tick.at}H{left + _PANEL}" stroke="#dddddd"/>')
        parts.append(_text(left - 6, tick.at + 4, tick.label, "end"))
    parts += [_text(tick.at, bottom + 18, tick.label, "middle") for tick in x.ticks(6)]
    parts.append(_text(left + _PANEL, bottom + 32, "epoch", "end"))
    for index, line in enumerate(lines):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{x.at(epoch)},{y.at(value)}" for epoch, value in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(line) == 1:
            parts.append(f'<circle cx="{x.at(line[0][0])}" cy="{y.at(line[0][1])}" r="3" fill="{colour}"/>')
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{for_html(text)}</text>'
