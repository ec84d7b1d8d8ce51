"""From the folded network to the quantised graph: statistics, the plan, the graph of it, and what simulates it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgeconvnext.backends import backend_for, check_bits
from edgeconvnext.data.loader import batches, check_broken
from edgeconvnext.memory import give_back_free_memory
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network
from edgeconvnext.options.declaration import declared_options
from edgeconvnext.options.groups import Method
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.stages.network import exported, folded_model, for_target, images_of
from edgeconvnext.pipeline.stages.values import CalibrationCounts, PlanValues, QuantizedValues
from edgeconvnext.quantization.precision import BitPlan, asked_bits, resolve_precision
from edgeconvnext.run.directory import RunDirectory, StageResult
from edgeconvnext.targets import Target

if TYPE_CHECKING:
    from edgeconvnext.quantization.plan import QuantPlan
    from edgeconvnext.quantization.reconstruct import Reconstructed

PLAN = "plan.safetensors"
PLAN_STATISTICS = "plan_statistics.safetensors"
PLAN_TOML = "plan.toml"
# What --max-drop started from, to time what it cost.
UNBUDGETED_PLAN = "plan_before_budget.safetensors"
# What of a request decides how a plan is made.
METHOD = tuple(declared_options(Method))


def statistics(run: RunDirectory, job: Job, folded: StageResult) -> StageResult:
    """Gather activation statistics in one pass. Values: images fitted and held out, images skipped."""

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.quantization.statistics import collect_statistics

        module, preprocess = folded_model(folded, job).module, job.model.preprocess
        if value_range != "normalized":
            module, _ = for_target(folded_model(folded, job), job)
            preprocess = preprocess.with_value_range(value_range)
        fit = batches(job.calibration, preprocess, indices=job.fit, description="Calibrating")
        held_out = batches(job.calibration, preprocess, indices=job.held_out, description="Calibrating (held out)")
        gathered = collect_statistics(module, images_of(fit), images_of(held_out), job.target.quantize.outputs)
        check_broken(job.calibration, [*fit.skipped, *held_out.skipped])
        gathered.save(folder / "statistics.safetensors")
        return {
            "fit": gathered.fit_images,
            "held_out": gathered.held_out_images,
            "skipped": [f"{image.id}: {image.reason}" for image in [*fit.skipped, *held_out.skipped]],
        }

    # Only the stem sees the image itself: without it, one pass serves targets of every input range.
    value_range = job.target.input.value_range if "stem" in job.target.quantize.operators else "normalized"
    kinds = set(weighted_layers(job.model.module).values())
    inputs = {
        "folded": folded.key,
        "images": job.calibration.fingerprint,
        "fit": job.fit,
        "outputs": [output for output in job.target.quantize.outputs if output in kinds],
        "value_range": value_range,
    }
    return run.stage("statistics", inputs, make, CalibrationCounts)


def plan(run: RunDirectory, job: Job, folded: StageResult, gathered: StageResult | None) -> StageResult:
    """Choose bits, affines, grids and codes. Files: plan.safetensors, statistics of what is quantised, plan.toml.

    gathered: statistics of the float network, for effort "quick", which takes each tensor by itself; without them layers are
    reconstructed one after the other. Values: images fitted and held out, images skipped, input_error, budget,
    threads.
    """

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.quantization.plan_storage import save_plan
        from edgeconvnext.quantization.planning import build_plan
        from edgeconvnext.quantization.statistics import Statistics

        module, error = for_target(folded_model(folded, job), job)
        check_bits(job.target, asked_bits(module, job.target, job.bits))
        request = job.request
        budget: dict[str, Any] | None = None
        if gathered is None:
            result, values, budget = _reconstructed(job, module, folder)
            save_plan(result.plan, result.module, folder / PLAN)
            result.statistics.save(folder / PLAN_STATISTICS)
        else:
            stored = Statistics.load(gathered.path("statistics.safetensors"))
            chosen = build_plan(
                module, stored, job.target, calibrator=request.calibrator, effort=request.effort, bits=job.bits
            )
            save_plan(chosen, module, folder / PLAN)
            stored.save(folder / PLAN_STATISTICS)
            values = gathered.values
        bits = job.bits if budget is None else BitPlan.model_validate(budget["bits"])
        text = bits.toml_with(resolve_precision(module, job.target, bits))
        (folder / PLAN_TOML).write_text(text, encoding="utf-8")
        counts = {key: values[key] for key in ("fit", "held_out", "skipped")}
        return {**counts, "input_error": error, "budget": budget, "threads": torch.get_num_threads()}

    inputs = {
        "folded": folded.key,
        "statistics": None if gathered is None else gathered.key,
        "images": job.calibration.fingerprint,
        "fit": job.fit,
        "labels": None if job.calibration_labels is None else job.calibration_labels.tolist(),
        "target": _what_a_plan_reads(job.target),
        "bits": job.bits.model_dump(),
        **{name: getattr(job.request, name) for name in METHOD},
    }
    return run.stage("plan", inputs, make, PlanValues)


def _what_a_plan_reads(target: Target) -> dict[str, Any]:
    """Return what of a target decides its plan: targets that differ in the file they write only share one."""
    return {
        "allowed_bits": backend_for(target).limits.allowed_bits(target),
        "float_type": target.float_type,
        "value_range": target.input.value_range,
        "quantize": target.quantize.model_dump(mode="json"),
        "gelu": target.layout.gelu,
    }


def _reconstructed(
    job: Job, module: Network, folder: Path
) -> tuple[Reconstructed, dict[str, Any], dict[str, Any] | None]:
    """Reconstruct the network's layers, within a budget where one is set; return also what was read and what the budget cost."""
    from edgeconvnext.quantization.plan_storage import save_plan
    from edgeconvnext.quantization.reconstruct import reconstruct
    from edgeconvnext.tuning.budget import within_budget

    preprocess = job.model.preprocess.with_value_range(job.target.input.value_range)
    read: dict[str, Any] = {}

    def with_bits(bits: BitPlan) -> Reconstructed:
        fit = batches(job.calibration, preprocess, indices=job.fit, description="Reading images")
        held_out = batches(job.calibration, preprocess, indices=job.held_out, description="Reading images (held out)")
        result = reconstruct(
            module,
            job.target,
            resolve_precision(module, job.target, bits),
            images_of(fit),
            images_of(held_out),
            preprocess=job.model.preprocess,
            folder=folder,
            options=job.request.reconstruction_options,
        )
        skipped = [*fit.skipped, *held_out.skipped]
        check_broken(job.calibration, skipped)
        read.update(
            fit=result.statistics.fit_images,
            held_out=result.statistics.held_out_images,
            skipped=[f"{image.id}: {image.reason}" for image in skipped],
        )
        return result

    if job.request.max_drop is None:
        return with_bits(job.bits), read, None
    stream = batches(job.calibration, preprocess, indices=job.held_out, description="Reading images (held out)")
    pairs = [(batch.images, batch.indices) for batch in stream]
    labels = job.calibration_labels
    outcome = within_budget(
        module,
        job.bits,
        with_bits,
        [images for images, _ in pairs],
        None if labels is None else labels[[index for _, indices in pairs for index in indices]],
        max_drop=job.request.max_drop,
        input_size=job.model.preprocess.input_size,
    )
    if outcome.moves:
        save_plan(outcome.first.plan, outcome.first.module, folder / UNBUDGETED_PLAN)
    return outcome.result, read, outcome.record()


