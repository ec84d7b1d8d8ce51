"""What `edgeconvnext prune` prints: what was taken out, and what it was measured to cost on held-out calibration images."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeconvnext.escape import for_terminal
from edgeconvnext.rewrite.prune import PruneResult
from edgeconvnext.rewrite.prune_costs import BudgetKind
from edgeconvnext.rewrite.sparsity import SparseResult

_UNITS: dict[BudgetKind, tuple[float, str]] = {"macs": (1e6, "M"), "size": (1e6, "MB"), "latency": (1, "ms")}
_NAMES: dict[BudgetKind, str] = {"macs": "multiply-adds", "size": "weights at 8 bits", "latency": "latency"}


def render_pruned(channels: PruneResult | None, sparse: SparseResult | None) -> Group:
    """Return the tables for the terminal; either part is left out where it is None."""
    parts: list[RenderableType] = []
    if channels is not None:
        parts += _channels(channels)
    if sparse is not None:
        parts += _sparse(sparse)
    return Group(*parts)


def _channels(result: PruneResult) -> list[RenderableType]:
    kind = result.budget.kind
    scale, unit = _UNITS[kind]
    totals = Table(box=None, pad_edge=False, show_header=False)
    share = result.cost_after / result.cost_before
    totals.add_row(
        _NAMES[kind],
        f"{result.cost_before / scale:.2f} -> {result.cost_after / scale:.2f} {unit} ({100 * share:.1f} %)"
        + (", from the table of block times" if kind == "latency" else ""),
    )
    if kind != "macs":
        macs = result.macs_after / result.macs_before
        totals.add_row(
            "multiply-adds", f"{result.macs_before / 1e6:.1f} -> {result.macs_after / 1e6:.1f} M ({100 * macs:.1f} %)"
        )
    if result.latency_ms is not None:
        before, after = result.latency_ms
        totals.add_row("measured", f"{before:.2f} -> {after:.2f} ms ({100 * after / before:.1f} %)")
    totals.add_row("parameters", f"{result.parameters_before / 1e6:.2f} -> {result.parameters_after / 1e6:.2f} M")
    for removal in result.removals:
        text = f"{removal.path}, {removal.owner} fitted to answer for it (KL {removal.kl:.1e} nats)"
        totals.add_row("removed", Text(for_terminal(text)))
    blocks = Table(box=None, pad_edge=False)
    for column in ("block", "hidden", "chosen by", "KL alone", "error"):
        blocks.add_column(column, justify="left" if column in ("block", "chosen by") else "right")
    for block in result.blocks:
        changed = block.hidden_after < block.hidden_before
        blocks.add_row(
            Text(for_terminal(block.path)),
            f"{block.hidden_before} -> {block.hidden_after}" if changed else str(block.hidden_before),
            block.score if changed and block.hidden_after else "-",
            "-" if block.kl_alone is None else f"{block.kl_alone:.1e}",
            "-" if block.relative_error is None else f"{100 * block.relative_error:.1f} %",
        )
    verdicts = Table(box=None, pad_edge=False)
    for column in ("rebuilt", "KL", "agreement", ""):
        verdicts.add_column(column, justify="left" if column in ("rebuilt", "") else "right")
    for verdict in result.verdicts:
        verdicts.add_row(
            Text(for_terminal(verdict.name)),
            f"{verdict.kl:.1e}",
            f"{verdict.agreement:.2f} %",
            "taken" if verdict.taken else "",
        )
    images = f"fitted on {result.fit_images} images, measured on {result.held_out_images} others (no labels)"
    return [totals, Text(), blocks, Text(), verdicts, Text(images), Text()]


def _sparse(result: SparseResult) -> list[RenderableType]:
    table = Table(box=None, pad_edge=False)
    for column in ("2:4 layer", "error"):
        table.add_column(column, justify="left" if column == "2:4 layer" else "right")
    for layer in result.layers:
        table.add_row(Text(for_terminal(layer.name)), f"{100 * layer.relative_error:.1f} %")
    cost = f"2:4 sparsity: KL {result.kl:.1e} nats, agreement {result.agreement:.2f} % of {result.held_out_images} held-out images"
    return [table, Text(cost), Text("Whether a GPU's sparse kernels run is known on that GPU only."), Text()]
