"""Benchmark rows on disk: a CSV with one line for each pydantic record; what was not measured is empty."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from edgeconvnext.files import atomic_write

Record = TypeVar("Record", bound=BaseModel)


class Judged(BaseModel):
    """What a network that was changed or quantised answers, beside the original, on the evaluation images.

    drop_pp: FP32 top-1 of the original minus this one's, points, with its paired 95 % interval. agreement: per cent.
    sqnr_db: of the logits.
    """

    images: int
    top1: float
    drop_pp: float
    drop_low: float
    drop_high: float
    agreement: float
    sqnr_db: float


def judged_by(report: dict[str, Any]) -> Judged:
    """Read a run's report: its artifact's figures, or its simulation's where the artifact did not run here."""
    accuracy = report["accuracy"]
    drop = accuracy["drop_pp"]
    return Judged(
        images=accuracy["images"],
        top1=accuracy["artifact" if accuracy["measured_on"] == "artifact" else "simulated"]["value"],
        drop_pp=drop["value"],
        drop_low=drop["low"],
        drop_high=drop["high"],
        agreement=accuracy["agreement"],
        sqnr_db=accuracy["sqnr_db"],
    )


def read_rows(path: Path, record: type[Record]) -> list[Record]:
    """Return the records of the CSV; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [record.model_validate({name: value for name, value in line.items() if value != ""}) for line in lines]


def write_rows(path: Path, rows: Sequence[BaseModel]) -> None:
    """Write the CSV whole; floats with five significant digits. rows: of one type, at least one."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(type(rows[0]).model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _shown(value) for name, value in row.model_dump().items()} for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.getvalue())


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else value
