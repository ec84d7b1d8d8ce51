"""report.json: the stable result of a run. Keys are documented in docs/report.md.

What was not measured is null, and listed with its reason in `not_measured` under its dotted name ("accuracy.artifact").
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from edgeconvnext.choices import CropOffset, InputType, Interpolation, JudgedBy, TaskName
from edgeconvnext.data.preprocess import ValueRange
from edgeconvnext.escape import for_html, for_terminal
from edgeconvnext.schema import format

RunVerdict = Literal["passed", "failed", "not_measured"]
"""failed: a gate is missed or a check failed. passed: a gate was measured, and all that were are met. Else not_measured."""

DECIBEL_LIMIT = 200.0
REFERENCE_EVALUATOR = "reference evaluator"
"""What a runtime is called that only computes what the artifact's format says, where the artifact's own runtime is not here."""


def _within_limit(db: float) -> float:
    """Clamp to +-DECIBEL_LIMIT: JSON has no infinity, and two identical tensors have no error at all."""
    if db != db:
        raise ValueError("a ratio in dB must be a number, found nan")
    return max(-DECIBEL_LIMIT, min(DECIBEL_LIMIT, db))


Decibel = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_within_limit)]


def _readable(name: str) -> str:
    """Write a file name's undecodable bytes as \\udcff: they are legal on disk and illegal in JSON and HTML."""
    return name.encode("utf-8", "backslashreplace").decode() if isinstance(name, str) else name


FileName = Annotated[str, BeforeValidator(_readable)]


class Record(BaseModel):
    """Base of every record: unknown keys and non-finite numbers are errors; field order is the order in the file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Interval(Record):
    """A point estimate with its 95 % interval."""

    value: float
    low: float
    high: float


class ScoreRecord(Record):
    """The task's main score on n labelled images, per cent, with its 95 % interval: top-1, or what `Accuracy.score` names.

    top5: of one class of several, null for fewer than six classes.
    """

    value: float
    low: float
    high: float
    top5: float | None
    n: int


class Flip(Record):
    """An image whose answer differs from FP32's: another class or decision. Confidences are probabilities, 0..1."""

    image: FileName
    label: str | None
    fp32: str
    artifact: str
    fp32_confidence: float
    artifact_confidence: float
    thumbnail: str | None = Field(default=None, description="data: URI of a small JPEG, for report.html")


class ClassChange(Record):
    """Right answers before and after on the n images of one class, per cent."""

    label: str
    n: int
    fp32: float
    artifact: float


class Accuracy(Record):
    """FP32, the simulated quantised graph, and the artifact in its runtime, on the same images.

    drop_pp: FP32's score minus the artifact's (simulated, where there is no artifact result), points, with a paired 95 %
    interval. expected_drop_pp: the same without labels, if FP32's probabilities are true. agreement: per cent of answers that
    are FP32's. sqnr_db: logit SQNR over all images and classes; of a network without classifier, that of its worst output.
    task: what the answers mean (docs/tasks.md); task_reason: why it is that one; score: what fp32, simulated, artifact and
    drop_pp are. Answers of one logit are those of its sign. `measured_on` says whether drop, agreement, sqnr, flips and classes
    are the artifact's or the simulation's; `runtime` what ran the artifact: its own runtime, or REFERENCE_EVALUATOR.
    """

    task: TaskName | None = None
    task_reason: str | None = None
    score: str | None = None
    dataset: FileName | None = None
    images: int = 0
    fp32: ScoreRecord | None = None
    simulated: ScoreRecord | None = None
    artifact: ScoreRecord | None = None
    drop_pp: Interval | None = None
    expected_drop_pp: Interval | None = None
    agreement: float | None = None
    sqnr_db: Decibel | None = None
    simulated_sqnr_db: Decibel | None = None
    measured_on: Literal["artifact", "simulation"] | None = None
    runtime: str | None = None
    measure_with: str = Field(default="", description="command that measures the score, where these images cannot")
    classes: list[ClassChange] = []
    flips: list[Flip] = []

    @property
    def evaluated(self) -> bool:
        """Whether the artifact's figures come from the reference evaluator, not from its own runtime."""
        return self.runtime is not None and self.runtime.startswith(REFERENCE_EVALUATOR)


class OutputRecord(Record):
    """One output of a network without classifier: an embedding, or the feature map of a stage.

    shape: of one image, (C, H, W) or (C,). sqnr_db: against FP32 over all images and values, of the artifact where it ran, else
    of the simulation; fidelity_db: the artifact against the simulation.
    """

    name: str
    shape: tuple[int, ...]
    sqnr_db: Decibel
    simulated_sqnr_db: Decibel
    fidelity_db: Decibel | None


