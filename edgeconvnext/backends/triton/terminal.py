"""The times of `edgeconvnext bench --runtime triton` as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from edgeconvnext.backends.triton.timing import TritonBench


def render_triton_bench(bench: TritonBench) -> RenderableType:
    """Lay out what was checked, and the times, batch by batch."""
    worst = bench.worst
    checked = (
        f"{len(bench.differences)} layers against the simulated graph: codes differ by at most {worst.largest}, in at most "
        f"{100 * worst.share:.3f} % of a layer's elements ({worst.layer})"
    )
    if not bench.is_right:
        return Text(f"{checked}. Allowed are 1 and 0.1 %: nothing was timed.", "bold")
    table = Table(box=None, pad_edge=False)
    table.add_column("form")
    for column in ("batch", "median ms", "p99 ms", "images/s", "speed-up", "of roofline"):
        table.add_column(column, justify="right")
    for form in bench.forms:
        table.add_row(
            form.form,
            str(form.batch),
            f"{form.median_ms:.3f}",
            f"{form.p99_ms:.3f}",
            f"{form.throughput:.0f}",
            f"{form.speedup:.2f}x",
            "" if form.roofline_share is None else f"{100 * form.roofline_share:.0f} %",
        )
    first = bench.forms[0]
    return Group(Text(checked), table, Text(f"{first.device}; {first.versions}", "dim"))
