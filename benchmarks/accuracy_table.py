"""The CSV of the accuracy benchmark: one row for each configuration of each tool on each network."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from benchmarks.accuracy_models import MODELS
from benchmarks.csv_rows import read_rows, write_rows
from benchmarks.own_runs import OWN_RUNS
from benchmarks.peers.grid import CONFIGURATIONS
from benchmarks.peers.protocol import Placement

RESULTS = Path(__file__).resolve().parent / "results" / "accuracy.csv"
OWN = "edgeconvnext"


class Row(BaseModel):
    """One line of the CSV. What was not measured is empty; error says why a configuration has no numbers at all.

    drop_pp: FP32 top-1 minus this one's, points, with its paired 95 % interval. runtime: what produced the logits and the
    times. speedup: against the FP32 ONNX in onnxruntime, batch 1, one thread, with its 95 % interval.
    """

    model: str
    peer: str
    versions: str
    method: str
    placement: Placement
    bits: str = ""
    activations: str = ""
    images: int | None = None
    top1: float | None = None
    drop_pp: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    quantize_s: float | None = None
    peak_mib: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    size_bytes: int | None = None
    runtime: str | None = None
    cpu: str = ""
    error: str | None = None

    @property
    def key(self) -> tuple[str, ...]:
        return self.model, self.peer, self.method, self.placement, self.bits, self.activations


class Table:
    """The CSV, written whole after every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read_rows(path, Row)

    def find(self, key: tuple[str, ...]) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)

    def put(self, row: Row) -> None:
        """Add a row, or replace the one of the same key."""
        keys = [kept.key for kept in self.rows]
        if row.key in keys:
            self.rows[keys.index(row.key)] = row
        else:
            self.rows.append(row)
        self.rows.sort(key=_order)
        write_rows(self.path, self.rows)


def _order(row: Row) -> tuple[int, int]:
    """Order rows as models and configurations are listed; own rows come first, after FP32."""
    models = [model.name for model in MODELS]
    cases = [("onnxruntime", "FP32", "peer's own default", "", "")]
    cases += [(OWN, c.method, c.placement, c.bits, c.activations) for c in OWN_RUNS]
    cases += [(c.peer, c.method, c.placement, c.bits, c.activations) for c in CONFIGURATIONS]
    position = cases.index(row.key[1:]) if row.key[1:] in cases else len(cases)  # type: ignore[arg-type]
    return models.index(row.model), position
