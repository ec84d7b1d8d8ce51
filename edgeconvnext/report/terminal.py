"""The summary printed after quantize, export and validate: readable at 80 columns, in colour or in a log file."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeconvnext.report.changes_terminal import render_changes
from edgeconvnext.report.device import device_facts
from edgeconvnext.report.sizes import SIZE_COLUMNS, size_row
from edgeconvnext.report.verdict import (
    Outcome,
    answer_facts,
    aside,
    capitalized,
    gate_text,
    missing_results,
    reason,
    verdict,
)
from edgeconvnext.report.visible import visible
from edgeconvnext.schema import format
from edgeconvnext.schema.report import Accuracy, BudgetRecord, DeviceRecord, Flip, Latency, Report, ScoreRecord

SHOWN_CHANGES = 3
_STYLES: dict[Outcome, str] = {"passed": "bold green", "missed": "bold red", "open": "bold yellow"}
_RESULTS: dict[Outcome, str] = {"passed": "met", "missed": "MISSED", "open": "not measured"}


def render_summary(report: Report) -> RenderableType:
    """Return accuracy, comparison, latency, sizes and gates as a Rich renderable.

    Text without markup, and no characters of our own beyond ASCII: names with brackets and plain logs come out right.
    """
    report = visible(report)
    judged = verdict(report)
    parts: list[RenderableType] = [
        Text.assemble((report.model.name, "bold"), " for ", (report.target, "bold")),
        Text(f"{report.quantization.scheme}, {format.share(report.quantization.int8_macs)} of MACs quantised", "dim"),
        Text(),
        _accuracy(report),
        Text(),
        _facts(report),
    ]
    if report.sizes:
        parts += [Text(), _sizes(report)]
    if report.compression is not None:
        parts += [Text(), Text("Changed before quantization", "dim"), render_changes(report.compression)]
    if report.device is not None:
        parts += [Text(), _device(report.device)]
    if report.gates:
        parts += [Text(), _gates(report)]
    if report.checks:
        parts += [Text(), _checks(report)]
    parts += [Text(), Text.assemble((judged.title, _STYLES[judged.outcome]), f": {judged.detail}")]
    missing = missing_results(report)
    if missing:
        parts += [Text(), _missing(missing)]
    if report.notes:
        parts += [Text(), _notes(report.notes)]
    return Group(*parts)


def _accuracy(report: Report) -> RenderableType:
    accuracy = report.accuracy
    if report.outputs:
        return _outputs(report)
    rows = (("FP32", accuracy.fp32), ("simulated", accuracy.simulated), ("artifact", accuracy.artifact))
    if not any(scores for _, scores in rows):
        absent = Text(f"{capitalized(accuracy.score or 'top-1')} not measured" + _because(report, "accuracy.fp32"))
        return Group(*_agreement(report), Text(), absent) if accuracy.measure_with else absent
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", accuracy.score or "top-1", "95 % interval", "top-5", "images"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for name, scores in rows:
        table.add_row(name, *_scores(scores))
    return table


def _agreement(report: Report) -> list[Text]:
    """Return what can be said without the model's classes first, then the command that measures the score."""
    facts = {fact.name: fact.value for fact in answer_facts(report) if fact.value is not None}
    said = "; ".join(f"{name} {facts[name]}" for name in ("agreement", "logit SQNR") if name in facts)
    command = Text(report.accuracy.measure_with, "bold", overflow="fold")
    return [Text(f"{capitalized(said)}.")] * bool(said) + [
        Text.assemble(f"Measure {report.accuracy.score or 'top-1'} with: ", command)
    ]


def _outputs(report: Report) -> Table:
    """Return a row for each output of a network without classifier."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("output", "shape", "SQNR to FP32", "simulated", "fidelity"):
        table.add_column(name, justify="left" if name == "output" else "right", no_wrap=True)
    for output in report.outputs:
        fidelity = "not measured" if output.fidelity_db is None else format.decibel(output.fidelity_db)
        measured = report.accuracy.measured_on == "artifact"
        table.add_row(
            Text(output.name),
            format.shape(output.shape),
            format.decibel(output.sqnr_db) if measured else "not measured",
            format.decibel(output.simulated_sqnr_db),
            fidelity,
        )
    return table


def _sizes(report: Report) -> Table:
    """Return a row for each further input size, of the worst output where there are several."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in SIZE_COLUMNS:
        table.add_column(name, justify="left" if name == "size" else "right", no_wrap=True)
    for record in report.sizes:
        table.add_row(*size_row(record, report.accuracy.measured_on))
    return table


