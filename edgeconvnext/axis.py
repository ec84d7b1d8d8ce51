"""Linear axes of plots, in CSS pixels.

Every plot is laid out for a width and drawn at that size: a phone gets its own narrow plot with letters of the normal
size instead of a scaled-down one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDE, NARROW = 960, 320


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
