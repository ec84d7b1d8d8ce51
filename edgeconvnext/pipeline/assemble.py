"""Bring together what the stages of a run measured."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from edgeconvnext.backends import backend_for
from edgeconvnext.evaluation.accuracy import compare, fidelity_db, not_measured
from edgeconvnext.evaluation.gates import gate_reasons, judge, verdict
from edgeconvnext.evaluation.outputs import worst
from edgeconvnext.files import tree_size
from edgeconvnext.machine import describe_device
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.logits import measured_logits
from edgeconvnext.pipeline.stages import Finished
from edgeconvnext.pipeline.stages.evaluation import ClassifierStages
from edgeconvnext.pipeline.stages.network import FOLDED
from edgeconvnext.pipeline.stages.values import BudgetValues, OutputsValues
from edgeconvnext.quantization.float16_notes import float16_notes, naming_overflows
from edgeconvnext.schema.report import (
    Accuracy,
    BudgetRecord,
    CompressionRecord,
    LatencyComparison,
    ModelRecord,
    PreprocessRecord,
    QuantizationRecord,
    Report,
    Sizes,
)

SHOWN_FLIPS = 24
SHOWN_SKIPPED = 5
THUMBNAIL = 96


def assemble(job: Job, finished: Finished) -> Report:
    """Build the report of a run from its stages."""
    answers = finished.measured.answers
    if isinstance(answers, ClassifierStages):
        with naming_overflows(finished.planned.plan.values.float16):
            accuracy, fidelity = _classifier_accuracy(job, answers)
        outputs = []
    else:
        accuracy, fidelity = _backbone_accuracy(job, answers.values)
        outputs = answers.values.outputs
    sizes = [] if finished.measured.sizes is None else finished.measured.sizes.values.sizes
    timings = None if finished.latency is None else finished.latency.values
    speedup = None if timings is None else timings.speedup
    noise = None if timings is None else timings.noise
    checks = [] if finished.artifact is None else finished.artifact.values.checks
    reasons = _reasons(job, accuracy, fidelity, finished)
    gates = judge(job.target, accuracy, fidelity, speedup, gate_reasons(reasons), outputs, sizes, noise)
    return Report(
        target=job.target.name,
        target_description=job.target.description,
        artifact=None if finished.artifact is None else backend_for(job.target).artifact,
        exporter=job.target.exporter,
        probabilities=job.target.output.probabilities,
        model=_model_record(job, finished),
        compression=_compression(finished),
        quantization=_quantization_record(job, finished),
        accuracy=accuracy,
        outputs=outputs,
        sizes=sizes,
        fidelity_db=fidelity,
        latency=LatencyComparison() if timings is None else timings.latency,
        speedup=None if speedup is None else speedup.value,
        speedup_interval=speedup,
        size_bytes=_sizes(job, finished),
        checks=checks,
        gates=gates,
        verdict=verdict(gates, checks),
        stages=finished.costs,
        environment=describe_device(),
        notes=[
            *job.notes,
            *float16_notes(finished.planned.plan.values.float16),
            *(
                []
                if noise is None
                else [f"The timings are noisy and decide no gate: {noise}. Time again on an idle machine."]
            ),
            *_skipped_notes(job, finished),
        ],
        not_measured=reasons,
    )


def _classifier_accuracy(job: Job, stages: ClassifierStages) -> tuple[Accuracy, float | None]:
    """Compare the logits that the stages saved; fidelity is None where the artifact did not run."""
    evaluation = job.evaluation
    logits = measured_logits(job, stages)
    result = compare(
        logits.fp32,
        logits.simulated,
        logits.artifact,
        None if evaluation.labels is None else evaluation.labels[logits.positions],
        job.class_names,
        [evaluation.images.ids[position] for position in logits.positions],
        evaluation.description,
        stages.accuracy.values.runtimes.get("artifact"),
        task=job.task[0].name,
    )
    result.task_reason = job.task[1]
    result.measure_with = evaluation.command or ""
    positions = {evaluation.images.ids[position]: int(position) for position in logits.positions}
    for flip in result.flips[:SHOWN_FLIPS]:
        flip.thumbnail = _thumbnail(job, positions[flip.image])
    return result, None if logits.artifact is None else fidelity_db(logits.artifact, logits.simulated)


def _backbone_accuracy(job: Job, values: OutputsValues) -> tuple[Accuracy, float | None]:
    """Sum up the outputs of a network without classifier by the worst one; fidelity is None where the artifact did not run."""
    outputs = values.outputs
    runtime = values.runtimes.get("artifact")
    task, why = job.task
    accuracy = Accuracy(
        task=task.name,
        task_reason=why,
        score=task.main_score,
        dataset=job.evaluation.description,
        images=values.images,
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


def _model_record(job: Job, finished: Finished) -> ModelRecord:
    from edgeconvnext.model.macs import count_macs, count_parameters

    model = job.model
    folds = dict(finished.planned.fold.values.errors)
    input_error = finished.planned.plan.values.input_error
    if input_error:
        folds["input_normalization"] = input_error
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
            input_type=job.target.input.type,
            crop_offset=model.preprocess.crop_offset,
        ),
    )


def _compression(finished: Finished) -> CompressionRecord | None:
    compress = finished.planned.compress
    return None if compress is None else compress.values.record


def _quantization_record(job: Job, finished: Finished) -> QuantizationRecord:
    plan, graph = finished.planned.plan.values, finished.quantized.stage.values
    latency_before_ms = None if finished.latency is None else finished.latency.values.unbudgeted_ms
    present = set(weighted_layers(job.model.module).values())
    return QuantizationRecord(
        scheme=graph.scheme,
        operators=[operator for operator in job.target.quantize.operators if operator in present],
        int8_macs=graph.int8_macs,
        calibrator=job.request.calibrator,
        calibration_set=job.calibration.name,
        calibration_images=plan.fit + plan.held_out,
        calibration_held_out=plan.held_out,
        calibration_sha256=job.calibration.list_sha256,
        calibration_skipped=plan.skipped,
        layers=graph.layers,
        budget=None if plan.budget is None else _budget_record(plan.budget, latency_before_ms),
        threads=plan.threads,
    )


def _budget_record(budget: BudgetValues, latency_before_ms: float | None) -> BudgetRecord:
    return BudgetRecord(
        max_drop=budget.max_drop,
        judged_by=budget.judged_by,
        images=budget.images,
        before_pp=budget.before.loss_pp,
        before_kl=budget.before.kl,
        after_pp=budget.after.loss_pp,
        after_kl=budget.after.kl,
        latency_before_ms=latency_before_ms,
        moves=budget.moves,
    )


def _sizes(job: Job, finished: Finished) -> Sizes:
    """Bytes on disk. Without an artifact: of the folded FP32 checkpoint, and of the tensors of the quantised graph."""
    folded = tree_size(finished.planned.fold.path(FOLDED))
    if finished.artifact is None:
        return Sizes(fp32=folded, artifact=finished.quantized.stage.values.tensor_bytes)
    backend = backend_for(job.target)
    baseline = finished.artifact.folder / backend.baseline
    is_fp32 = backend.limits.float_type == "float32" and baseline.exists()
    artifact_bytes = tree_size(finished.artifact.path(backend.artifact))
    return Sizes(fp32=tree_size(baseline) if is_fp32 else folded, artifact=artifact_bytes)


def _reasons(job: Job, accuracy: Accuracy, fidelity: float | None, finished: Finished) -> dict[str, str]:
    """Say for every null of the report why it is null."""
    backend = backend_for(job.target)
    absent = backend.not_run or backend.not_timed or "the artifact did not run"
    if finished.artifact is None:
        absent = "no artifact was written; run edgeconvnext export --from this run"
    reasons = not_measured(accuracy, job.evaluation.unlabelled_reason or "the images have no labels", absent)
    if finished.artifact is None:
        reasons["artifact"] = absent
    else:
        reasons |= finished.artifact.values.missing
    if fidelity is None:
        reasons["fidelity_db"] = absent
    if finished.latency is None:
        why = absent if backend.not_timed or finished.artifact is None else "switched off with --no-latency"
        timings = ("fp32", "artifact", "runtime", "device")
        reasons |= {f"latency.{name}": why for name in timings} | {"speedup": why, "speedup_interval": why}
    return reasons


def _skipped_notes(job: Job, finished: Finished) -> list[str]:
    """Name the images that could not be read, with their count."""
    answers = finished.measured.answers
    evaluated = answers.reference.values if isinstance(answers, ClassifierStages) else answers.values
    sets = (
        ("calibration", finished.planned.plan.values.skipped, len(job.calibration)),
        ("evaluation", evaluated.skipped, len(job.evaluation.images)),
    )
    notes = []
    for use, skipped, total in sets:
        if skipped:
            more = f" and {len(skipped) - SHOWN_SKIPPED} more" if len(skipped) > SHOWN_SKIPPED else ""
            named = "; ".join(skipped[:SHOWN_SKIPPED])
            notes.append(f"{len(skipped)} of {total} {use} images could not be read and were skipped: {named}{more}.")
    return notes
