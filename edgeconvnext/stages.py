"""The stages of a run: each a function from what it reads to files in the run directory.

(compress ->) fold -> (statistics ->) plan -> quantized -> artifact, and reference + artifact -> accuracy -> latency -> device; a
network without classifier has "outputs" in place of reference and accuracy. A stage whose inputs did not change is taken over
from this run or another one beside it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.loader import BatchStream, batches, check_broken
from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.export.artifact import ARTIFACTS
from edgeconvnext.job import KEPT_METHOD, Job
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.input_size import size_text
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.network import Network
from edgeconvnext.quantize.precision import BitPlan
from edgeconvnext.runs import RunDirectory, StageResult
from edgeconvnext.targets import Target
from edgeconvnext.validate.device import describe_device

if TYPE_CHECKING:
    from edgeconvnext.quantize.reconstruct import Reconstructed
    from edgeconvnext.search.analysis import Analysis, Setting
    from edgeconvnext.validate.latency import LatencyResult
    from edgeconvnext.validate.runners import Runner

# On a CPU, batches of 8 are as fast as larger ones, and a Tiny at 224 takes 200 MiB less than with 16.
BATCH = 8
# Images that networks are compared on at sizes other than their own: 996 at 224x224, 30 at 1280x1280; and how many at once.
EVALUATED_PIXELS = 50_000_000
PIXELS_AT_ONCE = 1_000_000
# Exact rewrites are proven on so many real images.
PROOF_IMAGES = 16
COMPRESSED = "compressed.safetensors"
# Where recovery is saved while it runs.
RECOVERY = "recovery.pt"
FOLDED = "folded.safetensors"
PROGRAM = "quantized.pt2"
PLAN = "plan.safetensors"
PLAN_STATISTICS = "plan_statistics.safetensors"
PLAN_TOML = "plan.toml"
# What --max-drop started from, to time what it cost.
UNBUDGETED_PLAN = "plan_before_budget.safetensors"
ANALYSIS = "analysis.json"
# What of a request decides how a plan is made.
METHOD = ("calibrator", "effort", *KEPT_METHOD)


def model_key(job: Job) -> dict[str, Any]:
    """Everything about the model that a stage's result depends on."""
    return {"weights": job.model.sha256, "config": asdict(job.model.config), "preprocess": asdict(job.model.preprocess)}


def compress(run: RunDirectory, job: Job) -> StageResult:
    """Prune, replace LayerNorms and recover as asked. Files: compressed.safetensors. Values: record (CompressionRecord)."""
    options, images = job.request.compress, job.whole_set
    assert options is not None and images is not None
    checkpoint = run.path / RECOVERY

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.search.compress import compress, compressed_model

        result = compress(job.model, images, options, job.target, checkpoint=checkpoint)
        save_checkpoint(compressed_model(job.model, result), folder / COMPRESSED)
        return {"record": result.record.model_dump()}

    inputs = {
        "model": model_key(job),
        "images": images.fingerprint,
        "options": asdict(options),
        "target": job.target.runtime.name,
    }
    result = run.stage("compress", inputs, make)
    checkpoint.unlink(missing_ok=True)
    return result


def fold(run: RunDirectory, job: Job, compressed: StageResult | None = None) -> StageResult:
    """Fold the model, or what compressing made of it, exactly, prove it on real images, and save it. Values: errors by rewrite."""

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.rewrite.exact import fold_exact

        module = job.model.module if compressed is None else load_model(compressed.path(COMPRESSED)).module
        result = fold_exact(module, proof_images(job))
        folded = replace(job.model, module=result.module, config=result.module.config)
        save_checkpoint(folded, folder / FOLDED)
        return {"errors": result.errors}

    inputs = {"model": model_key(job), "images": job.calibration.fingerprint}
    if compressed is not None:
        inputs["compressed"] = compressed.key
    return run.stage("fold", inputs, make)


def folded_model(stage: StageResult, job: Job) -> LoadedModel:
    """Load the folded network that the fold stage saved."""
    module = load_model(stage.path(FOLDED)).module
    return replace(job.model, module=module, config=module.config)


