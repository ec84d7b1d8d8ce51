"""The check vectors of a run's device kit: evaluation images with what FP32 and the simulation answer."""

from __future__ import annotations

import numpy as np

from edgeconvnext.backends import backend_for
from edgeconvnext.backends.block_outputs import LayerOutput
from edgeconvnext.backends.kit.write import MOST_VECTORS, CheckVectors, KitOutput, compared_values
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.evaluation.runner import TorchRunner
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.logits import measured_logits
from edgeconvnext.pipeline.stages.evaluation import ClassifierStages, Measured
from edgeconvnext.pipeline.stages.quantized_graph import Quantized
from edgeconvnext.pipeline.stages.values import ArtifactValues
from edgeconvnext.run.directory import StageResult


def check_vectors(quantized: Quantized, artifact: StageResult[ArtifactValues], measured: Measured) -> CheckVectors:
    """Return at most MOST_VECTORS images of the evaluation set with their answers, taken from the stages or computed now."""
    if not isinstance(measured.answers, ClassifierStages):
        return _backbone_vectors(quantized, artifact)
    job = quantized.job
    logits = measured_logits(job, measured.answers)
    rows = _spread(len(logits.positions))
    positions = logits.positions[rows]
    labels = None if job.evaluation.labels is None else job.evaluation.labels[positions]
    _, inputs = _images(job, positions.tolist())
    layers = _layers(quantized, artifact, inputs)
    return CheckVectors(inputs, logits.fp32[rows], logits.simulated[rows], labels, layers, task=job.task[0].name)


def _backbone_vectors(quantized: Quantized, artifact: StageResult[ArtifactValues]) -> CheckVectors:
    """Compute the outputs of these images again: of all images, feature maps would fill a disk."""
    job = quantized.job
    images, inputs = _images(job, _spread(len(job.evaluation.images)).tolist())
    fp32, outputs = _answers(job, TorchRunner(job.model.module), images)
    simulated, _ = _answers(job, TorchRunner(quantized.graph.simulation()), inputs)
    return CheckVectors(inputs, fp32, simulated, None, _layers(quantized, artifact, inputs), outputs)


def _answers(job: Job, runner: TorchRunner, images: np.ndarray) -> tuple[np.ndarray, tuple[KitOutput, ...]]:
    """Run images one by one: of large ones, the feature maps of a batch take gigabytes."""
    names = job.model.module.output_names
    answers = [compared_values(names, runner.outputs(images[row : row + 1])) for row in range(len(images))]
    return np.concatenate([values for values, _ in answers]), answers[0][1]


def _spread(count: int) -> np.ndarray:
    """Return at most MOST_VECTORS of `count` positions, evenly spread, so that they cover the classes of a sorted set."""
    return np.unique(np.linspace(0, count - 1, min(MOST_VECTORS, count)).round().astype(int))


def _images(job: Job, positions: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return evaluation images as FP32 takes them and as the artifact does; those that cannot be read are left out."""
    stream = batches(job.evaluation.images, job.model.preprocess, indices=positions)
    images = np.concatenate([batch.images.contiguous().numpy() for batch in stream])
    return images, to_value_range(images, job.model.preprocess, job.target.input.value_range)


def _layers(quantized: Quantized, artifact: StageResult[ArtifactValues], inputs: np.ndarray) -> tuple[LayerOutput, ...]:
    """Compute what single blocks give for the first few images, where the runtime can be asked for them."""
    backend = backend_for(quantized.job.target)
    return backend.layer_outputs(quantized.graph.simulation, artifact.path(backend.artifact), inputs)