def _scores(scores: ScoreRecord | None) -> list[str]:
    if scores is None:
        return ["not measured", "-", "-", "-"]
    top5 = "-" if scores.top5 is None else format.percent(scores.top5)
    interval = f"{scores.low:.2f} to {scores.high:.2f}"
    return [format.percent(scores.value), interval, top5, format.count(scores.n)]


def _facts(report: Report) -> Table:
    accuracy, sizes = report.accuracy, report.size_bytes
    on = aside(accuracy)
    size = sizes.artifact and format.size(sizes.artifact)
    if size and sizes.fp32 and sizes.artifact:
        size += f" (FP32 {format.size(sizes.fp32)}, {format.against_size(sizes.artifact, sizes.fp32)})"
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    answers = [(fact.name, fact.value) for fact in answer_facts(report)]
    for name, value in (
        *([] if accuracy.task in (None, "single-label") else [("task", _task(accuracy))]),
        *([("images", f"{format.count(accuracy.images)}{on}")] if report.outputs else answers),
        *([("changed", _changed(accuracy.flips))] if accuracy.flips else []),
        *([] if report.quantization.budget is None else [("budget", _budget(report.quantization.budget))]),
        ("fidelity", None if report.fidelity_db is None else format.decibel(report.fidelity_db) + on),
        ("latency FP32", _times(report.latency.fp32)),
        ("latency artifact", _times(report.latency.artifact)),
        ("speed-up", _speedup(report)),
        ("size", size),
    ):
        table.add_row(Text(name), Text(value) if value else Text("not measured", "dim"))
    return table


def _task(accuracy: Accuracy) -> str:
    return str(accuracy.task) + (f": {accuracy.task_reason}" if accuracy.task_reason else "")


def _changed(flips: list[Flip]) -> str:
    """Name the first images whose answer changed, those FP32 was surest of."""
    names = ", ".join(flip.image for flip in flips[:SHOWN_CHANGES])
    rest = f" and {len(flips) - SHOWN_CHANGES} more" if len(flips) > SHOWN_CHANGES else ""
    return f"{len(flips)} image{'' if len(flips) == 1 else 's'}: {names}{rest}"


def _device(device: DeviceRecord) -> Table:
    """Return what the device measured, under its name."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in device_facts(device):
        table.add_row(Text(name), Text(value) if value else Text("not measured", "dim"))
    return table


def _budget(budget: BudgetRecord) -> str:
    spent = "no layer given back"
    if budget.moves:
        share = sum({move.layer: move.macs_share for move in budget.moves}.values())
        layers = len({move.layer for move in budget.moves})
        spent = f"{layers} layer{'' if layers == 1 else 's'} with more bits, {format.share(share)} of MACs"
        if budget.latency_before_ms is not None:
            spent += f"; {format.milliseconds(budget.latency_before_ms)} without them"
    return (
        f"{budget.max_drop:g} points of {budget.judged_by} on {budget.images} held-out images: {budget.before_pp:.2f} lost, "
        f"then {budget.after_pp:.2f}; {spent}"
    )


def _times(latency: Latency | None) -> str | None:
    if latency is None:
        return None
    return f"median {format.milliseconds(latency.median_ms)}, p99 {format.milliseconds(latency.p99_ms)}"


def _speedup(report: Report) -> str | None:
    if report.speedup is None:
        return None
    interval = report.speedup_interval
    return format.ratio(report.speedup) + (f" ({interval.low:.2f} to {interval.high:.2f})" if interval else "")


def _gates(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("gate", overflow="fold")
    table.add_column("measured", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for gate in report.gates:
        text = gate_text(gate)
        word = "not decided" if text.outcome == "open" and text.measured else _RESULTS[text.outcome]
        result = Text(word, _STYLES[text.outcome])
        table.add_row(Text(text.promise), text.measured or text.simulated or "-", result)
    return table


def _checks(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in ("check", "result", "found"):
        table.add_column(name, overflow="fold", no_wrap=name == "result")
    for check in report.checks:
        outcome: Outcome = "passed" if check.passed else "missed"
        table.add_row(Text(check.name), Text("ok" if check.passed else "FAILED", _STYLES[outcome]), Text(check.result))
    return table


def _missing(missing: dict[str, list[str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_row(Text("Not measured", "dim"))
    for why, names in missing.items():
        table.add_row(Text(f"- {', '.join(names)}: {why}"))
    return table


def _notes(notes: list[str]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_row(Text("Notes", "dim"))
    for note in notes:
        table.add_row(Text(f"- {note}"))
    return table


def _because(report: Report, key: str) -> str:
    why = reason(report, key)
    return f": {why}" if why else ""