def statistics(run: RunDirectory, job: Job, folded: StageResult) -> StageResult:
    """Gather activation statistics in one pass. Values: images fitted and held out, images skipped."""

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.quantize.statistics import collect_statistics

        module, preprocess = folded_model(folded, job).module, job.model.preprocess
        if value_range != "normalized":
            module, _ = _for_target(folded_model(folded, job), job)
            preprocess = preprocess.with_value_range(value_range)
        fit = batches(job.calibration, preprocess, BATCH, job.fit, description="Calibrating")
        held_out = batches(job.calibration, preprocess, BATCH, job.held_out, description="Calibrating (held out)")
        gathered = collect_statistics(module, _images(fit), _images(held_out), job.target.quantize.outputs)
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
    return run.stage("statistics", inputs, make)


def plan(run: RunDirectory, job: Job, folded: StageResult, gathered: StageResult | None) -> StageResult:
    """Choose bits, affines, grids and codes. Files: plan.safetensors, statistics of what is quantised, plan.toml.

    gathered: statistics of the float network, for effort "quick", which takes each tensor by itself; without them layers are
    reconstructed one after the other. Values: images fitted and held out, images skipped, input_error, budget.
    """

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.quantize.plan_storage import save_plan
        from edgeconvnext.quantize.planning import build_plan
        from edgeconvnext.quantize.statistics import Statistics

        module, error = _for_target(folded_model(folded, job), job)
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
        (folder / PLAN_TOML).write_text(bits.toml(), encoding="utf-8")
        counts = {key: values[key] for key in ("fit", "held_out", "skipped")}
        return {**counts, "input_error": error, "budget": budget}

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
    return run.stage("plan", inputs, make)


def _what_a_plan_reads(target: Target) -> dict[str, Any]:
    """Return what of a target decides its plan: targets that differ in the file they write only share one."""
    tensorrt = target.exporter in ("tensorrt-onnx", "tensorrt-rtx", "tensorrt")
    return {
        "runtime": "tensorrt" if tensorrt else [target.exporter, target.opset, target.minimum_os],
        "float_type": target.float_type,
        "value_range": target.input.value_range,
        "quantize": target.quantize.model_dump(mode="json"),
        "gelu": target.layout.gelu,
    }


