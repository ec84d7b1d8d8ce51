"""The network: compressed where asked, folded exactly, fitted to its target; and the images that stages read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.loader import MOST_AT_ONCE, BatchStream, batches
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.network import Network
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.stages.values import CompressValues, FoldValues
from edgeconvnext.run.directory import RunDirectory, StageResult

COMPRESSED = "compressed.safetensors"
# Where recovery is saved while it runs.
RECOVERY = "recovery.pt"
FOLDED = "folded.safetensors"


def model_key(job: Job) -> dict[str, Any]:
    """Everything about the model that a stage's result depends on."""
    return {
        "weights": job.model.sha256,
        "config": job.model.config.as_dict(),
        "preprocess": asdict(job.model.preprocess),
    }


def compress(run: RunDirectory, job: Job) -> StageResult:
    """Prune, replace LayerNorms and recover as asked. Files: compressed.safetensors. Values: record (CompressionRecord)."""
    options, images = job.request.compression, job.whole_set
    assert options is not None and images is not None
    checkpoint = run.path / RECOVERY

    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.tuning.compress import compress, compressed_model

        result = compress(job.model, images, options, job.target, checkpoint=checkpoint)
        save_checkpoint(compressed_model(job.model, result), folder / COMPRESSED)
        return {"record": result.record.model_dump()}

    inputs = {
        "model": model_key(job),
        "images": images.fingerprint,
        "options": asdict(options),
        "target": job.target.runtime.name,
    }
    result = run.stage("compress", inputs, make, CompressValues)
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
    return run.stage("fold", inputs, make, FoldValues)


def folded_model(stage: StageResult, job: Job) -> LoadedModel:
    """Load the folded network that the fold stage saved."""
    module = load_model(stage.path(FOLDED)).module
    return replace(job.model, module=module, config=module.config)


def for_target(model: LoadedModel, job: Job) -> tuple[Network, float]:
    """Fold the input normalisation where the target takes raw pixels, give GELUs its form; return the error of the fold."""
    from edgeconvnext.rewrite.exact import fold_exact
    from edgeconvnext.rewrite.gelu import with_gelu

    value_range, gelu = job.target.input.value_range, job.target.layout.gelu
    if value_range == "normalized":
        return with_gelu(model.module, gelu), 0.0
    result = fold_exact(model.module, proof_images(job), preprocess=model.preprocess, value_range=value_range)
    return with_gelu(result.module, gelu), result.errors["input_normalization"]


def exported(job: Job, module: Network) -> ExportedProgram:
    """Export a network with a free batch and, where the job has several sizes, free height and width."""
    from edgeconvnext.model.program import export_program

    height, width = job.model.preprocess.input_size
    example = torch.zeros(1, job.model.config.in_channels, height, width)
    return export_program(module, example, max_batch=_max_batch(job), sizes=job.size_range)


def _max_batch(job: Job) -> int:
    """Largest batch of the graph, dynamic for every target: evaluation runs MOST_AT_ONCE images at a time at most."""
    return max(job.target.input.batch[2], MOST_AT_ONCE)


def float_program(job: Job, folded: StageResult) -> ExportedProgram:
    """Export the exactly folded network that was handed in, without Q/DQ: what the artifact is compared with."""
    from edgeconvnext.rewrite.exact import fold_exact

    if job.request.compression is None:
        model = folded_model(folded, job)
    else:
        module = fold_exact(job.model.module, proof_images(job)).module
        model = replace(job.model, module=module, config=module.config)
    module, _ = for_target(model, job)
    return exported(job, module)


def proof_images(job: Job) -> torch.Tensor:
    """A few real calibration images, preprocessed, (N, C, H, W)."""
    from edgeconvnext.rewrite.exact import PROOF_IMAGES

    indices = list(range(0, len(job.calibration), max(1, len(job.calibration) // PROOF_IMAGES)))[:PROOF_IMAGES]
    return torch.cat(list(images_of(read_images(job, job.calibration, indices, "Reading images"))))


def read_images(job: Job, images: ImageSet, indices: list[int] | None, description: str) -> BatchStream:
    return batches(images, job.model.preprocess, indices=indices, description=description)


def images_of(stream: BatchStream) -> Iterator[torch.Tensor]:
    return (batch.images for batch in stream)
