"""The CSV of the pruning benchmark: one row for each method and share of the multiply-adds."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from benchmarks.csv_rows import read_rows, write_rows

RESULTS = Path(__file__).resolve().parent / "results" / "pruning.csv"
CROPS_RESULTS = RESULTS.with_name("pruning_crops.csv")
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


class CropsRow(BaseModel):
    """One pruned network before and after recovery, on `crops` crops of each image.

    drop_before, drop_after: the original's top-1 minus the network's, points, a mean over images and crops.
    gain: the first minus the second; its interval, like the others, is a normal one at 95 % over images, whose crops are not
    independent of each other. agreement, sqnr_db: with and of the original's logits.
    """

    target_share: float
    recovered: str
    images: int
    crops: int
    drop_before: float
    drop_before_low: float
    drop_before_high: float
    drop_after: float
    drop_after_low: float
    drop_after_high: float
    gain: float
    gain_low: float
    gain_high: float
    agreement_before: float
    agreement_after: float
    sqnr_db_before: float
    sqnr_db_after: float


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
