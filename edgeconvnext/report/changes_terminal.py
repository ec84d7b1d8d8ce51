"""What was changed before quantization, for a terminal: one row for each LayerNorm, and what everything cost."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeconvnext.report.visible import visible
from edgeconvnext.schema import format
from edgeconvnext.schema.report import CompressionRecord, HeldOutLoss, NormVerdict

_STYLES = {"replaced": "green", "kept": "yellow", "gone before": "dim"}


def render_changes(record: CompressionRecord) -> RenderableType:
    """Return the LayerNorms with their verdicts and the facts of pruning and recovery."""
    record = visible(record)
    parts: list[RenderableType] = []
    if record.norms:
        parts += [_norms(record.norms), Text()]
    parts.append(_facts(record))
    reasons = {row.why: [] for row in record.norms if row.verdict == "kept"}  # type: dict[str, list[str]]
    for row in record.norms:
        if row.verdict == "kept":
            reasons[row.why].append(row.norm)
    if reasons:
        parts += [
            Text(),
            Text("Kept", "dim"),
            *(Text(f"- {', '.join(names)}: {why}") for why, names in reasons.items()),
        ]
    if record.norms and not any(row.verdict == "replaced" for row in record.norms):
        parts += [
            Text(),
            Text("No LayerNorm can be replaced within this budget; the network is unchanged in that respect."),
        ]
    return Group(*parts)


def _norms(rows: list[NormVerdict]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in ("LayerNorm", "verdict", "how", "error", "KL", "agreement", "saves"):
        table.add_column(name, justify="left" if name in ("LayerNorm", "verdict", "how") else "right", no_wrap=True)
    for row in rows:
        measured = row.agreement_alone is not None
        table.add_row(
            Text(row.norm),
            Text(row.verdict, _STYLES[row.verdict]),
            row.method if row.verdict == "replaced" else "-",
            format.share(row.error_alone) if row.error_alone is not None else "-",
            f"{row.kl_alone:.4f}" if row.kl_alone is not None else "-",
            format.percent(row.agreement_alone) if measured and row.agreement_alone is not None else "-",
            format.milliseconds(row.saved_ms) if row.saved_ms is not None else "not measured",
        )
    return table


def _facts(record: CompressionRecord) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in change_facts(record):
        table.add_row(name, Text(value))
    return table


def change_facts(record: CompressionRecord) -> list[tuple[str, str]]:
    """Return name and text of each fact, in the order a reader asks for them; the HTML report shows the same."""
    facts = []
    if record.norms:
        replaced = sum(row.verdict != "kept" for row in record.norms)
        facts.append(("LayerNorms replaced", f"{replaced} of {len(record.norms)}"))
    if record.pruning is not None:
        share = format.share(record.macs_after / record.macs_before)
        facts.append(("MACs kept", f"{share} ({format.share(record.pruning.asked_macs)} asked)"))
    facts.append(("held-out images", f"{record.held_out} of {record.images}, judged by {record.judged_by}"))
    facts.append(("loss there", loss_text(record.loss)))
    if record.recovery is not None:
        done = record.recovery
        taken = (
            "taken"
            if done.kept
            else "not taken: " + ("over the budget, or " if record.norms else "") + "no better than before"
        )
        spent = f"{done.minutes:.1f} minutes, {format.count(done.images)} images"
        facts.append(("recovery", f"{spent}; {loss_text(done.before)} before, {loss_text(done.after)} after; {taken}"))
    if record.latency is not None:
        timed = record.latency
        times = f"{format.milliseconds(timed.before_ms)} to {format.milliseconds(timed.after_ms)}"
        facts.append(("float latency", f"{times}, {format.ratio(timed.speedup)} ({timed.low:.2f} to {timed.high:.2f})"))
    else:
        facts.append(("float latency", "not measured"))
    return facts


def loss_text(loss: HeldOutLoss) -> str:
    """Say what was lost in one line."""
    return (
        f"{format.points(loss.points)} points ({format.points(loss.expected_points)} expected), KL {loss.kl:.4f}, agreement "
        f"{format.percent(loss.agreement)} ({loss.agreement_low:.2f} to {loss.agreement_high:.2f})"
    )