class SizeRecord(Record):
    """What holds at one input size, (height, width), on `images` images; as in `Accuracy` and `OutputRecord`.

    sqnr_db, fidelity_db: of the logits, or of the worst output. outputs: of a network without classifier.
    """

    size: tuple[int, int]
    images: int
    fp32_score: float | None = None
    score: float | None = None
    drop_pp: Interval | None = None
    agreement: float | None = None
    sqnr_db: Decibel
    simulated_sqnr_db: Decibel
    fidelity_db: Decibel | None
    outputs: list[OutputRecord] = []


class Latency(Record):
    """Times of one batch, milliseconds; throughput in images per second; cv is standard deviation / mean."""

    median_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    throughput: float
    cv: float
    runs: int
    samples_ms: list[float] = Field(default=[], description="at most 200 samples, evenly thinned, for the plot")


class LatencyComparison(Record):
    """Interleaved runs of the best float form (exactly folded, all runtime optimisations) and of the artifact."""

    fp32: Latency | None = None
    artifact: Latency | None = None
    batch: int = 1
    threads: int = 1
    runtime: str | None = None
    device: str | None = None
    settings: dict[str, str] = {}


class Sizes(Record):
    """Bytes on disk of the FP32 and the quantised artifact."""

    fp32: int | None = None
    artifact: int | None = None


class Gate(Record):
    """One promise of the target. passed is null, with the reason, where it could not be measured.

    score: what a drop is counted in, such as top-1. simulated, simulated_passed: what the simulated graph gives, in the same
    unit, and whether that is within the limit; null where the artifact itself was measured, and of gates that a simulation says
    nothing about.
    """

    name: str
    score: str | None = None
    limit: float
    measured: float | None
    low: float | None = None
    high: float | None = None
    passed: bool | None
    simulated: float | None = None
    simulated_passed: bool | None = None
    reason: str | None = None


class LayerError(Record):
    """Quantization of one layer's input: estimator chosen, held-out SQNR, range, error of each estimator tried."""

    layer: str
    operator: str
    estimator: str
    sqnr_db: Decibel
    low: float
    high: float
    scale: float
    zero_point: int
    bits: int
    observed_low: float
    observed_high: float
    saturated: float = Field(description="share of values outside the range")
    candidates: dict[str, float] = {}
    histogram: list[float] = Field(default=[], description="64 bins over observed_low..observed_high, share of values")
    weight_bits: int | None = None
    weight_sqnr_db: Decibel | None = None
    smoothing: str | None = Field(
        default=None, description="affine in front of the quantizer; none: the input as it is"
    )
    rounding: str | None = None
    block_sqnr_db: Decibel | None = Field(
        default=None, description="of the block's output, held-out calibration images"
    )
    plain_sqnr_db: Decibel | None = Field(
        default=None, description="the same without smoothing, nearest codes, old bias"
    )


class PreprocessRecord(Record):
    """How an image becomes the artifact's input.

    value_range: what the artifact takes; mean and std are folded into it unless it is "normalized". crop_offset: as in
    `Preprocess`.
    """

    crop_pct: float
    crop_mode: Literal["center", "squash"]
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: ValueRange
    input_type: InputType = "float32"
    crop_offset: CropOffset = "nearest"


class ModelRecord(Record):
    """The network that went in, and what was folded."""

    name: str
    source: FileName
    layout: str
    sha256: str
    parameters: int
    macs: int
    input_size: tuple[int, int]
    num_classes: int
    preprocess: PreprocessRecord | None = None
    folds: dict[str, float] = Field(
        default={}, description="exact rewrites applied, with the largest relative error measured"
    )


class BudgetMove(Record):
    """A layer that got more bits. to: "8-bit weights" or "float"; kl: loss it caused alone, nats; macs_share: 0..1."""

    layer: str
    to: str
    kl: float
    macs_share: float


class BudgetRecord(Record):
    """--max-drop: what was lost on held-out calibration images before and after, points, and what was given back for it.

    judged_by: the score, or "agreement" where calibration images have no labels of the model's classes.
    """

    max_drop: float
    judged_by: JudgedBy
    images: int
    before_pp: float
    before_kl: float
    after_pp: float
    after_kl: float
    latency_before_ms: float | None = Field(default=None, description="median of the artifact without the moves")
    moves: list[BudgetMove] = []


class QuantizationRecord(Record):
    """What was quantised and from which images. int8_macs: share of MACs that is quantised, 0..1."""

    scheme: str
    operators: list[str]
    int8_macs: float
    calibrator: str
    calibration_set: FileName
    calibration_images: int
    calibration_held_out: int
    calibration_sha256: str
    calibration_skipped: list[FileName] = []
    layers: list[LayerError] = []
    budget: BudgetRecord | None = None
    threads: int | None = Field(default=None, description="of torch while the plan was made; null in older reports")