def _reconstructed(
    job: Job, module: Network, folder: Path
) -> tuple[Reconstructed, dict[str, Any], dict[str, Any] | None]:
    """Reconstruct the network's layers, within a budget where one is set; return also what was read and what the budget cost."""
    from edgeconvnext.quantize.plan_storage import save_plan
    from edgeconvnext.quantize.precision import resolve_precision
    from edgeconvnext.quantize.reconstruct import reconstruct
    from edgeconvnext.search.budget import within_budget

    preprocess = job.model.preprocess.with_value_range(job.target.input.value_range)
    read: dict[str, Any] = {}

    def with_bits(bits: BitPlan) -> Reconstructed:
        fit = batches(job.calibration, preprocess, BATCH, job.fit, description="Reading images")
        held_out = batches(job.calibration, preprocess, BATCH, job.held_out, description="Reading images (held out)")
        result = reconstruct(
            module,
            job.target,
            resolve_precision(module, job.target, bits),
            _images(fit),
            _images(held_out),
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
    stream = batches(job.calibration, preprocess, BATCH, job.held_out, description="Reading images (held out)")
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
    """Build the quantised graph of a plan. Values: layers (report.schema.LayerError), int8_macs, scheme."""

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.model.macs import layer_macs
        from edgeconvnext.quantize.plan_storage import load_plan
        from edgeconvnext.quantize.program import quantize_program
        from edgeconvnext.quantize.statistics import Statistics
        from edgeconvnext.report.layers import layer_errors, scheme

        module, _ = _for_target(folded_model(folded, job), job)
        chosen, prepared = load_plan(planned.path(PLAN), module)
        program = quantize_program(_exported(job, prepared), chosen)
        # Through memory: on a full disk torch's own writer ends the whole process.
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        (folder / PROGRAM).write_bytes(buffer.getbuffer())
        macs = layer_macs(module.config, job.model.preprocess.input_size)
        stored = Statistics.load(planned.path(PLAN_STATISTICS))
        return {
            "layers": [layer.model_dump() for layer in layer_errors(module, prepared, chosen, stored)],
            "int8_macs": sum(macs[layer] for layer in chosen.weights) / sum(macs.values()),
            "scheme": scheme(chosen, job.target, macs),
        }

    inputs = {
        "plan": planned.key,
        "sizes": job.sizes,
        "target": job.target.model_dump(mode="json", exclude={"gates", "description", "name", "runtime"}),
    }
    return run.stage("quantized", inputs, make)


def quantized_program(stage: StageResult) -> ExportedProgram:
    """Load the quantised graph, float32."""
    from edgeconvnext.quantize.program import retraced  # also registers the Q/DQ operators that the file names

    return retraced(torch.export.load(stage.path(PROGRAM)))


def float_program(job: Job, folded: StageResult) -> ExportedProgram:
    """Export the exactly folded network that was handed in, without Q/DQ: what the artifact is compared with."""
    from edgeconvnext.rewrite.exact import fold_exact

    if job.request.compress is None:
        model = folded_model(folded, job)
    else:
        module = fold_exact(job.model.module, proof_images(job)).module
        model = replace(job.model, module=module, config=module.config)
    module, _ = _for_target(model, job)
    return _exported(job, module)


def simulation(job: Job, stage: StageResult) -> GraphModule:
    """The quantised graph in the target's float type, ready to run."""
    from edgeconvnext.quantize.simulate import simulator

    program = quantized_program(stage)
    if job.target.float_type == "float32":
        return simulator(program)
    from edgeconvnext.quantize.float16 import to_float16

    return simulator(to_float16(program))


def reference(run: RunDirectory, job: Job) -> StageResult:
    """Run the FP32 model, as it was handed in, over the evaluation images. Files: logits and image positions."""

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.validate.runners import TorchRunner, collect

        stream = _stream(job, job.evaluation.images, None, "Evaluating FP32")
        logits, positions = collect({"fp32": TorchRunner(job.model.module)}, stream)
        np.savez(folder / "reference.npz", fp32=logits["fp32"], positions=positions)
        return {"skipped": [f"{image.id}: {image.reason}" for image in stream.skipped]}

    return run.stage("reference", {"model": model_key(job), "images": job.evaluation.images.fingerprint}, make)


def evaluated(run: RunDirectory, job: Job, program: StageResult, artifact: StageResult | None) -> StageResult:
    """Run the simulated graph, and the artifact where its runtime is here, over the evaluation images, decoded once."""

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.validate.runners import collect

        simulated, found = _quantized_runners(job, program, artifact)
        runners = {"simulated": simulated} | ({} if found is None else {"artifact": found})
        stream = _stream(job, job.evaluation.images, None, "Evaluating INT8")
        logits, positions = collect(runners, stream)
        np.savez(folder / "logits.npz", allow_pickle=False, positions=positions, **logits)
        return {"runtimes": {name: runner.runtime for name, runner in runners.items()}}

    return run.stage("accuracy", _evaluation_key(job, program, artifact), make)


def _quantized_runners(job: Job, program: StageResult, artifact: StageResult | None) -> tuple[Runner, Runner | None]:
    """Return what runs the simulated graph, and the artifact where it runs here."""
    from edgeconvnext.validate.runners import TorchRunner, artifact_runner

    module = simulation(job, program)
    preprocess, value_range = job.model.preprocess, job.target.input.value_range

    def simulate(images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return module(torch.from_numpy(to_value_range(images.numpy(), preprocess, value_range)))

    found = None if artifact is None else artifact_runner(artifact.path(ARTIFACTS[job.target.exporter]))
    return TorchRunner(simulate), found


def _evaluation_key(job: Job, program: StageResult, artifact: StageResult | None) -> dict[str, Any]:
    return {
        "program": program.key,
        "artifact": None if artifact is None else artifact.key,
        # What an artifact computes may depend on the processor: int8 products saturate on some.
        "device": None if artifact is None else describe_device(),
        "images": job.evaluation.images.fingerprint,
    }


def outputs(run: RunDirectory, job: Job, program: StageResult, artifact: StageResult | None) -> StageResult:
    """Compare all outputs of a network without classifier with FP32's, image by image, keeping none of them.

    Values: outputs (report.schema.OutputRecord), images, skipped, runtimes.
    """

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.validate.outputs import compare_outputs
        from edgeconvnext.validate.runners import TorchRunner

        simulated, found = _quantized_runners(job, program, artifact)
        stream = _stream(job, job.evaluation.images, None, "Comparing outputs")
        names = job.model.module.output_names
        records, images = compare_outputs(names, TorchRunner(job.model.module), simulated, found, stream)
        runtimes = {"simulated": simulated.runtime} | ({} if found is None else {"artifact": found.runtime})
        return {
            "outputs": [record.model_dump() for record in records],
            "images": images,
            "skipped": [f"{image.id}: {image.reason}" for image in stream.skipped],
            "runtimes": runtimes,
        }

    return run.stage("outputs", {"model": model_key(job), **_evaluation_key(job, program, artifact)}, make)


def other_sizes(run: RunDirectory, job: Job, program: StageResult, artifact: StageResult | None) -> StageResult:
    """Compare the networks at every further input size, on as many images as EVALUATED_PIXELS allow.

    Values: sizes (report.schema.SizeRecord).
    """

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.validate.runners import TorchRunner
        from edgeconvnext.validate.sizes import at_size

        networks = (TorchRunner(job.model.module), *_quantized_runners(job, program, artifact))
        names = job.model.module.output_names
        records = []
        for size in job.sizes:
            count, batch = (max(1, pixels // (size[0] * size[1])) for pixels in (EVALUATED_PIXELS, PIXELS_AT_ONCE))
            images, labels = job.evaluation.images, job.evaluation.labels
            chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)).tolist()
            preprocess = replace(job.model.preprocess, input_size=size)
            stream = batches(
                images, preprocess, min(batch, BATCH), chosen, description=f"Comparing at {size_text(size)}"
            )
            records.append(at_size(size, names, networks, stream, labels).model_dump())
        return {"sizes": records}

    inputs = {"model": model_key(job), "sizes": job.sizes, **_evaluation_key(job, program, artifact)}
    return run.stage("sizes", inputs, make)


def latency(
    run: RunDirectory, job: Job, folded: StageResult, planned: StageResult, artifact: StageResult
) -> StageResult:
    """Time an ONNX artifact and its float baseline, interleaved. Values: latency and speedup records, unbudgeted_ms.

    unbudgeted_ms: median of the artifact that --max-drop started from, where it gave layers back; else None.
    """

    def timed(model: Path) -> LatencyResult:
        from edgeconvnext.validate.latency import onnx_latency

        return onnx_latency(
            artifact.path("baseline/model_fp32.onnx"),
            model,
            batch=1 if job.target.input.dynamic_batch else job.target.input.batch[0],
            threads=job.request.threads,
            images=proof_images(job).numpy(),
        )

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.progress import progress_bar

        budget = planned.values["budget"]
        with progress_bar("Timing FP32 and INT8", None):
            result, before = timed(artifact.path("model.onnx")), None
            if budget is not None and budget["moves"]:
                unbudgeted = _unbudgeted_onnx(job, folded, planned, folder / "unbudgeted.onnx")
                before = timed(unbudgeted).comparison.artifact
                unbudgeted.unlink()
        return {
            "latency": result.comparison.model_dump(),
            "speedup": None if result.speedup is None else result.speedup.model_dump(),
            "unbudgeted_ms": None if before is None else before.median_ms,
        }

    inputs = {"artifact": artifact.key, "threads": job.request.threads, "device": describe_device()}
    return run.stage("latency", inputs, make)


def _unbudgeted_onnx(job: Job, folded: StageResult, planned: StageResult, path: Path) -> Path:
    """Write the ONNX file that would have come out without --max-drop."""
    from edgeconvnext.export.metadata import ArtifactMetadata
    from edgeconvnext.export.onnx import export_onnx
    from edgeconvnext.quantize.plan_storage import load_plan
    from edgeconvnext.quantize.program import quantize_program, with_batch

    module, _ = _for_target(folded_model(folded, job), job)
    chosen, prepared = load_plan(planned.path(UNBUDGETED_PLAN), module)
    program = quantize_program(_exported(job, prepared), chosen)
    if not job.target.input.dynamic_batch:
        program = with_batch(program, job.target.input.batch[0])
    metadata = ArtifactMetadata(job.model.name, None, job.model.preprocess, job.target.input.value_range, "")
    assert job.target.opset is not None
    return export_onnx(program, path, opset=job.target.opset, metadata=metadata, layout=job.target.layout)


def analysis(run: RunDirectory, job: Job, folded: StageResult, planned: StageResult) -> StageResult:
    """Say where the error of a plan comes from. Files: analysis.json, analysis.html."""

    def make(folder: Path) -> None:
        from edgeconvnext.model.macs import layer_macs
        from edgeconvnext.quantize.statistics import Statistics
        from edgeconvnext.report.analysis_page import render_analysis_html
        from edgeconvnext.search.analysis import load_planned, measure
        from edgeconvnext.search.suspicions import with_suspicions

        module, _ = _for_target(folded_model(folded, job), job)
        chosen, prepared = load_planned(planned.path(PLAN), module)
        stored = Statistics.load(planned.path(PLAN_STATISTICS))
        preprocess = job.model.preprocess.with_value_range(job.target.input.value_range)
        stream = batches(job.calibration, preprocess, BATCH, judged, description="Reading images (held out)")
        images = list(_images(stream))
        check_broken(job.calibration, stream.skipped)
        found = measure(
            module,
            prepared,
            chosen,
            stored,
            images,
            macs=layer_macs(module.config, job.model.preprocess.input_size),
            setting=_analysis_setting(job, stored.fit_images, stored.held_out_images, sum(map(len, images))),
        )
        found = with_suspicions(found)
        (folder / ANALYSIS).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / "analysis.html").write_text(render_analysis_html(found), encoding="utf-8")

    from edgeconvnext.search.sensitivity import SENSITIVITY_IMAGES

    rows = np.linspace(0, len(job.held_out) - 1, min(SENSITIVITY_IMAGES, len(job.held_out))).round().astype(int)
    judged = [job.held_out[row] for row in rows]
    inputs = {
        "folded": folded.key,
        "plan": planned.key,
        "images": job.calibration.fingerprint,
        "judged": judged,
        "names": [job.model.name, job.target.name, job.calibration.name],
    }
    return run.stage("analysis", inputs, make)


def analysis_of(stage: StageResult) -> Analysis:
    """Read what the analysis stage wrote."""
    from edgeconvnext.search.analysis import Analysis

    return Analysis.model_validate_json(stage.path(ANALYSIS).read_text(encoding="utf-8"))


def proof_images(job: Job) -> torch.Tensor:
    """A few real calibration images, preprocessed, (N, C, H, W)."""
    indices = list(range(0, len(job.calibration), max(1, len(job.calibration) // PROOF_IMAGES)))[:PROOF_IMAGES]
    return torch.cat(list(_images(_stream(job, job.calibration, indices, "Reading images"))))


def _analysis_setting(job: Job, fit_images: int, held_out_images: int, sensitivity_images: int) -> Setting:
    from edgeconvnext.search.analysis import Setting

    target, request = job.target, job.request
    tensorrt = target.exporter in ("tensorrt-onnx", "tensorrt-rtx", "tensorrt")
    return Setting(
        model=job.model.name,
        target=target.name,
        exporter=target.exporter,
        wide_activations=not tensorrt and (target.exporter != "onnx" or (target.opset or 0) >= 21),
        affine_activations=target.quantize.activations.scheme == "affine",
        prepares_hidden=target.quantize.prepare.hidden,
        prepares_depthwise=target.quantize.prepare.depthwise,
        effort=request.effort,
        calibrator=request.calibrator,
        preparation=request.preparation,
        calibration_set=job.calibration.name,
        fit_images=fit_images,
        held_out_images=held_out_images,
        sensitivity_images=sensitivity_images,
    )


def _stream(job: Job, images: ImageSet, indices: list[int] | None, description: str) -> BatchStream:
    return batches(images, job.model.preprocess, BATCH, indices, description=description)


def _images(stream: BatchStream) -> Iterator[torch.Tensor]:
    return (batch.images for batch in stream)


def _for_target(model: LoadedModel, job: Job) -> tuple[Network, float]:
    """Fold the input normalisation where the target takes raw pixels, give GELUs its form; return the error of the fold."""
    from edgeconvnext.rewrite.exact import fold_exact
    from edgeconvnext.rewrite.gelu import with_gelu

    value_range, gelu = job.target.input.value_range, job.target.layout.gelu
    if value_range == "normalized":
        return with_gelu(model.module, gelu), 0.0
    result = fold_exact(model.module, proof_images(job), preprocess=model.preprocess, value_range=value_range)
    return with_gelu(result.module, gelu), result.errors["input_normalization"]


def _exported(job: Job, module: Network) -> ExportedProgram:
    """Export a network with a free batch and, where the job has several sizes, free height and width."""
    from edgeconvnext.quantize.program import export_program

    height, width = job.model.preprocess.input_size
    example = torch.zeros(1, job.model.config.in_channels, height, width)
    return export_program(module, example, max_batch=_max_batch(job), sizes=job.size_range)


def _max_batch(job: Job) -> int:
    """Largest batch of the graph, dynamic for every target: evaluation runs BATCH images at a time, proofs all of theirs."""
    return max(job.target.input.batch[2], BATCH, PROOF_IMAGES)
