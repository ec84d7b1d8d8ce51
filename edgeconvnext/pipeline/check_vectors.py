"""The check vectors of a run's device kit: evaluation images with what FP32 and the simulation answer."""

from __future__ import annotations

import numpy as np

from edgeconvnext.backends import backend_for
from edgeconvnext.backends.block_outputs import LayerOutput
from edgeconvnext.backends.kit.write import MOST_VECTORS, CheckVectors, KitOutput, compared_values
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.evaluation.runner import TorchRunner
from edgeconvnext.pipeline import stages
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.logits import measured_logits
from edgeconvnext.run.directory import StageResult


def check_vectors(job: Job, done: dict[str, StageResult]) -> CheckVectors:
    """Return at most MOST_VECTORS images of the evaluation set with their answers, taken from the stages or computed now."""
    if not job.model.config.num_classes:
        return _backbone_vectors(job, done)
    answers = measured_logits(job, done)
    fp32, simulated, positions = answers["fp32"], answers["simulated"], answers["positions"]
    rows = _spread(len(positions))
    labels = None if job.evaluation.labels is None else job.evaluation.labels[positions[rows]]
    _, inputs = _images(job, positions[rows].tolist())
    return CheckVectors(inputs, fp32[rows], simulated[rows], labels, _layers(job, done, inputs))


def _backbone_vectors(job: Job, done: dict[str, StageResult]) -> CheckVectors:
    """Compute the outputs of these images again: of all images, feature maps would fill a disk."""
    images, inputs = _images(job, _spread(len(job.evaluation.images)).tolist())
    fp32, outputs = _answers(job, TorchRunner(job.model.module), images)
    simulated, _ = _answers(job, TorchRunner(stages.simulation(job, done)), inputs)
    return CheckVectors(inputs, fp32, simulated, None, _layers(job, done, inputs), outputs)


def _answers(job: Job, runner: TorchRunner, images: np.ndarray) -> tuple[np.ndarray, tuple[KitOutput, ...]]:
    """Run images one by one: of large ones, the feature maps of a batch take gigabytes."""
    names = job.model.module.output_names
    found = [compared_values(names, runner.outputs(images[row : row + 1])) for row in range(len(images))]
    return np.concatenate([values for values, _ in found]), found[0][1]


def _spread(count: int) -> np.ndarray:
    """Return at most MOST_VECTORS of `count` positions, evenly spread, so that they cover the classes of a sorted set."""
    return np.unique(np.linspace(0, count - 1, min(MOST_VECTORS, count)).round().astype(int))


def _images(job: Job, positions: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return evaluation images as FP32 takes them and as the artifact does; those that cannot be read are left out."""
    stream = batches(job.evaluation.images, job.model.preprocess, indices=positions)
    images = np.concatenate([batch.images.contiguous().numpy() for batch in stream])
    return images, to_value_range(images, job.model.preprocess, job.target.input.value_range)


def _layers(job: Job, done: dict[str, StageResult], inputs: np.ndarray) -> tuple[LayerOutput, ...]:
    backend = backend_for(job.target)
    return backend.layer_outputs(lambda: stages.simulation(job, done), done["artifact"].path(backend.artifact), inputs)
