"""What the stages of a run return. A stored stage whose values are anything else, in a run of others, is made again."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeconvnext.quantization.precision import BitPlan
from edgeconvnext.schema.report import (
    BudgetMove,
    CompressionRecord,
    ExportCheck,
    Interval,
    LatencyComparison,
    LayerError,
    OutputRecord,
    SizeRecord,
)


class StageValues(BaseModel):
    """Base of the values of a stage; a stage without any has none."""

    model_config = ConfigDict(extra="forbid")


class CompressValues(StageValues):
    record: CompressionRecord


class FoldValues(StageValues):
    """errors: largest difference to the network handed in, by rewrite."""

    errors: dict[str, float]


class CalibrationCounts(StageValues):
    """Images that ranges were fitted on and judged on; skipped: those that could not be read, with the reason."""

    fit: int = Field(ge=0)
    held_out: int = Field(ge=0)
    skipped: list[str]


class _HeldOutLoss(StageValues):
    loss_pp: float
    kl: float


class _Budget(StageValues):
    bits: BitPlan
    max_drop: float
    judged_by: Literal["top-1", "agreement"]
    images: int
    before: _HeldOutLoss
    after: _HeldOutLoss
    moves: list[BudgetMove]


class PlanValues(CalibrationCounts):
    """threads: of torch while the plan was made; another number adds up in another order and may give another plan."""

    input_error: float
    budget: _Budget | None
    threads: int = Field(ge=1)


class QuantizedValues(StageValues):
    layers: list[LayerError]
    int8_macs: float
    scheme: str
    tensor_bytes: int = Field(ge=0)


class ReferenceValues(StageValues):
    skipped: list[str]


class AccuracyValues(StageValues):
    runtimes: dict[str, str]


class OutputsValues(StageValues):
    outputs: list[OutputRecord]
    images: int = Field(ge=1)
    skipped: list[str]
    runtimes: dict[str, str]


class SizesValues(StageValues):
    sizes: list[SizeRecord]


class LatencyValues(StageValues):
    latency: LatencyComparison
    speedup: Interval | None
    unbudgeted_ms: float | None


class ArtifactValues(StageValues):
    checks: list[ExportCheck]
    missing: dict[str, str]


class DeviceValues(StageValues):
    vectors: int
