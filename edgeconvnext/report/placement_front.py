"""Every placement that a search measured, as an SVG: speed-up over FP32 and divergence from it, the front as a line."""

from __future__ import annotations

import math

from edgeconvnext.axis import Axis
from edgeconvnext.escape import for_html
from edgeconvnext.schema.placement import PlacementFound, front

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 440, 80, 24, 60, 60
TRIED, START, BEST, GRID = "#8a8a8a", "#1f77b4", "#d62728", "#dddddd"


def render_front_svg(found: PlacementFound) -> str:
    """Return the plot, on a white ground, for pages that show it as an image."""
    points = [trial.measured for trial in found.trials] + [found.start, found.best]
    speeds, losses = [p.speedup.value for p in points], [p.sqnr_db for p in points if math.isfinite(p.sqnr_db)]
    x = Axis(min(*speeds, 1.0) - 0.02, max(speeds) + 0.02, LEFT, WIDTH - RIGHT)
    y = Axis(min(losses) - 1, max(losses) + 1, HEIGHT - BOTTOM, TOP)
    title = f"Placements of {found.model} for {found.target}: {found.runtime}, {found.threads} threads"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{for_html(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 22, title),
        _text(LEFT, 42, f"{found.device}; line: what no other placement beats in both"),
        _text((LEFT + WIDTH) / 2, HEIGHT - 16, "speed-up over the best float form", "middle"),
        f'<text transform="translate(20 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        "logit SQNR on held-out images, dB</text>",
    ]
    for tick in x.ticks(6):
        parts.append(f'<line x1="{tick.at}" x2="{tick.at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="{GRID}"/>')
        parts.append(_text(tick.at, HEIGHT - BOTTOM + 18, tick.label, "middle"))
    for tick in y.ticks(6):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{tick.at}" y2="{tick.at}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 8, tick.at + 4, tick.label, "end"))
    best_of_both = [(x.at(point.speedup.value), y.at(point.sqnr_db)) for _, point in front(found)]
    line = " ".join(f"{left},{top}" for left, top in best_of_both)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{TRIED}" stroke-width="1.5"/>')
    for trial in found.trials:
        what = f"{trial.move}: {trial.measured.label}"
        parts.append(_dot(x.at(trial.measured.speedup.value), y.at(trial.measured.sqnr_db), TRIED, 4, what))
    for name, point, colour in (("the target's own", found.start, START), ("best", found.best, BEST)):
        left, top = x.at(point.speedup.value), y.at(point.sqnr_db)
        parts.append(_dot(left, top, colour, 6, f"{name}: {point.label}"))
        parts.append(_text(left + 9, top + (14 if colour == START else -6), name, fill=colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _dot(x: float, y: float, colour: str, radius: int, what: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{colour}"><title>{for_html(what)}</title></circle>'


def _text(x: float, y: float, text: str, anchor: str = "start", fill: str = "black") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}">{for_html(text)}</text>'
