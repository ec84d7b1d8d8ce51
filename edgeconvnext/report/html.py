"""report.html: one self-contained page without scripts; it reads on a phone, in the dark and on paper."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgeconvnext.axis import NARROW, WIDE
from edgeconvnext.escape import for_html
from edgeconvnext.report.changes_terminal import change_facts
from edgeconvnext.report.charts import accuracy_chart, latency_chart, size_chart
from edgeconvnext.report.device import device_facts
from edgeconvnext.report.layer_charts import (
    HISTOGRAM_HEIGHT,
    HISTOGRAM_WIDTH,
    MARKERS,
    histogram_chart,
    layer_chart,
    marker,
)
from edgeconvnext.report.sizes import SIZE_COLUMNS, size_row
from edgeconvnext.report.verdict import (
    answer_facts,
    capitalized,
    gate_text,
    missing_results,
    place,
    reason,
    verdict,
    worst_output,
)
from edgeconvnext.report.visible import visible
from edgeconvnext.schema import format
from edgeconvnext.schema.report import Accuracy, ClassChange, Flip, LayerError, Report

WORST_LAYERS = 8
SHOWN_FLIPS = 48
SHOWN_CLASSES = 200

_THUMBNAIL = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}\Z")


@dataclass(frozen=True)
class Tile:
    """One summary figure. value None: not measured, and `detail` says why."""

    title: str
    value: str | None
    detail: str


@dataclass(frozen=True)
class FlipCard:
    """A flipped image: "lost" where only FP32 was right, "gained" where only the quantised network is, else "other"."""

    flip: Flip
    kind: str
    thumbnail: Markup | None


def render_html(report: Report) -> str:
    """Return the whole page; every text of the report is escaped."""
    report = visible(report)
    layers = report.quantization.layers
    worst_first = sorted(layers, key=lambda layer: layer.sqnr_db)
    changed = changed_classes(report.accuracy)
    cards = flip_cards(report.accuracy)
    return (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            style=page_style(),
            verdict=verdict(report),
            place=place(report.accuracy),
            score=capitalized(report.accuracy.score or "top-1"),
            gates=[(gate, gate_text(gate)) for gate in report.gates],
            tiles=summary_tiles(report),
            reason=lambda key: reason(report, key),
            missing=missing_results(report),
            size_columns=SIZE_COLUMNS,
            size_row=size_row,
            widths=[("wide", WIDE), ("narrow", NARROW)],
            accuracy_chart=accuracy_chart,
            latency_chart=latency_chart,
            size_chart=size_chart,
            layer_chart=layer_chart,
            marker=marker,
            operators=[name for name in MARKERS if any(layer.operator == name for layer in layers)],
            estimators=Counter(layer.estimator for layer in layers).most_common(),
            worst_layers=worst_first[:WORST_LAYERS],
            histograms=[histogram_chart(layer) for layer in worst_first if layer.histogram],
            histogram_size=(HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT),
            candidates=candidates,
            answer_facts=answer_facts,
            device_facts=device_facts,
            flips=cards[:SHOWN_FLIPS],
            hidden_flips=len(cards) - len(cards[:SHOWN_FLIPS]),
            flip_counts=Counter(card.kind for card in cards),
            classes=changed[:SHOWN_CLASSES],
            hidden_classes=len(changed) - len(changed[:SHOWN_CLASSES]),
            change_facts=[] if report.compression is None else change_facts(report.compression),
        )
        .lstrip()
    )


def summary_tiles(report: Report) -> list[Tile]:
    """Return the figures on top, in the order a reader asks for them: six, four of them of a network without classifier."""
    accuracy, sizes = report.accuracy, report.size_bytes
    best = accuracy.artifact or accuracy.simulated
    where = " of the simulation" if best and not accuracy.artifact else ""
    drop = None
    if accuracy.drop_pp is not None:
        drop = f"drop {_interval(accuracy.drop_pp.value, accuracy.drop_pp.low, accuracy.drop_pp.high)} points"
    fp32 = f"FP32 {format.percent(accuracy.fp32.value)}" if accuracy.fp32 else None
    on = {"artifact": f"artifact in {place(accuracy)}", "simulation": "simulation only", None: ""}[accuracy.measured_on]
    speed = report.speedup_interval
    quicker = f"95 % interval {speed.low:.2f} to {speed.high:.2f}" if speed else "median against median"
    from_size = ""
    if sizes.fp32 and sizes.artifact:
        from_size = f"FP32 {format.size(sizes.fp32)}, {format.against_size(sizes.artifact, sizes.fp32)}"
    top1 = None if best is None else format.percent(best.value)
    size = None if sizes.artifact is None else format.size(sizes.artifact)
    answers = [
        _tile(report, f"{capitalized(accuracy.score or 'top-1')}{where}", "accuracy.artifact", top1, [fp32, drop]),
        _tile(
            report,
            "Agreement with FP32",
            "accuracy.agreement",
            None if accuracy.agreement is None else format.percent(accuracy.agreement),
            [f"{format.count(accuracy.images)} images", on],
        ),
    ]
    lowest = worst_output(report)
    return [
        *([] if report.outputs else answers),
        _tile(
            report,
            "Logit SQNR" if lowest is None else "Feature SQNR",
            "accuracy.sqnr_db",
            None if accuracy.sqnr_db is None else format.decibel(accuracy.sqnr_db),
            ["against FP32", f"worst in {lowest.name}" if lowest else None, on],
        ),
        _tile(
            report,
            "Fidelity",
            "fidelity_db",
            None if report.fidelity_db is None else format.decibel(report.fidelity_db),
            [f"artifact in {place(accuracy)} against simulation"],
        ),
        _tile(
            report,
            "Speed against FP32",
            "speedup",
            None if report.speedup is None else format.ratio(report.speedup),
            [quicker],
        ),
        _tile(report, "Size on disk", "size_bytes.artifact", size, [from_size]),
    ]


def candidates(layer: LayerError) -> list[str]:
    """Give the error of each estimator not chosen, best first, in multiples of the chosen one's: "min-max 1.31x"."""
    chosen = layer.candidates.get(layer.estimator, 0.0)
    others = sorted((error, name) for name, error in layer.candidates.items() if name != layer.estimator)
    return [f"{name} {_multiple(error / chosen) if chosen > 0 else format.error(error)}" for error, name in others]