def quantized(run: RunDirectory, job: Job, folded: StageResult, planned: StageResult) -> StageResult:
    """Build the quantised graph of a plan, which stays in memory: what is written runs nothing when it is read.

    Values: layers (report.schema.LayerError), int8_macs, scheme, tensor_bytes (of the graph's weights and constants).
    """

    def make(_folder: Path) -> dict[str, Any]:
        from edgeconvnext.model.macs import layer_macs
        from edgeconvnext.quantization.layer_errors import layer_errors, scheme
        from edgeconvnext.quantization.plan_storage import load_plan
        from edgeconvnext.quantization.statistics import Statistics

        module, _ = for_target(folded_model(folded, job), job)
        chosen, prepared = load_plan(planned.path(PLAN), module)
        stored = Statistics.load(planned.path(PLAN_STATISTICS))
        macs = layer_macs(module.config, job.model.preprocess.input_size)
        layers = layer_errors(module, prepared, chosen, stored)
        del module, stored  # the graph needs room: 0.1 of a Tiny's 1 GiB
        program = _build(job, planned, prepared, chosen)
        return {
            "layers": [layer.model_dump() for layer in layers],
            "int8_macs": sum(macs[layer] for layer in chosen.weights) / sum(macs.values()),
            "scheme": scheme(chosen, job.target, macs),
            "tensor_bytes": sum(tensor.nbytes for tensor in _tensors(program)),
        }

    inputs = {
        "plan": planned.key,
        "sizes": job.sizes,
        "target": job.target.model_dump(mode="json", exclude={"gates", "description", "name", "runtime"}),
    }
    return run.stage("quantized", inputs, make, QuantizedValues)


def quantized_program(job: Job, stages: Mapping[str, StageResult]) -> ExportedProgram:
    """Return the quantised graph, float32; built once for a job, from the folded network and the plan in `stages`."""
    from edgeconvnext.quantization.plan_storage import load_plan

    planned = stages["plan"]
    if planned.key not in job.programs:
        module, _ = for_target(folded_model(stages["fold"], job), job)
        chosen, prepared = load_plan(planned.path(PLAN), module)
        del module
        _build(job, planned, prepared, chosen)
    return job.programs[planned.key]


def _build(job: Job, planned: StageResult, prepared: Network, chosen: QuantPlan) -> ExportedProgram:
    from edgeconvnext.quantization.program import quantize_program

    give_back_free_memory()
    program = job.programs[planned.key] = quantize_program(exported(job, prepared), chosen)
    return program


def _tensors(program: ExportedProgram) -> list[torch.Tensor]:
    constants = [value for value in program.constants.values() if isinstance(value, torch.Tensor)]
    return [*program.state_dict.values(), *constants]


def simulation(job: Job, stages: Mapping[str, StageResult]) -> GraphModule:
    """The quantised graph in the target's float type, ready to run."""
    from edgeconvnext.quantization.simulate import simulator

    return simulator(quantized_program(job, stages), job.target.float_type)
