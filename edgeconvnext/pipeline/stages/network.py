"""The network: compressed where asked, folded exactly, and fitted to its target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from edgeconvnext.data.loader import MOST_AT_ONCE
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.network import Network
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.stages.images import proof_images
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


def compress(run: RunDirectory, job: Job) -> StageResult[CompressValues]:
    """Prune, replace LayerNorms and recover as asked. File: COMPRESSED."""
    options, images = job.request.compression, job.whole_set
    assert options is not None and images is not None
    checkpoint = run.path / RECOVERY

    def make(folder: Path) -> CompressValues:
        from edgeconvnext.tuning.compress import compress, compressed_model

        result = compress(job.model, images, options, job.target, checkpoint=checkpoint)
        save_checkpoint(compressed_model(job.model, result), folder / COMPRESSED)
        return CompressValues(record=result.record)

    inputs = {
        "model": model_key(job),
        "images": images.fingerprint,
        "options": asdict(options),
        "target": job.target.runtime.name,
    }
    result = run.stage("compress", inputs, make, CompressValues)
    checkpoint.unlink(missing_ok=True)
    return result


def fold(run: RunDirectory, job: Job, compressed: StageResult[CompressValues] | None) -> StageResult[FoldValues]:
    """Fold the model, or what compressing made of it, exactly, prove it on real images, and save it. File: FOLDED."""

    def make(folder: Path) -> FoldValues:
        from edgeconvnext.rewrite.exact import fold_exact

        module = job.model.module if compressed is None else load_model(compressed.path(COMPRESSED)).module
        result = fold_exact(module, proof_images(job))
        folded = replace(job.model, module=result.module, config=result.module.config)
        save_checkpoint(folded, folder / FOLDED)
        return FoldValues(errors=result.errors)

    inputs = {"model": model_key(job), "images": job.calibration.fingerprint}
    if compressed is not None:
        inputs["compressed"] = compressed.key
    return run.stage("fold", inputs, make, FoldValues)


class TargetNetwork:
    """The folded network as the target takes it: input normalisation folded where that is raw pixels, GELUs in its form.

    It is loaded where it is first asked for, and again only after `release`.
    job: what the run was asked for. folded: the fold stage. stream_exponents: by stage, of the residual streams that the plan has
    scaled by 2^-k; () scales none. input_error: of the fold of the input normalisation, where it was proven before; None proves it
    on images.
    """

    def __init__(
        self,
        job: Job,
        folded: StageResult[FoldValues],
        stream_exponents: Sequence[int] = (),
        input_error: float | None = None,
    ) -> None:
        self.job = job
        self.folded = folded
        self.stream_exponents = tuple(stream_exponents)
        self._module: Network | None = None
        self._input_error = input_error

    @property
    def module(self) -> Network:
        """The network, float32. Nobody changes it: it is shared by the stages that read it."""
        if self._module is None:
            model = self.folded_model()
            if self._input_error is None:
                module, self._input_error = _for_target(model, self.job)
            else:
                module = _for_target_as_proven(model, self.job)
            self._module = self._scaled(module)
        return self._module

    @property
    def input_error(self) -> float:
        """Largest relative error of the logits by folding the input normalisation; 0.0 where the target needs no such fold."""
        _ = self.module
        assert self._input_error is not None
        return self._input_error

    def release(self) -> None:
        """Free the network's memory, 0.1 GiB of a Tiny, as far as no caller has it."""
        self._module = None

    def folded_model(self) -> LoadedModel:
        """Load the folded network as the fold stage saved it, for normalised images."""
        module = load_model(self.folded.path(FOLDED)).module
        return replace(self.job.model, module=module, config=module.config)

    def float_program(self) -> ExportedProgram:
        """Export the exactly folded network that was handed in, without Q/DQ: what the artifact is compared with."""
        from edgeconvnext.rewrite.exact import fold_exact

        if self.job.request.compression is None:
            module = self.module
            self.release()
        else:
            folded = fold_exact(self.job.model.module, proof_images(self.job)).module
            module, _ = _for_target(replace(self.job.model, module=folded, config=folded.config), self.job)
            module = self._scaled(module)
        return exported(self.job, module)

    def with_streams(self, exponents: Sequence[int]) -> TargetNetwork:
        """Return the network with its residual streams scaled as a plan has them; itself where none is."""
        return TargetNetwork(self.job, self.folded, exponents, self._input_error) if any(exponents) else self

    def _scaled(self, module: Network) -> Network:
        from edgeconvnext.rewrite.residual_streams import scale_streams

        return scale_streams(module, self.stream_exponents) if self.stream_exponents else module


def _for_target(model: LoadedModel, job: Job) -> tuple[Network, float]:
    """Fold the input normalisation where the target takes raw pixels, give GELUs its form; return the error of the fold."""
    from edgeconvnext.rewrite.exact import fold_exact
    from edgeconvnext.rewrite.gelu import with_gelu

    value_range, gelu = job.target.input.value_range, job.target.layout.gelu
    if value_range == "normalized":
        return with_gelu(model.module, gelu), 0.0
    result = fold_exact(model.module, proof_images(job), preprocess=model.preprocess, value_range=value_range)
    return with_gelu(result.module, gelu), result.errors["input_normalization"]


def _for_target_as_proven(model: LoadedModel, job: Job) -> Network:
    """Do what `_for_target` does to the same network once more, without proving it again."""
    from edgeconvnext.rewrite.exact import fold_input_normalization
    from edgeconvnext.rewrite.gelu import with_gelu

    value_range, gelu = job.target.input.value_range, job.target.layout.gelu
    if value_range == "normalized":
        return with_gelu(model.module, gelu)
    return with_gelu(fold_input_normalization(model.module, model.preprocess, value_range), gelu)


def exported(job: Job, module: Network) -> ExportedProgram:
    """Export a network with a free batch and, where the job has several sizes, free height and width."""
    from edgeconvnext.model.program import export_program

    height, width = job.model.preprocess.input_size
    example = torch.zeros(1, job.model.config.in_channels, height, width)
    return export_program(module, example, max_batch=_max_batch(job), sizes=job.size_range)


def _max_batch(job: Job) -> int:
    """Largest batch of the graph, dynamic for every target: evaluation runs MOST_AT_ONCE images at a time at most."""
    return max(job.target.input.batch[2], MOST_AT_ONCE)
