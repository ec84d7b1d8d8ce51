"""The tables of docs/pruning.md, between their markers, and the plot, from the CSV's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.csv_rows import read_rows
from benchmarks.plots import pyplot_for
from benchmarks.pruning_table import CROPS_RESULTS, RESULTS, SHARES, CropsRow, PruningRow

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "pruning.md"
PLOT = RESULTS.with_suffix(".svg")
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
OWN = "edgeconvnext, elimination"
RECOVERED = ", recovered "
COLOURS = {"elimination": "#d62728", "energy": "#ff9896", "magnitude": "#e377c2", "taylor": "#ff7f0e"}


def write_page(rows: list[PruningRow], page: Path = PAGE) -> None:
    """Put the tables between the page's markers."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = _summary(rows) + _recovery(rows) + _crops(read_rows(CROPS_RESULTS, CropsRow)) + _all(rows)
    page.write_text(before + BEGIN + tables + END + after, encoding="utf-8")


def write_plot(rows: list[PruningRow], path: Path = PLOT) -> None:
    """Draw drop and SQNR against the share of the multiply-adds, one line for each method; below, what was trained afterwards."""
    pyplot = pyplot_for("pruning")

    untrained = list(dict.fromkeys(row.method for row in rows if RECOVERED not in row.method))
    recovered = list(dict.fromkeys(row.method for row in rows if RECOVERED in row.method))
    before = [method for method in untrained if any(name.startswith(method + RECOVERED) for name in recovered)]
    parts = {"pruned, without training": untrained}
    if recovered:
        parts["recovered, beside the same without training"] = before + recovered
    figure, grid = pyplot.subplots(len(parts), 2, figsize=(13, 4 * len(parts)), squeeze=False)
    for axes, (title, methods) in zip(grid, parts.items(), strict=True):
        for method in methods:
            _draw(axes, method, [row for row in rows if row.method == method and row.drop_pp is not None])
        axes[0].set_title(title, fontsize=9, loc="left")
        axes[0].set_ylabel("top-1 drop, points")
        axes[0].set_yscale("symlog", linthresh=1)
        axes[1].set_ylabel("logit SQNR, dB")
        for axis in axes:
            axis.set_xlabel("multiply-adds left, %")
            axis.invert_xaxis()
            axis.grid(alpha=0.3)
        axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.suptitle("ConvNeXt-Atto, Imagenette, 128 px")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw(axes: Any, method: str, rows: list[PruningRow]) -> None:
    """Draw a method's line in both axes, a point alone where it was measured at one share."""
    tool, _, what = method.partition(", ")
    line = sorted(rows, key=lambda row: row.share or 0)
    own = tool == "edgeconvnext"
    style = {"color": COLOURS.get(what)} if own else {"linestyle": "--" if "hidden" in what else ":", "alpha": 0.8}
    if len(line) > 1 or RECOVERED in method:
        shares = [100 * (row.share or 0) for row in line]
        width = 2.4 if method == OWN else 1.2
        axes[0].plot(shares, [row.drop_pp for row in line], marker=".", label=method, linewidth=width, **style)
        axes[1].plot(shares, [row.sqnr_db for row in line], marker=".", label=method, linewidth=width, **style)


def _summary(rows: list[PruningRow]) -> str:
    """One line for each share: this toolkit's default beside the peer's best there, picked on the evaluation images for it."""
    lines = [
        "| multiply-adds left | this toolkit, drop | agreement | SQNR | Torch-Pruning's best, drop | agreement | which |",
        "|---|---|---|---|---|---|---|",
    ]
    for share in SHARES:
        own = next((row for row in rows if row.method == OWN and row.target_share == share), None)
        peers = [
            r
            for r in rows
            if r.method.startswith("torch-pruning")
            and RECOVERED not in r.method
            and r.target_share == share
            and r.drop_pp is not None
        ]
        best = min(peers, key=lambda row: row.drop_pp or 0.0, default=None)
        if own is None:
            continue
        other = (
            "not measured | |"
            if best is None
            else f"{_drop(best)} | {best.agreement:.2f} % | {best.method.partition(', ')[2]}"
        )
        lines.append(f"| {100 * share:.0f} % | {_drop(own)} | {own.agreement:.2f} % | {own.sqnr_db:.1f} dB | {other} |")
    return "\n".join(lines) + "\n\n"


def _recovery(rows: list[PruningRow]) -> str:
    """One line for each network that was trained afterwards, beside itself before."""
    recovered = [row for row in rows if RECOVERED in row.method and row.drop_pp is not None]
    if not recovered:
        return ""
    lines = [
        "With recovery (label-free distillation from the original, this toolkit's, for either tool's network):",
        "",
        "| multiply-adds | pruned by | recovered | images seen "
        "| drop before | after | agreement before | after | SQNR before | after |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(recovered, key=lambda row: (-row.target_share, row.method)):
        method, _, how = row.method.partition(RECOVERED)
        before = next(r for r in rows if r.method == method and r.target_share == row.target_share)
        lines.append(
            f"| {100 * row.target_share:.0f} % | {method} | {how} | {row.learnt_from:,} | {_drop(before)} | {_drop(row)} "
            f"| {before.agreement:.2f} % | {row.agreement:.2f} % | {before.sqnr_db:.1f} dB | {row.sqnr_db:.1f} dB |"
        )
    return "\n".join(lines) + "\n\n"


def _crops(rows: list[CropsRow]) -> str:
    """One line for each share and number of crops: what recovery gained."""
    if not rows:
        return ""
    first = rows[0]
    lines = [
        f"This toolkit's on {first.crops} crops of each image (recovered {first.recovered}), with normal intervals over images:",
        "",
        "| multiply-adds | answers | drop before | after | gained | answers changed before | after | SQNR before | after |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row.target_share):
        answers = row.images * row.crops
        changed = [round(answers * (1 - share / 100)) for share in (row.agreement_before, row.agreement_after)]
        before = _points(row.drop_before, row.drop_before_low, row.drop_before_high)
        after = _points(row.drop_after, row.drop_after_low, row.drop_after_high)
        gain = _points(row.gain, row.gain_low, row.gain_high)
        lines.append(
            f"| {100 * row.target_share:.0f} % | {answers:,} | {before} | {after} | {gain} | {changed[0]} | {changed[1]} "
            f"| {row.sqnr_db_before:.1f} dB | {row.sqnr_db_after:.1f} dB |"
        )
    return "\n".join(lines) + "\n\n"


def _all(rows: list[PruningRow]) -> str:
    lines = [
        "| method | multiply-adds | parameters | top-1 | drop, 95 % interval | agreement | SQNR | onnxruntime |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.drop_pp is None:
            lines.append(f"| {row.method} | at most {100 * row.target_share:.0f} % | | | failed: {row.error} | | | |")
            continue
        time = "not measured" if row.speedup is None else f"{row.latency_ms:.2f} ms, {row.speedup:.2f}x"
        macs = f"{(row.macs or 0) / 1e6:.1f} M ({100 * (row.share or 0):.1f} %)"
        lines.append(
            f"| {row.method} | {macs} | {(row.parameters or 0) / 1e6:.2f} M | {row.top1:.2f} % | {_drop(row)} "
            f"| {row.agreement:.2f} % | {row.sqnr_db:.1f} dB | {time} |"
        )
    return "\n".join(lines) + "\n\n"


def _drop(row: PruningRow) -> str:
    return _points(row.drop_pp, row.drop_low, row.drop_high)


def _points(value: float | None, low: float | None, high: float | None) -> str:
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
