"""What networks and artifacts answer on the evaluation images, and how long they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgeconvnext.backends import backend_for
from edgeconvnext.backends.base import LatencyResult, LatencySettings
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.data.size import size_text
from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.machine import describe_device
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.stages.network import (
    exported,
    folded_model,
    for_target,
    model_key,
    proof_images,
    read_images,
)
from edgeconvnext.pipeline.stages.quantization import UNBUDGETED_PLAN, simulation
from edgeconvnext.pipeline.stages.values import (
    AccuracyValues,
    LatencyValues,
    OutputsValues,
    ReferenceValues,
    SizesValues,
)
from edgeconvnext.received import reading
from edgeconvnext.run.directory import RunDirectory, StageResult

if TYPE_CHECKING:
    from edgeconvnext.evaluation.runner import Runner

# Images that networks are compared on at sizes other than their own: 996 at 224x224, 30 at 1280x1280.
EVALUATED_PIXELS = 50_000_000


def reference(run: RunDirectory, job: Job) -> StageResult:
    """Run the FP32 model, as it was handed in, over the evaluation images. Files: logits and image positions."""

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.evaluation.runner import TorchRunner, collect

        stream = read_images(job, job.evaluation.images, None, "Evaluating FP32")
        logits, positions = collect({"fp32": TorchRunner(job.model.module)}, stream)
        np.savez(folder / "reference.npz", fp32=logits["fp32"], positions=positions)
        return {"skipped": [f"{image.id}: {image.reason}" for image in stream.skipped]}

    return run.stage(
        "reference", {"model": model_key(job), "images": job.evaluation.images.fingerprint}, make, ReferenceValues
    )


def evaluated(run: RunDirectory, job: Job, program: StageResult, artifact: StageResult | None) -> StageResult:
    """Run the simulated graph, and the artifact where its runtime is here, over the evaluation images, decoded once."""

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.evaluation.runner import collect

        simulated, found = _quantized_runners(run, job, artifact)
        runners = {"simulated": simulated} | ({} if found is None else {"artifact": found})
        stream = read_images(job, job.evaluation.images, None, "Evaluating INT8")
        logits, positions = collect(runners, stream)
        np.savez(folder / "logits.npz", allow_pickle=False, positions=positions, **logits)
        return {"runtimes": {name: runner.runtime for name, runner in runners.items()}}

    return run.stage("accuracy", _evaluation_key(job, program, artifact), make, AccuracyValues)


def outputs(run: RunDirectory, job: Job, program: StageResult, artifact: StageResult | None) -> StageResult:
    """Compare all outputs of a network without classifier with FP32's, image by image, keeping none of them.

    Values: outputs (report.schema.OutputRecord), images, skipped, runtimes.
    """

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.evaluation.outputs import compare_outputs
        from edgeconvnext.evaluation.runner import TorchRunner

        simulated, found = _quantized_runners(run, job, artifact)
        stream = read_images(job, job.evaluation.images, None, "Comparing outputs")
        names = job.model.module.output_names
        records, images = compare_outputs(names, TorchRunner(job.model.module), simulated, found, stream)
        runtimes = {"simulated": simulated.runtime} | ({} if found is None else {"artifact": found.runtime})
        return {
            "outputs": [record.model_dump() for record in records],
            "images": images,
            "skipped": [f"{image.id}: {image.reason}" for image in stream.skipped],
            "runtimes": runtimes,
        }

    return run.stage(
        "outputs", {"model": model_key(job), **_evaluation_key(job, program, artifact)}, make, OutputsValues
    )


def other_sizes(run: RunDirectory, job: Job, program: StageResult, artifact: StageResult | None) -> StageResult:
    """Compare the networks at every further input size, on as many images as EVALUATED_PIXELS allow.

    Values: sizes (report.schema.SizeRecord).
    """

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.evaluation.runner import TorchRunner
        from edgeconvnext.evaluation.sizes import at_size

        networks = (TorchRunner(job.model.module), *_quantized_runners(run, job, artifact))
        names = job.model.module.output_names
        records = []
        for size in job.sizes:
            count = max(1, EVALUATED_PIXELS // (size[0] * size[1]))
            images, labels = job.evaluation.images, job.evaluation.labels
            chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)).tolist()
            preprocess = replace(job.model.preprocess, input_size=size)
            stream = batches(images, preprocess, indices=chosen, description=f"Comparing at {size_text(size)}")
            records.append(at_size(size, names, networks, stream, labels).model_dump())
        return {"sizes": records}

    inputs = {"model": model_key(job), "sizes": job.sizes, **_evaluation_key(job, program, artifact)}
    return run.stage("sizes", inputs, make, SizesValues)


def _quantized_runners(run: RunDirectory, job: Job, artifact: StageResult | None) -> tuple[Runner, Runner | None]:
    """Return what runs the simulated graph, and the artifact where it runs here."""
    from edgeconvnext.evaluation.runner import TorchRunner

    module = simulation(job, run.results)
    preprocess, value_range = job.model.preprocess, job.target.input.value_range

    def simulate(images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return module(torch.from_numpy(to_value_range(images.numpy(), preprocess, value_range)))

    if artifact is None:
        return TorchRunner(simulate), None
    backend = backend_for(job.target)
    path = artifact.path(backend.artifact)
    if not artifact.reused:
        return TorchRunner(simulate), backend.runner(path)
    with reading(path, RunDirectoryError, "Export it again."):
        return TorchRunner(simulate), backend.runner(path)


def _evaluation_key(job: Job, program: StageResult, artifact: StageResult | None) -> dict[str, Any]:
    return {
        "program": program.key,
        "artifact": None if artifact is None else artifact.key,
        # What an artifact computes may depend on the processor: int8 products saturate on some.
        "device": None if artifact is None else describe_device(),
        "images": job.evaluation.images.fingerprint,
    }


def latency(
    run: RunDirectory, job: Job, folded: StageResult, planned: StageResult, artifact: StageResult
) -> StageResult:
    """Time the artifact and its float baseline, interleaved. Values: latency and speedup records, unbudgeted_ms.

    unbudgeted_ms: median of the artifact that --max-drop started from, where it gave layers back; else None.
    """

    backend = backend_for(job.target)

    def timed(model: Path) -> LatencyResult:
        settings = LatencySettings(
            batch=1 if job.target.input.dynamic_batch else job.target.input.batch[0],
            threads=job.request.threads,
            images=proof_images(job).numpy(),
        )
        return backend.latency(artifact.path(backend.baseline), model, settings)

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.progress import progress_bar

        budget = planned.values["budget"]
        with progress_bar("Timing FP32 and INT8", None):
            result, before = timed(artifact.path(backend.artifact)), None
            if budget is not None and budget["moves"]:
                with TemporaryDirectory(dir=folder) as scratch:
                    unbudgeted = _unbudgeted(job, folded, planned, Path(scratch) / backend.artifact)
                    before = timed(unbudgeted).comparison.artifact
        return {
            "latency": result.comparison.model_dump(),
            "speedup": None if result.speedup is None else result.speedup.model_dump(),
            "unbudgeted_ms": None if before is None else before.median_ms,
        }

    inputs = {"artifact": artifact.key, "threads": job.request.threads, "device": describe_device()}
    return run.stage("latency", inputs, make, LatencyValues)


def _unbudgeted(job: Job, folded: StageResult, planned: StageResult, path: Path) -> Path:
    """Write the artifact that would have come out without --max-drop."""
    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.quantization.plan_storage import load_plan
    from edgeconvnext.quantization.program import quantize_program

    module, _ = for_target(folded_model(folded, job), job)
    chosen, prepared = load_plan(planned.path(UNBUDGETED_PLAN), module)
    program = quantize_program(exported(job, prepared), chosen)
    metadata = ArtifactMetadata(job.model.name, None, job.model.preprocess, job.target.input.value_range, "")
    return backend_for(job.target).write(job.target, program, path, metadata)
