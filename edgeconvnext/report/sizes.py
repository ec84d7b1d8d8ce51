"""A row for each further input size: the same cells for the terminal, the page and the model card."""

from __future__ import annotations

from edgeconvnext.data.size import size_text
from edgeconvnext.schema import format
from edgeconvnext.schema.report import SizeRecord

SIZE_COLUMNS = ("size", "images", "score", "drop", "SQNR", "simulated", "fidelity")


def size_row(record: SizeRecord, measured_on: str | None) -> tuple[str, ...]:
    """Return the cells of SIZE_COLUMNS. measured_on: "artifact", or "simulation", whose figures are not the artifact's."""
    ran = measured_on == "artifact"
    drop = record.drop_pp
    return (
        size_text(record.size),
        format.count(record.images),
        "-" if record.score is None or not ran else format.percent(record.score),
        "-"
        if drop is None
        else f"{format.points(drop.value)} ({format.points(drop.low)} to {format.points(drop.high)})",
        format.decibel(record.sqnr_db) if ran else "not measured",
        format.decibel(record.simulated_sqnr_db),
        "not measured" if record.fidelity_db is None else format.decibel(record.fidelity_db),
    )
