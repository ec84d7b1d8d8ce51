"""docs/accuracy.md and the plot, from the CSV and accuracy_intro.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.accuracy_table import OWN, RESULTS, Row
from benchmarks.csv_rows import read_rows
from benchmarks.plots import pyplot_for

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "accuracy.md"
PLOT = RESULTS.with_suffix(".svg")

TITLES = {
    "atto": "ConvNeXt-Atto, Imagenette, 128 px",
    "atto_outliers": "The same with outlier channels after its LayerNorms",
    "digits": "Digits, the network in the package, 32 px",
    "v2_atto": "ConvNeXt V2 Atto (GRN), Imagenette, 128 px",
}
COLOURS = {OWN: "#d62728", "onnxruntime": "#1f77b4", "nncf": "#2ca02c", "modelopt": "#9467bd", "torchao": "#ff7f0e"}

INTRO = Path(__file__).with_name("accuracy_intro.md")


def write_page(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the page with one table for each model of the CSV."""
    rows = read_rows(results, Row)
    text = INTRO.read_text(encoding="utf-8") + "".join(
        _section(model, rows) for model in _in_order(row.model for row in rows)
    )
    text += "## Versions\n\n" + "".join(f"- {line}\n" for line in _versions(rows))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    print(f"written: {page.name}")


def write_plot(results: Path = RESULTS, plot: Path = PLOT) -> None:
    """Draw logit SQNR over speed-up, one panel a model, one colour a tool; W4A8 is hollow."""
    pyplot = pyplot_for("accuracy")
    from matplotlib.lines import Line2D

    rows = [row for row in read_rows(results, Row) if row.speedup is not None and row.method != "FP32"]
    models = _in_order(row.model for row in rows)
    if not models:
        return
    columns = min(2, len(models))
    height = -(-len(models) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(5.5 * columns, 4 * height), squeeze=False)
    for axis in axes.flat[len(models) :]:
        axis.remove()
    for model, axis in zip(models, axes.flat, strict=False):
        for row in (row for row in rows if row.model == model):
            colour = COLOURS[row.peer]
            axis.plot(
                row.speedup,
                row.sqnr_db,
                marker="*" if row.peer == OWN else "o",
                markersize=11 if row.peer == OWN else 6,
                color=colour,
                markerfacecolor="white" if row.bits == "W4A8" else colour,
                linestyle="",
            )
        axis.axvline(1, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=TITLES.get(model, model), xlabel="speed-up over FP32 in onnxruntime", ylabel="logit SQNR, dB")
        axis.grid(alpha=0.3)
    handles = [
        Line2D([], [], marker="*" if peer == OWN else "o", color=colour, linestyle="", label=peer)
        for peer, colour in COLOURS.items()
        if any(row.peer == peer for row in rows)
    ]
    if any(row.bits == "W4A8" for row in rows):
        handles.append(Line2D([], [], marker="o", color="black", markerfacecolor="white", linestyle="", label="W4A8"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(plot, metadata={"Date": None})
    pyplot.close(figure)
    print(f"written: {plot.name}")


def _section(model: str, rows: list[Row]) -> str:
    """Return the table of one model, and below it what each tool refused."""
    mine = [row for row in rows if row.model == model]
    fp32 = next((row for row in mine if row.method == "FP32"), None)
    lines = [f"## {TITLES.get(model, model)}", ""]
    if fp32 is not None:
        time = "" if fp32.latency_ms is None else f", {fp32.latency_ms:.2f} ms"
        lines += [f"FP32: {fp32.top1:.2f} % top-1 on {fp32.images:,} images{time}. {fp32.cpu}.", ""]
    lines += _best(mine)
    lines += [
        "| tool | method | quantised | bits | activations | drop | agreement | SQNR | speed-up | ms | size | quantising |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in mine if row.error is None and row is not fp32]
    refused = [row for row in mine if row.error]
    if refused:
        lines += ["", "Without a result:", ""]
        lines += [
            f"- {row.peer} {row.method}, {row.placement}, {row.bits} {row.activations}: {row.error}" for row in refused
        ]
    return "\n".join(lines) + "\n\n"


def _best(rows: list[Row]) -> list[str]:
    """Return a table of the best of each placement and bits: this toolkit's beside the best other tool's."""
    lines = ["| quantised | bits | edgeconvnext | best other tool |", "|---|---|---|---|"]
    for placement in ("all weighted ops", "no depthwise", "linears only", "peer's own default"):
        for bits in ("W8A8", "W4A8"):
            same = [row for row in rows if (row.placement, row.bits) == (placement, bits) and row.sqnr_db is not None]
            own = max((row for row in same if row.peer == OWN), key=lambda row: row.sqnr_db or 0.0, default=None)
            other = max((row for row in same if row.peer != OWN), key=lambda row: row.sqnr_db or 0.0, default=None)
            if own is not None or other is not None:
                name = "each tool's default" if placement == "peer's own default" else placement
                ours = "`target onnx`: linears only" if name != placement else _summed(own)
                lines.append(f"| {name} | {bits} | {ours} | {_summed(other, named=True)} |")
    return [*lines, ""]


def _summed(row: Row | None, named: bool = False) -> str:
    if row is None:
        return "not measured"
    who = f"{row.peer} {row.method}" if named else f"{row.method}"
    return f"{row.sqnr_db:.1f} dB, {row.agreement:.2f} % ({who}, {row.activations})"


def _line(row: Row) -> str:
    placement = "its default" if row.placement == "peer's own default" else row.placement
    speed = (
        "not measured"
        if row.speedup is None
        else f"{row.speedup:.2f}x ({row.speedup_low:.2f} to {row.speedup_high:.2f})"
    )
    cells = [
        f"**{row.peer}**" if row.peer == OWN else row.peer,
        row.method,
        placement,
        row.bits,
        row.activations,
        f"{row.drop_pp:+.2f} ({row.drop_low:+.2f} to {row.drop_high:+.2f})",
        f"{row.agreement:.2f} %",
        f"{row.sqnr_db:.1f} dB",
        speed,
        "" if row.latency_ms is None else f"{row.latency_ms:.2f}",
        "" if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f} MB",
        "" if row.quantize_s is None else f"{row.quantize_s:.0f} s, {row.peak_mib:.0f} MiB",
    ]
    return "| " + " | ".join(cells) + " |"


def _versions(rows: list[Row]) -> list[str]:
    """Return each tool with its version and the runtimes its artifacts ran in."""
    lines = []
    for peer in _in_order(row.peer for row in rows):
        versions = _in_order(row.versions for row in rows if row.peer == peer and row.versions)
        runtimes = _in_order(row.runtime for row in rows if row.peer == peer and row.runtime)
        lines.append(f"{peer}: {'; '.join(versions)}. Run in {'; '.join(runtimes) or 'nothing'}.")
    return lines


def _in_order(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
