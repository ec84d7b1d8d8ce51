"""What networks and artifacts answer on the evaluation images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgeconvnext.backends import backend_for
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.data.size import size_text
from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.machine import describe_device
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.stages.images import read_images, skipped_texts
from edgeconvnext.pipeline.stages.network import model_key
from edgeconvnext.pipeline.stages.quantized_graph import Quantized
from edgeconvnext.pipeline.stages.values import (
    AccuracyValues,
    ArtifactValues,
    OutputsValues,
    ReferenceValues,
    SizesValues,
)
from edgeconvnext.quantization.float16_notes import naming_overflows
from edgeconvnext.received import reading
from edgeconvnext.run.directory import RunDirectory, StageResult

if TYPE_CHECKING:
    from edgeconvnext.evaluation.runner import Runner

REFERENCE = "reference.npz"
LOGITS = "logits.npz"
# Images that networks are compared on at sizes other than their own: 996 at 224x224, 30 at 1280x1280.
EVALUATED_PIXELS = 50_000_000


@dataclass(frozen=True)
class ClassifierStages:
    """What a classifier's networks answered. reference: FP32's logits; accuracy: the quantised ones'."""

    reference: StageResult[ReferenceValues]
    accuracy: StageResult[AccuracyValues]


@dataclass(frozen=True)
class Measured:
    """What the networks answered. answers: of a network without classifier, all outputs compared. sizes: at further sizes."""

    answers: ClassifierStages | StageResult[OutputsValues]
    sizes: StageResult[SizesValues] | None


def measure_networks(run: RunDirectory, quantized: Quantized, artifact: StageResult[ArtifactValues] | None) -> Measured:
    """Run FP32, the simulated graph, and the artifact where its runtime is installed, over the evaluation images."""
    job = quantized.job
    if backend_for(job.target).not_run is not None:
        artifact = None
    answers: ClassifierStages | StageResult[OutputsValues]
    if job.model.config.num_classes:
        answers = ClassifierStages(reference(run, job), accuracy(run, quantized, artifact))
    else:
        answers = outputs(run, quantized, artifact)
    return Measured(answers, other_sizes(run, quantized, artifact) if job.sizes else None)


def reference(run: RunDirectory, job: Job) -> StageResult[ReferenceValues]:
    """Run the FP32 model, as it was handed in, over the evaluation images. File: REFERENCE, with the images' positions."""

    def make(folder: Path) -> ReferenceValues:
        from edgeconvnext.evaluation.runner import TorchRunner, collect

        stream = read_images(job, job.evaluation.images, None, "Evaluating FP32")
        logits, positions = collect({"fp32": TorchRunner(job.model.module)}, stream)
        np.savez(folder / REFERENCE, fp32=logits["fp32"], positions=positions)
        return ReferenceValues(skipped=skipped_texts(stream.skipped))

    inputs = {"model": model_key(job), "images": job.evaluation.images.fingerprint}
    return run.stage("reference", inputs, make, ReferenceValues)


def accuracy(
    run: RunDirectory, quantized: Quantized, artifact: StageResult[ArtifactValues] | None
) -> StageResult[AccuracyValues]:
    """Run the simulated graph, and the artifact where there is one, over the evaluation images, decoded once. File: LOGITS."""
    job = quantized.job

    def make(folder: Path) -> AccuracyValues:
        from edgeconvnext.evaluation.runner import collect

        runners = _quantized_runners(quantized, artifact)
        stream = read_images(job, job.evaluation.images, None, "Evaluating INT8")
        logits, positions = collect(runners.by_name(), stream)
        np.savez(folder / LOGITS, allow_pickle=False, positions=positions, **logits)
        return AccuracyValues(runtimes=runners.runtimes())

    return run.stage("accuracy", _evaluation_key(quantized, artifact), make, AccuracyValues)


