"""Bring together what the stages of a run measured."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from edgeconvnext.backends import backend_for
from edgeconvnext.evaluation.accuracy import compare, fidelity_db, not_measured
from edgeconvnext.evaluation.gates import gate_reasons, judge, passed
from edgeconvnext.evaluation.outputs import worst
from edgeconvnext.machine import describe_device
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.logits import measured_logits
from edgeconvnext.run.directory import RunDirectory, StageResult, tree_size
from edgeconvnext.run.manifest import package_versions
from edgeconvnext.schema.report import (
    Accuracy,
    BudgetRecord,
    CompressionRecord,
    ExportCheck,
    Interval,
    LatencyComparison,
    ModelRecord,
    OutputRecord,
    PreprocessRecord,
    QuantizationRecord,
    Report,
    SizeRecord,
    Sizes,
)

SHOWN_FLIPS = 24
SHOWN_SKIPPED = 5
THUMBNAIL = 96


def assemble(run: RunDirectory, job: Job, stages: dict[str, StageResult], artifact_name: str | None) -> Report:
    """Build the report of a run from its stages.

    stages: by name; "artifact" and "latency" may be absent. artifact_name: the artifact's file in the run directory.
    """
    artifact = None if artifact_name is None else run.path / artifact_name
    outputs = [OutputRecord.model_validate(output) for output in _values(stages, "outputs").get("outputs", [])]
    accuracy, fidelity = _backbone_accuracy(job, stages, outputs) if outputs else _accuracy(job, stages)
    reasons = _reasons(job, accuracy, fidelity, stages, artifact_name)
    timings = stages["latency"].values if "latency" in stages else {}
    interval = Interval.model_validate(timings["speedup"]) if timings.get("speedup") else None
    sizes = [SizeRecord.model_validate(record) for record in _values(stages, "sizes").get("sizes", [])]
    gates = judge(job.target, accuracy, fidelity, interval, gate_reasons(reasons), outputs, sizes)
    checks = [ExportCheck.model_validate(check) for check in _values(stages, "artifact").get("checks", [])]
    return Report(
        target=job.target.name,
        target_description=job.target.description,
        artifact=artifact_name,
        exporter=job.target.exporter,
        model=_model_record(job, stages),
        compression=_compression(stages),
        quantization=_quantization_record(job, stages),
        accuracy=accuracy,
        outputs=outputs,
        sizes=sizes,
        fidelity_db=fidelity,
        latency=LatencyComparison.model_validate(timings.get("latency", {})),
        speedup=None if interval is None else interval.value,
        speedup_interval=interval,
        size_bytes=_sizes(job, stages, artifact),
        checks=checks,
        gates=gates,
        passed=passed(gates) and all(check.passed for check in checks),
        stages=[stage.cost for stage in stages.values()],
        environment=describe_device() | package_versions(),
        notes=[*job.notes, *_skipped_notes(job, stages)],
        not_measured=reasons,
    )


def _accuracy(job: Job, stages: dict[str, StageResult]) -> tuple[Accuracy, float | None]:
    """Compare the logits that the stages saved; fidelity is None where the artifact did not run."""
    evaluation = job.evaluation
    answers = measured_logits(job, stages)
    fp32, simulated, positions = answers["fp32"], answers["simulated"], answers["positions"]
    artifact = answers.get("artifact")
    result = compare(
        fp32,
        simulated,
        artifact,
        None if evaluation.labels is None else evaluation.labels[positions],
        job.class_names,
        [evaluation.images.ids[position] for position in positions],
        evaluation.description,
        stages["accuracy"].values["runtimes"].get("artifact"),
    )
    where = {evaluation.images.ids[position]: int(position) for position in positions}
    for flip in result.flips[:SHOWN_FLIPS]:
        flip.thumbnail = _thumbnail(job, where[flip.image])
    return result, None if artifact is None else fidelity_db(artifact, simulated)


def _backbone_accuracy(
    job: Job, stages: dict[str, StageResult], outputs: list[OutputRecord]
) -> tuple[Accuracy, float | None]:
    """Sum up the outputs of a network without classifier by the worst one; fidelity is None where the artifact did not run."""
    values = stages["outputs"].values
    runtime = values["runtimes"].get("artifact")
    accuracy = Accuracy(
        dataset=job.evaluation.description,
        images=values["images"],
        sqnr_db=worst(outputs, "sqnr_db"),
        simulated_sqnr_db=worst(outputs, "simulated_sqnr_db"),
        measured_on="simulation" if runtime is None else "artifact",
        runtime=runtime,
    )
    return accuracy, worst(outputs, "fidelity_db")


def _thumbnail(job: Job, position: int) -> str:
    """Return a small JPEG of an evaluation image as a data: URI."""
    image = job.evaluation.images.read(position).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _model_record(job: Job, stages: dict[str, StageResult]) -> ModelRecord:
    from edgeconvnext.model.macs import count_macs, count_parameters

    model = job.model
    folds = dict(stages["fold"].values["errors"])
    if stages["plan"].values["input_error"]:
        folds["input_normalization"] = stages["plan"].values["input_error"]
    return ModelRecord(
        name=model.name,
        source=Path(model.source).name if Path(model.source).exists() else model.source,
        layout=model.layout,
        sha256=model.sha256,
        parameters=count_parameters(model.config),
        macs=count_macs(model.config, model.preprocess.input_size),
        input_size=model.preprocess.input_size,
        num_classes=model.config.num_classes,
        folds=folds,
        preprocess=PreprocessRecord(
            crop_pct=model.preprocess.crop_pct,
            crop_mode=model.preprocess.crop_mode,
            interpolation=model.preprocess.interpolation,
            mean=model.preprocess.mean,
            std=model.preprocess.std,
            value_range=job.target.input.value_range,
        ),
    )


def _compression(stages: dict[str, StageResult]) -> CompressionRecord | None:
    record = _values(stages, "compress").get("record")
    return None if record is None else CompressionRecord.model_validate(record)


def _quantization_record(job: Job, stages: dict[str, StageResult]) -> QuantizationRecord:
    gathered, plan, timings = stages["plan"].values, stages["quantized"].values, _values(stages, "latency")
    budget = gathered["budget"]
    present = set(weighted_layers(job.model.module).values())
    return QuantizationRecord(
        scheme=plan["scheme"],
        operators=[operator for operator in job.target.quantize.operators if operator in present],
        int8_macs=plan["int8_macs"],
        calibrator=job.request.calibrator,
        calibration_set=job.calibration.name,
        calibration_images=gathered["fit"] + gathered["held_out"],
        calibration_held_out=gathered["held_out"],
        calibration_sha256=job.calibration.list_sha256,
        calibration_skipped=gathered["skipped"],
        layers=plan["layers"],
        budget=None if budget is None else BudgetRecord.from_search(budget, timings.get("unbudgeted_ms")),
        threads=gathered["threads"],
    )


def _sizes(job: Job, stages: dict[str, StageResult], artifact: Path | None) -> Sizes:
    """Bytes on disk. Without an artifact: of the folded FP32 checkpoint, and of the tensors of the quantised graph."""
    folded = tree_size(stages["fold"].path("folded.safetensors"))
    if artifact is None:
        return Sizes(fp32=folded, artifact=stages["quantized"].values["tensor_bytes"])
    backend = backend_for(job.target)
    baseline = artifact.parent / backend.baseline
    is_fp32 = backend.limits.float_type == "float32" and baseline.exists()
    return Sizes(fp32=tree_size(baseline) if is_fp32 else folded, artifact=tree_size(artifact))


def _reasons(
    job: Job, accuracy: Accuracy, fidelity: float | None, stages: dict[str, StageResult], artifact_name: str | None
) -> dict[str, str]:
    """Say for every null of the report why it is null."""
    backend = backend_for(job.target)
    absent = backend.not_run or backend.not_timed or "the artifact did not run"
    if artifact_name is None:
        absent = "no artifact was written; run edgeconvnext export --from this run"
    reasons = not_measured(accuracy, job.evaluation.unlabelled_reason or "the images have no labels", absent)
    reasons |= _values(stages, "artifact").get("missing", {})
    if artifact_name is None:
        reasons["artifact"] = absent
    if fidelity is None:
        reasons["fidelity_db"] = absent
    if "latency" not in stages:
        why = absent if backend.not_timed or artifact_name is None else "switched off with --no-latency"
        timings = ("fp32", "artifact", "runtime", "device")
        reasons |= {f"latency.{name}": why for name in timings} | {"speedup": why, "speedup_interval": why}
    return reasons


def _skipped_notes(job: Job, stages: dict[str, StageResult]) -> list[str]:
    """Name the images that could not be read, with their count."""
    read = (
        ("calibration", "plan", len(job.calibration)),
        ("evaluation", "outputs" if "outputs" in stages else "reference", len(job.evaluation.images)),
    )
    notes = []
    for use, stage, total in read:
        skipped = stages[stage].values["skipped"]
        if skipped:
            more = f" and {len(skipped) - SHOWN_SKIPPED} more" if len(skipped) > SHOWN_SKIPPED else ""
            named = "; ".join(skipped[:SHOWN_SKIPPED])
            notes.append(f"{len(skipped)} of {total} {use} images could not be read and were skipped: {named}{more}.")
    return notes


def _values(stages: dict[str, StageResult], name: str) -> dict[str, Any]:
    return stages[name].values if name in stages else {}
