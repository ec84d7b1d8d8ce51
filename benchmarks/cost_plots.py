"""Plots of what norms cost and what an export's time goes to, from norm_verdicts.csv and pipeline.csv.

python -m benchmarks.cost_plots
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import norms, pipeline
from benchmarks.cost_tables import STAGES
from benchmarks.csv_rows import read_rows
from benchmarks.plots import pyplot_for
from edgeconvnext.schema.report import NormVerdict

RESULTS = Path(__file__).resolve().parent / "results"
NORMS, STAGE_TIMES = RESULTS / "norms.svg", RESULTS / "pipeline.svg"
COLOURS = {"replaced": "#2ca02c", "kept": "#d62728"}


def write_norms_plot(verdicts: Path = norms.VERDICTS, plot: Path = NORMS) -> None:
    """Draw a bar for each LayerNorm: the KL divergence that its absence alone causes, cheapest first, by verdict."""
    rows = [row for row in read_rows(verdicts, NormVerdict) if row.kl_alone is not None and row.verdict in COLOURS]
    rows.sort(key=lambda row: -(row.kl_alone or 0.0))
    pyplot = pyplot_for("norms")
    figure, axis = pyplot.subplots(figsize=(8, 5))
    places = range(len(rows))
    for verdict, colour in COLOURS.items():
        own = [place for place in places if rows[place].verdict == verdict]
        axis.barh(own, [rows[place].kl_alone or 0.0 for place in own], color=colour, label=verdict)
    axis.set_yticks(places, [row.norm for row in rows], fontsize=8)
    axis.set(xscale="log", xlabel="KL divergence from the original without this norm alone, nats")
    axis.grid(axis="x", alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(plot, metadata={"Date": None})
    pyplot.close(figure)


def write_stages_plot(results: Path = pipeline.RESULTS, plot: Path = STAGE_TIMES) -> None:
    """Draw a bar for each export, divided by stages."""
    rows = read_rows(results, pipeline.Row)
    cases = [case for case in pipeline.CASES if any(row.case == case for row in rows)]
    pyplot = pyplot_for("pipeline")
    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    starts = [0.0] * len(cases)
    for stage, title in STAGES.items():
        if stage == pipeline.WHOLE:
            continue
        times = [sum(row.seconds for row in rows if row.case == case and row.stage == stage) for case in cases]
        axis.barh([case.name for case in cases], times, left=starts, height=0.6, label=title)
        starts = [start + time for start, time in zip(starts, times, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="lower center", ncols=2, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.2, 1, 1))
    figure.savefig(plot, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    write_norms_plot()
    write_stages_plot()
