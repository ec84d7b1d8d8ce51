"""The artifact of a target, and the float form that it is compared with."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from edgeconvnext.backends import backend_for
from edgeconvnext.backends.base import Programs
from edgeconvnext.backends.metadata import NORMALIZATION, UNKNOWN, ArtifactMetadata
from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.machine import package_versions
from edgeconvnext.model.two_of_four import sparse_layers
from edgeconvnext.pipeline.inputs import normalization_unknown
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.stages.images import proof_images
from edgeconvnext.pipeline.stages.quantized_graph import Quantized
from edgeconvnext.pipeline.stages.values import ArtifactValues
from edgeconvnext.progress import progress_bar
from edgeconvnext.run.directory import RunDirectory, StageResult


def export_artifact(run: RunDirectory, quantized: Quantized) -> StageResult[ArtifactValues]:
    """Write the artifact and its float baseline, and prove what can be proven of them. Files: those of the target's backend."""
    job = quantized.job
    backend = backend_for(job.target)

    def make(folder: Path) -> ArtifactValues:
        exported = backend.export(job.target, _programs(quantized), folder, artifact_metadata(job))
        return ArtifactValues(checks=exported.checks, missing=exported.missing)

    inputs = {
        "program": quantized.stage.key,
        "target": job.target.model_dump(mode="json", exclude={"gates"}),
        "labels": job.class_names,
        "name": job.model.name,
        "versions": package_versions(),
        "machine": backend.checks_depend_on(),
    }
    with progress_bar(f"Exporting for {job.target.name}", None):
        return run.stage("artifact", inputs, make, ArtifactValues)


def artifact_metadata(job: Job) -> ArtifactMetadata:
    """Return what the artifact says of itself: where it comes from, and how its images are prepared."""
    return ArtifactMetadata(
        model_name=job.model.name,
        # An artifact with class names answers with one of them, which would be the only one, or one of several that hold.
        labels=job.class_names if job.task[0].name == "single-label" else None,
        preprocess=job.model.preprocess,
        value_range=job.target.input.value_range,
        edgeconvnext_version=metadata.version("edgeconvnext"),
        outputs=job.model.module.output_names,
        notes={
            "calibration_set": job.calibration.name,
            "calibration_images": str(len(job.calibration)),
            "model_sha256": job.model.sha256,
            "task": job.task[0].name,
            **({NORMALIZATION: UNKNOWN} if normalization_unknown(job.model) else {}),
        },
    )


def _programs(quantized: Quantized) -> Programs:
    """Return both graphs, and what the simulation answers on a few real images."""
    import torch

    from edgeconvnext.evaluation.runner import TorchRunner

    job = quantized.job
    sparse = sparse_layers(quantized.network.folded_model().module)
    images = to_value_range(proof_images(job).contiguous().numpy(), job.model.preprocess, job.target.input.value_range)
    module = quantized.graph.simulation()
    with torch.inference_mode():
        simulated = TorchRunner(module).outputs(images)
    del module
    return Programs(
        quantized.graph.program, quantized.network.float_program(), images, simulated, job.profile_sizes, sparse
    )
