"""Calibration: statistics of the folded network's activations, and the plan that is made from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgeconvnext.backends import backend_for, check_bits
from edgeconvnext.data.loader import BatchStream, SkippedImage, batches, check_broken
from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.pipeline.job import METHOD, Job
from edgeconvnext.pipeline.stages.images import images_of, skipped_texts
from edgeconvnext.pipeline.stages.network import TargetNetwork, compress, fold
from edgeconvnext.pipeline.stages.values import (
    BudgetValues,
    CalibrationCounts,
    CompressValues,
    Float16Values,
    FoldValues,
    PlanValues,
)
from edgeconvnext.progress import progress_bar
from edgeconvnext.quantization.layer_checkpoints import LayerCheckpoints, remove_checkpoints
from edgeconvnext.quantization.precision import BitPlan, Precision, asked_bits, resolve_precision
from edgeconvnext.run.directory import RunDirectory, StageResult
from edgeconvnext.run.stage_record import json_sha256
from edgeconvnext.targets import Target

if TYPE_CHECKING:
    from edgeconvnext.quantization.float16_range import Float16Range
    from edgeconvnext.quantization.reconstruct import Reconstructed
    from edgeconvnext.quantization.statistics import Statistics

STATISTICS = "statistics.safetensors"
PLAN = "plan.safetensors"
# Statistics of what the plan quantises.
PLAN_STATISTICS = "plan_statistics.safetensors"
PLAN_TOML = "plan.toml"
# What --max-drop started from, to time what it cost.
UNBUDGETED_PLAN = "plan_before_budget.safetensors"
# Layers that are finished while others are still quantised.
LAYERS = "stages/plan.layers"


@dataclass(frozen=True)
class Planned:
    """A network with its plan, and the stages on the way there. compress, statistics: None where the job has no such stage."""

    network: TargetNetwork
    plan: StageResult[PlanValues]
    compress: StageResult[CompressValues] | None = None
    statistics: StageResult[CalibrationCounts] | None = None

    @property
    def fold(self) -> StageResult[FoldValues]:
        return self.network.folded


def plan_network(run: RunDirectory, job: Job) -> Planned:
    """Compress the network where asked, fold it, and plan its quantization."""
    compressed = None if job.request.compression is None else compress(run, job)
    with progress_bar("Folding", None):
        folded = fold(run, job, compressed)
    network = TargetNetwork(job, folded)
    statistics = gather_statistics(run, network) if job.request.effort == "quick" else None
    plan = make_plan(run, network, statistics)
    return Planned(_as_planned(network, plan), plan, compressed, statistics)


def stored_plan(run: RunDirectory, job: Job) -> Planned:
    """Return the folded network and the plan of a finished run as they are stored.

    Raises RunDirectoryError where either is not there, its files changed, or another version made it.
    """
    folded, plan = run.stored("fold", FoldValues), run.stored("plan", PlanValues)
    if folded is None or plan is None:
        raise RunDirectoryError(
            f"{run.path} holds no {'plan' if folded else 'folded network'} to work on; another version made it. Make it again "
            f"with the same command and --output {run.path}."
        )
    return Planned(_as_planned(TargetNetwork(job, folded, input_error=plan.values.input_error), plan), plan)


def _as_planned(network: TargetNetwork, plan: StageResult[PlanValues]) -> TargetNetwork:
    """Return the network that a plan is of: some of its residual streams may be scaled."""
    return network.with_streams(() if plan.values.float16 is None else plan.values.float16.stream_exponents)


def gather_statistics(run: RunDirectory, network: TargetNetwork) -> StageResult[CalibrationCounts]:
    """Gather activation statistics in one pass. File: STATISTICS."""
    job = network.job

    def make(folder: Path) -> CalibrationCounts:
        from edgeconvnext.quantization.statistics import collect_statistics

        module = network.folded_model().module if value_range == "normalized" else network.module
        preprocess = job.model.preprocess.with_value_range(value_range)
        fit = batches(job.calibration, preprocess, indices=job.fit, description="Calibrating")
        held_out = batches(job.calibration, preprocess, indices=job.held_out, description="Calibrating (held out)")
        statistics = collect_statistics(module, images_of(fit), images_of(held_out), job.target.quantize.outputs)
        check_broken(job.calibration, [*fit.skipped, *held_out.skipped])
        statistics.save(folder / STATISTICS)
        return _counts(statistics, [*fit.skipped, *held_out.skipped])

    # Only the stem sees the image itself: without it, one pass serves targets of every input range.
    value_range = job.target.input.value_range if "stem" in job.target.quantize.operators else "normalized"
    kinds = set(weighted_layers(job.model.module).values())
    inputs = {
        "folded": network.folded.key,
        "images": job.calibration.fingerprint,
        "fit": job.fit,
        "outputs": [output for output in job.target.quantize.outputs if output in kinds],
        "value_range": value_range,
    }
    return run.stage("statistics", inputs, make, CalibrationCounts)


def make_plan(
    run: RunDirectory, network: TargetNetwork, statistics: StageResult[CalibrationCounts] | None
) -> StageResult[PlanValues]:
    """Choose bits, channel scaling, qparams and codes. Files: PLAN, PLAN_STATISTICS, PLAN_TOML, maybe UNBUDGETED_PLAN.

    statistics: those of the float network, for effort "quick", which takes each tensor by itself; without them layers are
    reconstructed one after the other.
    """
    job = network.job

    def make(folder: Path) -> PlanValues:
        check_bits(job.target, asked_bits(network.module, job.target, job.bits))
        budget: BudgetValues | None = None
        if statistics is None:
            counts, budget, float16 = _reconstruct(network, folder, steps)
        else:
            counts = statistics.values
            float16 = _plan_each_tensor(network, statistics, folder)
        bits = job.bits if budget is None else budget.bits
        text = bits.toml_with(resolve_precision(network.module, job.target, bits))
        (folder / PLAN_TOML).write_text(text, encoding="utf-8")
        return PlanValues(
            fit=counts.fit,
            held_out=counts.held_out,
            skipped=counts.skipped,
            input_error=network.input_error,
            budget=budget,
            float16=None if float16 is None else Float16Values.model_validate(asdict(float16)),
            threads=torch.get_num_threads(),
        )

    inputs = {
        "folded": network.folded.key,
        "statistics": None if statistics is None else statistics.key,
        "images": job.calibration.fingerprint,
        "fit": job.fit,
        "labels": None if job.calibration_labels is None else job.calibration_labels.tolist(),
        "target": _what_a_plan_reads(job.target),
        "bits": job.bits.model_dump(),
        **{name: getattr(job.request, name) for name in METHOD},
    }
    layers = run.path / LAYERS
    steps = _Steps(layers, run.stage_key("plan", inputs), run.own_key)
    steps.forget_others()
    result = run.stage("plan", inputs, make, PlanValues)
    remove_checkpoints(layers)
    return result


def _what_a_plan_reads(target: Target) -> dict[str, Any]:
    """Return what of a target decides its plan: targets that differ in the file they write only share one."""
    return {
        "allowed_bits": backend_for(target).limits.allowed_bits(target),
        "float_type": target.float_type,
        "value_range": target.input.value_range,
        "quantize": target.quantize.model_dump(mode="json"),
        "gelu": target.layout.gelu,
    }


def _plan_each_tensor(
    network: TargetNetwork, statistics: StageResult[CalibrationCounts], folder: Path
) -> Float16Range | None:
    """Plan each tensor by itself, from statistics of the float network; return what float16 does not hold of it.

    Files: PLAN, PLAN_STATISTICS. None is returned where the target's float type is another one.
    """
    from edgeconvnext.quantization.float16_range import fit_float16
    from edgeconvnext.quantization.plan_storage import save_plan
    from edgeconvnext.quantization.planning import build_plan
    from edgeconvnext.quantization.statistics import Statistics

    job, module = network.job, network.module
    tensors = Statistics.load(statistics.path(STATISTICS))
    float16 = None
    if job.target.float_type == "float16":
        module, float16 = fit_float16(module, tensors.peaks)
        tensors = tensors.for_scaled_streams(module, float16.stream_exponents)
    plan = build_plan(
        module, tensors, job.target, calibrator=job.request.calibrator, effort=job.request.effort, bits=job.bits
    )
    if float16 is not None:
        plan = replace(plan, stream_exponents=float16.stream_exponents)
    save_plan(plan, module, folder / PLAN)
    tensors.save(folder / PLAN_STATISTICS)
    return float16


@dataclass(frozen=True)
class _Steps:
    """Where finished layers are kept while the plan stage of this key runs. user_key: as `RunDirectory.own_key`."""

    folder: Path
    key: str
    user_key: bytes | None

    def with_bits(self, precisions: dict[str, Precision]) -> LayerCheckpoints:
        """Return the steps of the reconstruction with these bits: a budget makes several."""
        bits = {layer: asdict(precision) for layer, precision in precisions.items()}
        return LayerCheckpoints(self.folder / self.key, json_sha256({"plan": self.key, "bits": bits}), self.user_key)

    def forget_others(self) -> None:
        """Remove what other plans left."""
        if self.folder.is_symlink():
            remove_checkpoints(self.folder)
        for other in self.folder.glob("*"):
            if other.name != self.key or other.is_symlink():
                remove_checkpoints(other)


def _reconstruct(
    network: TargetNetwork, folder: Path, steps: _Steps
) -> tuple[CalibrationCounts, BudgetValues | None, Float16Range | None]:
    """Reconstruct the network's layers, within a budget where one is set.

    Return what was read, what the budget cost, and what float16 does not hold.

    Files: PLAN, PLAN_STATISTICS, UNBUDGETED_PLAN where the budget gave layers back.
    """
    from edgeconvnext.quantization.plan_storage import save_plan

    reconstruction = _Reconstruction(network, folder, steps)
    if network.job.request.max_drop is None:
        result, budget = reconstruction.with_bits(network.job.bits), None
    else:
        result, budget = reconstruction.within_budget(network.job.request.max_drop)
    save_plan(result.plan, result.module, folder / PLAN)
    result.statistics.save(folder / PLAN_STATISTICS)
    assert reconstruction.counts is not None
    return reconstruction.counts, budget, result.float16


class _Reconstruction:
    """The network's layers reconstructed on the job's calibration images. counts: the images of the latest one.

    folder: of the plan stage, where inputs of blocks are stored meanwhile.
    """

    def __init__(self, network: TargetNetwork, folder: Path, steps: _Steps) -> None:
        self.steps = steps
        self.job = network.job
        self.module = network.module
        self.folder = folder
        self.counts: CalibrationCounts | None = None
        self._preprocess = self.job.model.preprocess.with_value_range(self.job.target.input.value_range)

    def with_bits(self, bits: BitPlan) -> Reconstructed:
        """Reconstruct the network with these bits."""
        from edgeconvnext.quantization.reconstruct import reconstruct

        job = self.job
        fit, held_out = self._read(job.fit, "Reading images"), self._held_out()
        precisions = resolve_precision(self.module, job.target, bits)
        result = reconstruct(
            self.module,
            job.target,
            precisions,
            images_of(fit),
            images_of(held_out),
            preprocess=job.model.preprocess,
            folder=self.folder,
            options=job.request.reconstruction_options,
            checkpoints=self.steps.with_bits(precisions),
        )
        skipped = [*fit.skipped, *held_out.skipped]
        check_broken(job.calibration, skipped)
        self.counts = _counts(result.statistics, skipped)
        return result

    def within_budget(self, max_drop: float) -> tuple[Reconstructed, BudgetValues]:
        """Reconstruct the network so that at most `max_drop` points are lost on held-out images; return also what that cost."""
        from edgeconvnext.quantization.plan_storage import save_plan
        from edgeconvnext.tuning.budget import within_budget

        pairs = [(batch.images, batch.indices) for batch in self._held_out()]
        labels = self.job.calibration_labels
        outcome = within_budget(
            self.module,
            self.job.bits,
            self.with_bits,
            [images for images, _ in pairs],
            None if labels is None else labels[[index for _, indices in pairs for index in indices]],
            max_drop=max_drop,
            input_size=self.job.model.preprocess.input_size,
        )
        if outcome.moves:
            save_plan(outcome.first.plan, outcome.first.module, self.folder / UNBUDGETED_PLAN)
        return outcome.result, BudgetValues.model_validate(outcome.record())

    def _held_out(self) -> BatchStream:
        return self._read(self.job.held_out, "Reading images (held out)")

    def _read(self, indices: list[int], description: str) -> BatchStream:
        return batches(self.job.calibration, self._preprocess, indices=indices, description=description)


def _counts(statistics: Statistics, skipped: list[SkippedImage]) -> CalibrationCounts:
    """Count the images that statistics are of."""
    return CalibrationCounts(
        fit=statistics.fit_images, held_out=statistics.held_out_images, skipped=skipped_texts(skipped)
    )
