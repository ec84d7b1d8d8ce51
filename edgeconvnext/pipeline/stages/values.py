"""What the stages of a run return beside their files. A stored stage whose values are anything else is made again."""

from __future__ import annotations

from pydantic import Field

from edgeconvnext.choices import JudgedBy
from edgeconvnext.quantization.precision import BitPlan
from edgeconvnext.run.stage_record import StageValues
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


class CompressValues(StageValues):
    """record: what was pruned, replaced and recovered, and what it cost."""

    record: CompressionRecord


class FoldValues(StageValues):
    """errors: largest difference to the network handed in, by rewrite."""

    errors: dict[str, float]


class CalibrationCounts(StageValues):
    """Images that ranges were fitted on and judged on; skipped: those that could not be read, with the reason."""

    fit: int = Field(ge=0)
    held_out: int = Field(ge=0)
    skipped: list[str]


class HeldOutLoss(StageValues):
    """What a quantised network loses on held-out calibration images. loss_pp: points; kl: nats."""

    loss_pp: float
    kl: float


class BudgetValues(StageValues):
    """What --max-drop cost. bits: of the plan that meets it; before, after: without and with `moves`."""

    bits: BitPlan
    max_drop: float
    judged_by: JudgedBy
    images: int
    before: HeldOutLoss
    after: HeldOutLoss
    moves: list[BudgetMove]


class Float16Values(StageValues):
    """Activations that float16 does not hold, on the calibration images (`quantization.float16_range.Float16Range`)."""

    peaks: dict[str, float]
    stream_exponents: tuple[int, ...]
    remaining: dict[str, float]


class PlanValues(CalibrationCounts):
    """input_error: of folding the input normalisation, relative to the largest logit. budget: None without --max-drop.

    float16: None where the target's float type is another one.
    threads: of torch while the plan was made; another number adds up in another order and may give another plan.
    """

    input_error: float
    budget: BudgetValues | None
    float16: Float16Values | None
    threads: int = Field(ge=1)


class QuantizedValues(StageValues):
    """int8_macs: share of the multiply-adds that is quantised, 0..1. tensor_bytes: of the graph's weights and constants."""

    layers: list[LayerError]
    int8_macs: float
    scheme: str
    tensor_bytes: int = Field(ge=0)


class ReferenceValues(StageValues):
    """skipped: images that could not be read, with the reason."""

    skipped: list[str]


class AccuracyValues(StageValues):
    """runtimes: name and version of what ran "simulated" and, where it ran, "artifact"."""

    runtimes: dict[str, str]


class OutputsValues(StageValues):
    """outputs: of a network without classifier, compared on `images` images. skipped, runtimes: as above."""

    outputs: list[OutputRecord]
    images: int = Field(ge=1)
    skipped: list[str]
    runtimes: dict[str, str]


class SizesValues(StageValues):
    """sizes: the networks compared at each further input size."""

    sizes: list[SizeRecord]


class LatencyValues(StageValues):
    """unbudgeted_ms: median of the artifact that --max-drop started from, where it gave layers back.

    noise: what makes the times doubtful; None where nothing does.
    """

    latency: LatencyComparison
    speedup: Interval | None
    noise: str | None
    unbudgeted_ms: float | None


class ArtifactValues(StageValues):
    """checks: proofs that ran. missing: proofs that did not, with the reason."""

    checks: list[ExportCheck]
    missing: dict[str, str]


class DeviceValues(StageValues):
    """vectors: how many images the device kit has."""

    vectors: int
