"""The roadmap as one SVG: for each step its published top-1, its multiply-adds, and its latency in FP32 and INT8."""

from __future__ import annotations

from edgeconvnext.axis import Axis
from edgeconvnext.escape import for_html
from edgeconvnext.schema.roadmap import Roadmap, RoadmapStep

ROW, TOP, BOTTOM, LABELS, PANEL, GAP = 26, 58, 40, 190, 210, 40
FP32, INT8, GREY, GRID = "#1f77b4", "#d62728", "#555555", "#dddddd"


def render_roadmap_svg(roadmap: Roadmap) -> str:
    """Return the plot, on a white ground, for pages that show it as an image."""
    steps = roadmap.steps
    height, width = TOP + ROW * len(steps) + BOTTOM, LABELS + 3 * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{for_html(f'From ResNet-50 to ConvNeXt-T on {roadmap.target}')}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, step in enumerate(steps):
        parts.append(_text(LABELS - 14, _y(index) + 4, step.name, "end"))
    parts += _top1_panel(steps, LABELS, height)
    parts += _macs_panel(steps, LABELS + PANEL + GAP, height)
    parts += _latency_panel(roadmap, LABELS + 2 * (PANEL + GAP), height)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _top1_panel(steps: list[RoadmapStep], left: int, height: int) -> list[str]:
    known = [step.published_top1 for step in steps if step.published_top1 is not None]
    parts = [_text(left, 22, "top-1 in the paper, %")]
    if not known:
        return parts
    axis = Axis(min(known) - 0.5, max(known) + 0.5, left, left + PANEL)
    parts += _grid(axis, height, 4)
    for index, step in enumerate(steps):
        if step.published_top1 is not None:
            parts.append(
                _dot(axis.at(step.published_top1), _y(index), GREY, f"{step.name}: {step.published_top1:.2f} %")
            )
    return parts


def _macs_panel(steps: list[RoadmapStep], left: int, height: int) -> list[str]:
    axis = Axis(0.0, max(max(step.macs / 1e9, step.published_gflops) for step in steps), left, left + PANEL)
    parts = [_text(left, 22, "multiply-adds at 224, billions"), _text(left, 38, "bar: counted, line: printed", size=10)]
    parts += _grid(axis, height, 4)
    for index, step in enumerate(steps):
        length, printed, y = axis.at(step.macs / 1e9) - left, axis.at(step.published_gflops), _y(index)
        what = f"{step.name}: {step.macs / 1e9:.3f} counted, {step.published_gflops:.2f} printed"
        parts.append(
            f'<rect x="{left}" y="{y - 7}" width="{length:.1f}" height="14" fill="{GREY}" fill-opacity="0.5">'
            f"<title>{for_html(what)}</title></rect>"
        )
        parts.append(f'<line x1="{printed}" x2="{printed}" y1="{y - 9}" y2="{y + 9}" stroke="black"/>')
    return parts


def _latency_panel(roadmap: Roadmap, left: int, height: int) -> list[str]:
    steps = roadmap.steps
    parts = [_text(left, 22, f"latency in {roadmap.runtime}, ms")]
    times = [t for step in steps for t in (step.latency_fp32_ms, step.latency_int8_ms) if t is not None]
    if not times:
        return [*parts, _text(left, TOP + 8, "not measured")]
    axis = Axis(0.0, 1.05 * max(times), left, left + PANEL)
    parts += [_text(left, 38, "FP32", fill=FP32, size=10), _text(left + 34, 38, "INT8", fill=INT8, size=10)]
    parts += _grid(axis, height, 4)
    for index, step in enumerate(steps):
        y, fp32, int8 = _y(index), step.latency_fp32_ms, step.latency_int8_ms
        if fp32 is not None and int8 is not None:
            parts.append(
                f'<line x1="{axis.at(fp32)}" x2="{axis.at(int8)}" y1="{y}" y2="{y}" stroke="{GREY}" stroke-width="2"/>'
            )
        for kind, time, colour in (("FP32", fp32, FP32), ("INT8", int8, INT8)):
            if time is not None:
                parts.append(_dot(axis.at(time), y, colour, f"{step.name}, {kind}: {time:.2f} ms"))
    return parts


def _y(index: int) -> int:
    return TOP + ROW * index + ROW // 2


def _grid(axis: Axis, height: int, count: int) -> list[str]:
    parts = []
    for tick in axis.ticks(count):
        parts.append(f'<line x1="{tick.at}" x2="{tick.at}" y1="{TOP - 4}" y2="{height - BOTTOM}" stroke="{GRID}"/>')
        parts.append(_text(tick.at, height - BOTTOM + 16, tick.label, "middle"))
    return parts


def _dot(x: float, y: float, colour: str, what: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"><title>{for_html(what)}</title></circle>'


def _text(x: float, y: float, text: str, anchor: str = "start", fill: str = "black", size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}" font-size="{size}">{for_html(text)}</text>'
