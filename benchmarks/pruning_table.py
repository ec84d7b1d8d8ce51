"""The CSV of the pruning benchmark: one row for each method and share of the multiply-adds."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from pydantic import BaseModel, field_validator

from edgeconvnext.files import atomic_write

RESULTS = Path(__file__).resolve().parent / "results" / "pruning.csv"
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.35)


class PruningRow(BaseModel):
    """One line. target_share: of the original's multiply-adds, at most; share: what they are. What was not measured is empty.

    drop_pp: the original's top-1 minus this one's, points, with its paired 95 % interval. held_out_kl: nats, on held-out
    calibration images, what choices were made by. speedup: against the original in onnxruntime, batch 1, one thread.
    """

    method: str
    target_share: float
    share: float | None = None
    macs: int | None = None
    parameters: int | None = None
    images: int | None = None
    calibration_images: int | None = None
    top1: float | None = None
    drop_pp: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    held_out_kl: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    seconds: float | None = None
    cpu: str = ""
    error: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("cpu", mode="before")
    @classmethod
    def _empty_cpu(cls, value: Any) -> Any:
        return value or ""


class PruningTable:
    """The rows, written to disk with every change."""

    def __init__(self, path: Path = RESULTS) -> None:
        self.path = path
        self.rows: list[PruningRow] = []
        if path.is_file():
            with path.open(newline="") as file:
                self.rows = [PruningRow.model_validate(line) for line in csv.DictReader(file)]

    def find(self, method: str, target_share: float) -> PruningRow | None:
        found = (row for row in self.rows if (row.method, row.target_share) == (method, target_share))
        return next(found, None)

    def put(self, row: PruningRow) -> None:
        """Add a row, or put it in the place of the one of the same method and share, and write the file."""
        key = (row.method, row.target_share)
        places = [index for index, each in enumerate(self.rows) if (each.method, each.target_share) == key]
        if places:
            self.rows[places[0]] = row
        else:
            self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(PruningRow.model_fields), lineterminator="\n")
        writer.writeheader()
        for each in self.rows:
            writer.writerow({name: _short(value) for name, value in each.model_dump().items()})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, text.getvalue())


def _short(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value
