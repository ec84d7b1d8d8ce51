"""How long the artifact and its float baseline take, interleaved."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from edgeconvnext.backends import backend_for
from edgeconvnext.backends.base import LatencyResult, LatencySettings
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.machine import describe_device
from edgeconvnext.pipeline.stages.images import proof_images
from edgeconvnext.pipeline.stages.quantized_graph import Quantized
from edgeconvnext.pipeline.stages.values import ArtifactValues, LatencyValues
from edgeconvnext.progress import progress_bar
from edgeconvnext.run.directory import RunDirectory, StageResult


def time_artifact(
    run: RunDirectory, quantized: Quantized, artifact: StageResult[ArtifactValues]
) -> StageResult[LatencyValues] | None:
    """Time the artifact and its float baseline, interleaved; None where that is not possible. Files: none.

    Where it is switched off, the run keeps what was measured of this very artifact before; None where that is nothing.
    """
    job = quantized.job
    backend = backend_for(job.target)
    if backend.not_timed is not None:
        return None
    if not job.request.latency:
        return run.kept("latency", {"artifact": artifact.key}, LatencyValues)

    def make(folder: Path) -> LatencyValues:
        budget = quantized.graph.plan.values.budget
        with progress_bar("Timing FP32 and INT8", None):
            timed, unbudgeted = _timed(quantized, artifact, artifact.path(backend.artifact)), None
            if budget is not None and budget.moves:
                with TemporaryDirectory(dir=folder) as scratch:
                    path = _unbudgeted(quantized, Path(scratch) / backend.artifact)
                    unbudgeted = _timed(quantized, artifact, path).comparison.artifact
        return LatencyValues(
            latency=timed.comparison,
            speedup=timed.speedup,
            noise=timed.noise,
            unbudgeted_ms=None if unbudgeted is None else unbudgeted.median_ms,
        )

    inputs = {"artifact": artifact.key, "threads": job.request.threads, "device": describe_device()}
    return run.stage("latency", inputs, make, LatencyValues)


def _timed(quantized: Quantized, artifact: StageResult[ArtifactValues], model: Path) -> LatencyResult:
    """Time an artifact beside the float baseline of the run."""
    job = quantized.job
    backend = backend_for(job.target)
    settings = LatencySettings(
        batch=1 if job.target.input.dynamic_batch else job.target.input.batch[0],
        threads=job.request.threads,
        images=proof_images(job).numpy(),
    )
    return backend.latency(artifact.path(backend.baseline), model, settings)


def _unbudgeted(quantized: Quantized, path: Path) -> Path:
    """Write the artifact that would have come out without --max-drop."""
    job = quantized.job
    metadata = ArtifactMetadata(job.model.name, None, job.model.preprocess, job.target.input.value_range, "")
    return backend_for(job.target).write(job.target, quantized.graph.unbudgeted_program(), path, metadata)