def outputs(
    run: RunDirectory, quantized: Quantized, artifact: StageResult[ArtifactValues] | None
) -> StageResult[OutputsValues]:
    """Compare all outputs of a network without classifier with FP32's, image by image. Files: none."""
    job = quantized.job

    def make(_folder: Path) -> OutputsValues:
        from edgeconvnext.evaluation.outputs import compare_outputs
        from edgeconvnext.evaluation.runner import TorchRunner

        runners = _quantized_runners(quantized, artifact)
        stream = read_images(job, job.evaluation.images, None, "Comparing outputs")
        names = job.model.module.output_names
        with naming_overflows(quantized.graph.plan.values.float16):
            records, images = compare_outputs(
                names, TorchRunner(job.model.module), runners.simulated, runners.artifact, stream
            )
        return OutputsValues(
            outputs=records, images=images, skipped=skipped_texts(stream.skipped), runtimes=runners.runtimes()
        )

    inputs = {"model": model_key(job), **_evaluation_key(quantized, artifact)}
    return run.stage("outputs", inputs, make, OutputsValues)


def other_sizes(
    run: RunDirectory, quantized: Quantized, artifact: StageResult[ArtifactValues] | None
) -> StageResult[SizesValues]:
    """Compare the networks at every further input size, on as many images as EVALUATED_PIXELS allow. Files: none."""
    job = quantized.job

    def make(_folder: Path) -> SizesValues:
        from edgeconvnext.evaluation.runner import TorchRunner
        from edgeconvnext.evaluation.sizes import at_size

        runners = _quantized_runners(quantized, artifact)
        networks = (TorchRunner(job.model.module), runners.simulated, runners.artifact)
        names = job.model.module.output_names
        records = []
        for size in job.sizes:
            count = max(1, EVALUATED_PIXELS // (size[0] * size[1]))
            images, labels = job.evaluation.images, job.evaluation.labels
            positions = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)).tolist()
            preprocess = replace(job.model.preprocess, input_size=size)
            stream = batches(images, preprocess, indices=positions, description=f"Comparing at {size_text(size)}")
            records.append(at_size(size, names, networks, stream, labels, job.task[0].name))
        return SizesValues(sizes=records)

    inputs = {"model": model_key(job), "sizes": job.sizes, **_evaluation_key(quantized, artifact)}
    return run.stage("sizes", inputs, make, SizesValues)


@dataclass(frozen=True)
class _QuantizedRunners:
    """What runs the simulated graph, and the artifact where it runs on this machine."""

    simulated: Runner
    artifact: Runner | None

    def by_name(self) -> dict[str, Runner]:
        return {"simulated": self.simulated} | ({} if self.artifact is None else {"artifact": self.artifact})

    def runtimes(self) -> dict[str, str]:
        return {name: runner.runtime for name, runner in self.by_name().items()}


def _quantized_runners(quantized: Quantized, artifact: StageResult[ArtifactValues] | None) -> _QuantizedRunners:
    from edgeconvnext.evaluation.runner import TorchRunner

    job, module = quantized.job, quantized.graph.simulation()
    preprocess, value_range = job.model.preprocess, job.target.input.value_range

    def simulate(images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return module(torch.from_numpy(to_value_range(images.numpy(), preprocess, value_range)))

    if artifact is None:
        return _QuantizedRunners(TorchRunner(simulate), None)
    backend = backend_for(job.target)
    path = artifact.path(backend.artifact)
    if not artifact.reused:
        return _QuantizedRunners(TorchRunner(simulate), backend.runner(path))
    with reading(path, RunDirectoryError, "Export it again."):
        return _QuantizedRunners(TorchRunner(simulate), backend.runner(path))


def _evaluation_key(quantized: Quantized, artifact: StageResult[ArtifactValues] | None) -> dict[str, Any]:
    return {
        "program": quantized.stage.key,
        "artifact": None if artifact is None else artifact.key,
        # What an artifact computes may depend on the processor: int8 products saturate on some.
        "device": None if artifact is None else describe_device(),
        "images": quantized.job.evaluation.images.fingerprint,
        "task": quantized.job.task[0].name,
    }