def flip_cards(accuracy: Accuracy) -> list[FlipCard]:
    """Sort the flips: lost answers first, and among each kind those FP32 was surest of."""
    order = {"lost": 0, "gained": 1, "other": 2}
    cards = []
    for flip in accuracy.flips:
        kind = "lost" if flip.label == flip.fp32 else "gained" if flip.label == flip.artifact else "other"
        # Only picture data goes into src; anything else a report might carry there is left out.
        safe = flip.thumbnail is not None and _THUMBNAIL.match(flip.thumbnail)
        cards.append(FlipCard(flip, kind, Markup(flip.thumbnail) if safe and flip.thumbnail else None))
    return sorted(cards, key=lambda card: (order[card.kind], -card.flip.fp32_confidence, card.flip.image))


def changed_classes(accuracy: Accuracy) -> list[ClassChange]:
    """Return the classes whose top-1 changed, the largest change first, losses before gains of the same size."""
    changed = [change for change in accuracy.classes if change.fp32 != change.artifact]
    return sorted(changed, key=lambda c: (-abs(c.artifact - c.fp32), c.artifact - c.fp32, c.label))


def _tile(report: Report, title: str, key: str, value: str | None, details: list[str | None]) -> Tile:
    if not value:
        return Tile(title, None, reason(report, key) or "no reason was recorded")
    return Tile(title, format.typographic(value), "; ".join(detail for detail in details if detail))


def _multiple(value: float) -> str:
    return format.ratio(value) if value < 100 else f"{format.significant(value)}x"


def _interval(value: float, low: float, high: float) -> str:
    shown = f"{format.points(value)} ({format.points(low)} to {format.points(high)})"
    return shown.replace("-", "\N{MINUS SIGN}")


def page_environment() -> Environment:
    """Return the templates of the pages, with the formats as filters; everything is escaped."""
    environment = Environment(
        loader=PackageLoader("edgeconvnext.report"),
        autoescape=True,
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in [
        "significant",
        "percent",
        "share",
        "points",
        "decibel",
        "ratio",
        "milliseconds",
        "size",
        "count",
        "macs",
        "shape",
        "duration",
        "error",
    ]:
        environment.filters[name] = _printed(getattr(format, name))
    environment.filters["printed"] = format.typographic
    environment.filters["breakable"] = _breakable
    environment.filters["multiples"] = lambda text: re.sub(r"(?<=\d)x\b", "\N{MULTIPLICATION SIGN}", text)
    return environment


def page_style() -> Markup:
    """Return the style sheet of the pages."""
    return Markup(files("edgeconvnext.report").joinpath("templates/report.css").read_text(encoding="utf-8"))


def _breakable(path: str) -> Markup:
    """Let a path wrap behind its slashes."""
    return Markup("/<wbr>".join(for_html(part) for part in path.split("/")))


def _escaped(value: object) -> object:
    """Escape a text for HTML before jinja writes it; what is marked as HTML already stays."""
    return Markup(for_html(value)) if isinstance(value, str) and not isinstance(value, Markup) else value


def _printed(formatter: Callable[..., str]) -> Callable[..., str]:
    return lambda *arguments: format.typographic(formatter(*arguments))
