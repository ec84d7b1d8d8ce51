"""What a search of placements found, on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeconvnext.report.placement_toml import reasons
from edgeconvnext.report.visible import visible
from edgeconvnext.schema.placement import PlacementFound


def render_search(found: PlacementFound) -> RenderableType:
    """Lay out the start, what was taken, the best, and why layers are float; 100 columns."""
    found = visible(found)
    table = Table(box=None, pad_edge=False)
    table.add_column("placement")
    for column in ("over FP32", "ms", "SQNR", "agreement"):
        table.add_column(column, justify="right")
    rows = [(f"target {found.target}", found.start)]
    rows += [(f"+ {trial.move}", trial.measured) for trial in found.trials if trial.taken]
    for name, measured in rows:
        table.add_row(
            Text(name),
            f"{measured.speedup.value:.2f}x",
            f"{measured.ms:.2f}",
            f"{measured.sqnr_db:.1f} dB",
            f"{measured.agreement:.1f} %",
        )
    side = "x".join(str(length) for length in found.input_size)
    summary = f"{len(found.trials)} moves tried; {found.taken_over} placements had been measured by an earlier search"
    if found.untried:
        summary += f"; {found.untried} moves not tried, the time was up: run the same command again to go on"
    lines = [Text(f"{found.runtime} on {found.device}, {side}, batch 1, threads {found.threads}", "dim"), Text(summary)]
    return Group(table, *lines, *(Text(reason, "dim") for reason in reasons(found.float_layers)))
