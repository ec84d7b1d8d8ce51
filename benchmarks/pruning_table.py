"""The CSV of the pruning benchmark: one row for each method and share of the multiply-adds."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from benchmarks.csv_rows import read_rows, write_rows

RESULTS = Path(__file__).resolve().parent / "results" / "pruning.csv"
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.35)


class PruningRow(BaseModel):
    """One line. target_share: of the original's multiply-adds, at most; share: what they are. What was not measured is empty.

    drop_pp: the original's top-1 minus this one's, points, with its paired 95 % interval. held_out_kl: nats, on held-out
    calibration images, what choices were made by. learnt_from: images that recovery saw, repeats counted. cpu: or the GPU.
    speedup: against the original in onnxruntime, batch 1, one thread.
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
    learnt_from: int | None = None
    cpu: str = ""
    error: str | None = None


class PruningTable:
    """The rows, written to disk with every change."""

    def __init__(self, path: Path = RESULTS) -> None:
        self.path = path
        self.rows = read_rows(path, PruningRow)

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
        write_rows(self.path, self.rows)