class NormVerdict(Record):
    """One LayerNorm that was to be replaced.

    error_alone: squared error of what its unit computes, relative to that output's variance. kl_alone: nats; agreement_alone:
    per cent, with its 95 % interval; all on held-out calibration images, with this norm alone replaced. saved_ms: what its absence
    saves in the target's runtime, float network, batch 1; null where nothing was timed.
    """

    norm: str
    method: Literal["none", "frozen", "trained"]
    error_alone: float | None = None
    kl_alone: float | None = None
    agreement_alone: float | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    saved_ms: float | None = None
    verdict: Literal["replaced", "kept", "gone before"]
    why: str


class HeldOutLoss(Record):
    """What a changed network loses against the original on held-out calibration images.

    points: of the task's score where labels are known, else 100 minus agreement. expected_points: of that score if the original's
    probabilities were true. kl: nats. agreement: per cent, with its 95 % interval.
    """

    points: float
    expected_points: float
    kl: float
    agreement: float
    agreement_low: float
    agreement_high: float


class PruningRecord(Record):
    """Structured pruning. widths: hidden channels of each block; errors: relative error of each changed block's branch."""

    asked_macs: float
    widths: dict[str, int]
    errors: dict[str, float]
    loss: HeldOutLoss


class RecoveryRecord(Record):
    """Label-free distillation. minutes: processor time on a CPU, wall time on a GPU. kept: whether its result was taken."""

    epochs: int
    images: int
    minutes: float
    losses: list[float]
    before: HeldOutLoss
    after: HeldOutLoss
    kept: bool


class FloatLatency(Record):
    """Medians of the float networks before and after, ms, in the target's runtime, and their ratio with its 95 % interval."""

    before_ms: float
    after_ms: float
    speedup: float
    low: float
    high: float


class CompressionRecord(Record):
    """What was changed before quantization, and what it cost on held-out calibration images.

    images, held_out: calibration images used and those of them held out. max_drop: budget for replacing norms, points.
    latency: null where the target's runtime is not here or nothing was timed.
    """

    images: int
    held_out: int
    judged_by: JudgedBy
    max_drop: float | None = None
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    pruning: PruningRecord | None = None
    norms: list[NormVerdict] = []
    recovery: RecoveryRecord | None = None
    loss: HeldOutLoss
    latency: FloatLatency | None = None


class ExportCheck(Record):
    """A proof that needs no target hardware: a parser's verdict, or a run in a runtime that is not the target's."""

    name: str
    passed: bool
    result: str


class DeviceLayer(Record):
    """One layer that ran there, as the runtime itself lists it after its optimisations, with its median time."""

    name: str
    kind: str
    precision: str
    median_ms: float | None = None


class LayerFidelity(Record):
    """SQNR of one layer's output on the device against the simulation, on a few check vectors."""

    layer: str
    sqnr_db: Decibel | None


class DeviceOutput(Record):
    """One output of a network without classifier on the device, against FP32 and against the simulation, on the check vectors."""

    name: str
    sqnr_db: Decibel
    fidelity_db: Decibel


class DeviceLatency(Record):
    """Interleaved runs on the device of the float baseline in the target's float type, and of the artifact."""

    baseline: Latency
    artifact: Latency
    batch: int
    threads: int
    settings: dict[str, str] = {}


class DevicePower(Record):
    """Watts while idle and while each network ran back to back; total: the sensor's rails that were added up."""

    source: str
    total: str
    idle_w: float
    baseline_w: float
    artifact_w: float
    baseline_mj_per_image: float
    artifact_mj_per_image: float


class DeviceRecord(Record):
    """What the device kit measured where the artifact runs, on the check vectors of this very export.

    Accuracies are computed here from the answers that came back. fidelity_db is null where they are not finite; of a network
    without classifier, sqnr_db and fidelity_db are those of the worst of its outputs.
    """

    runtime: str
    machine: dict[str, str]
    started: str
    baseline_form: str
    artifact_form: str
    images: int
    score: str | None = None
    fp32: ScoreRecord | None = None
    artifact: ScoreRecord | None = None
    drop_pp: Interval | None = None
    agreement: float | None = None
    sqnr_db: Decibel | None = None
    fidelity_db: Decibel | None = None
    outputs: list[DeviceOutput] = []
    latency: DeviceLatency | None = None
    speedup: Interval | None = None
    power: DevicePower | None = None
    clocks: dict[str, str] = {}
    precisions: dict[str, int] = Field(default={}, description="layers of the artifact by the precision that ran")
    layers: list[DeviceLayer] = []
    layer_fidelity: list[LayerFidelity] = []
    messages: list[str] = []
    not_measured: dict[str, str] = {}


