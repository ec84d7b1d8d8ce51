"""Numbers as people read them: units, sensible digits, ASCII only (`typographic` turns a text into print)."""

from __future__ import annotations

import math
import re


def significant(value: float, digits: int = 3) -> str:
    """Round to `digits` significant digits, never coarser than units: 0.412, 14.8, 139, 1,394."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if not -3 <= magnitude < 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def percent(value: float) -> str:
    return f"{value:.2f} %"


def share(value: float) -> str:
    """Format a share 0..1 as per cent: 0.9234 -> 92.3 %, 0.00012 -> 0.012 %."""
    per_cent = 100 * value
    return f"{per_cent:.1f} %" if per_cent >= 1 or per_cent == 0 else f"{significant(per_cent, 2)} %"


def points(value: float) -> str:
    """Format percentage points with their sign: +0.21, -0.05; a zero has none."""
    return f"{value:+.2f}" if round(value, 2) else "0.00"


def decibel(value: float) -> str:
    return f"{value:.1f} dB"


def ratio(value: float) -> str:
    return f"{value:.2f}x"


def milliseconds(value: float) -> str:
    return f"{significant(value)} ms"


def size(bytes_: int) -> str:
    """Format bytes in decimal units, as disks and downloads are sold: 812 kB, 14.9 MB."""
    for factor, unit in ((1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")):
        if bytes_ >= factor:
            return f"{significant(bytes_ / factor)} {unit}"
    return f"{bytes_} bytes"


def against_size(bytes_: int, other: int) -> str:
    """Compare a size with another one: 2.96x smaller, 3.93x larger, the same size."""
    if not min(bytes_, other) or bytes_ == other:
        return "the same size" if bytes_ == other else f"against {size(other)}"
    return f"{ratio(other / bytes_)} smaller" if bytes_ < other else f"{ratio(bytes_ / other)} larger"


def count(value: int) -> str:
    return f"{value:,}"


def shape(sides: tuple[int, ...]) -> str:
    """Format the shape of one image's output: 40x32x32."""
    return "x".join(map(str, sides))


def macs(value: int) -> str:
    """Format multiply-adds of one image: 4.46 GMACs, 89.1 MMACs."""
    return f"{significant(value / 1e9)} GMACs" if value >= 1e9 else f"{significant(value / 1e6)} MMACs"


def duration(seconds: float) -> str:
    """Format wall time: 0.42 s, 12.3 s, 4 min 05 s."""
    if seconds < 60:
        return f"{significant(seconds)} s" if seconds < 59.95 else "1 min 00 s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def error(value: float) -> str:
    """Format a relative error: 2.1e-07."""
    return f"{value:.1e}"


def typographic(text: str) -> str:
    """Turn a formatted figure into print: a real minus, a multiplication sign, units that never wrap."""
    text = re.sub(r"(^|[\s(e])-(?=\d)", "\\1\N{MINUS SIGN}", text)
    text = re.sub(r"(?<=\d)x\b", "\N{MULTIPLICATION SIGN}", text)
    return text.replace(" ", "\N{NO-BREAK SPACE}")