class StageCost(Record):
    """Wall time and peak resident memory of one stage; reused is true where a finished stage was taken over."""

    stage: str
    seconds: float
    peak_mib: float
    reused: bool = False


class ReportText:
    """A report in a few lines, for prompts, prints and notebooks; the pages say all of it."""

    def __repr__(self) -> str:
        report = cast("Report", self)
        figures = ", ".join(f"{name} {value}" for name, value in figures_of(report)[:3])
        return f"<Report of {_named(report)}: {_outcome(report)}; {figures}>"

    def __str__(self) -> str:
        report = cast("Report", self)
        rows = [f"{name:<22} {value}" for name, value in figures_of(report)]
        return "\n".join([f"{_named(report)}: {_outcome(report)}", *rows, *map(for_terminal, report.notes)])

    def _repr_html_(self) -> str:
        report = cast("Report", self)
        rows = "".join(
            f"<tr><td>{for_html(name)}</td><td>{for_html(value)}</td></tr>" for name, value in figures_of(report)
        )
        notes = "".join(f"<li>{for_html(note)}</li>" for note in report.notes)
        title = f"<caption><b>{for_html(_named(report))}</b>: {_outcome(report)}</caption>"
        return f"<table>{title}{rows}</table>" + (f"<ul>{notes}</ul>" if notes else "")


class Report(ReportText, Record):
    """One run: what was done to which model, for which target, and what was measured."""

    format: Literal[2] = 2
    target: str
    target_description: str
    exporter: str | None = None
    artifact: str | None
    probabilities: bool = Field(default=False, description="whether the artifact gives them beside its logits")
    model: ModelRecord
    compression: CompressionRecord | None = None
    quantization: QuantizationRecord
    accuracy: Accuracy
    outputs: list[OutputRecord] = Field(default=[], description="of a network without classifier")
    sizes: list[SizeRecord] = Field(default=[], description="further input sizes that the artifact takes")
    fidelity_db: Decibel | None = None
    latency: LatencyComparison
    speedup: float | None = None
    speedup_interval: Interval | None = None
    size_bytes: Sizes
    checks: list[ExportCheck] = []
    device: DeviceRecord | None = None
    gates: list[Gate]
    verdict: RunVerdict
    stages: list[StageCost] = []
    environment: dict[str, str] = {}
    notes: list[str] = []
    not_measured: dict[str, str] = {}


def _named(report: Report) -> str:
    return f"{for_terminal(report.model.name, 80)} for {for_terminal(report.target, 80)}"


def _outcome(report: Report) -> str:
    return {"passed": "passed", "failed": "missed a gate", "not_measured": "no gate measured"}[report.verdict]


def figures_of(report: Report) -> list[tuple[str, str]]:
    """Return the figures that were measured, each with its name, the most telling first."""
    accuracy, on = report.accuracy, "simulation"
    if accuracy.measured_on == "artifact":
        on = REFERENCE_EVALUATOR if accuracy.evaluated else "artifact"
    drop, sizes, score = accuracy.drop_pp, report.size_bytes, accuracy.score or "score"
    tops = {"FP32": accuracy.fp32, "simulated": accuracy.simulated, "artifact": accuracy.artifact}
    figures = {
        f"{score} drop ({on})": drop
        and f"{format.points(drop.value)} ({format.points(drop.low)} to {format.points(drop.high)})",
        f"agreement ({on})": None if accuracy.agreement is None else format.percent(accuracy.agreement),
        f"SQNR ({on})": None if accuracy.sqnr_db is None else format.decibel(accuracy.sqnr_db),
        **{
            f"{score} {name}": record and f"{format.percent(record.value)} of {record.n} images"
            for name, record in tops.items()
        },
        "fidelity": None if report.fidelity_db is None else format.decibel(report.fidelity_db),
        "speed-up": None if report.speedup is None else format.ratio(report.speedup),
        "size": None if sizes.artifact is None else format.size(sizes.artifact),
        "size of FP32": None if sizes.fp32 is None else format.size(sizes.fp32),
    }
    return [(name, value) for name, value in figures.items() if value]


def machine_name(device: DeviceRecord) -> str:
    """Name the machine: "Raspberry Pi 5 Model B Rev 1.0"; with its GPU where that has a name of its own."""
    gpu = device.machine.get("gpu")
    name = device.machine.get("name") or device.machine.get("architecture") or "an unnamed machine"
    return f"{name}, {gpu}" if gpu and gpu not in name else name
