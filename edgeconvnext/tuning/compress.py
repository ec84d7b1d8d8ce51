"""Make a network smaller and its norms cheaper before it is quantised: prune, replace LayerNorms, recover; each step measured."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from edgeconvnext.backends import backend_for
from edgeconvnext.backends.metadata import UNKNOWN_NORMALIZATION
from edgeconvnext.choices import NormScope
from edgeconvnext.data.image_classes import classes_of_images
from edgeconvnext.data.image_set import ImageSet, split_held_out
from edgeconvnext.data.loader import batches, check_broken
from edgeconvnext.errors import LabelMismatchError, RewriteError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.macs import count_macs, count_parameters
from edgeconvnext.options.commands import REFIT_IMAGES
from edgeconvnext.options.groups import Compression, Measuring
from edgeconvnext.rewrite.channel_norm import fold_batch_norms, leave_inputs_as_they_are, with_batch_norms
from edgeconvnext.rewrite.exact import PROOF_IMAGES, fold_exact
from edgeconvnext.rewrite.float_timer import FloatTimer
from edgeconvnext.rewrite.norms import replace_norms, replaceable_norms
from edgeconvnext.rewrite.paired_networks import StoredImages
from edgeconvnext.rewrite.prune import prune
from edgeconvnext.rewrite.prune_costs import Budget
from edgeconvnext.schema.report import (
    CompressionRecord,
    HeldOutLoss,
    NormVerdict,
    PruningRecord,
    RecoveryRecord,
)
from edgeconvnext.targets import Target
from edgeconvnext.train.distill import DistillOptions, distill
from edgeconvnext.tuning.norm_latency import measure_norm_latencies, norm_elements
from edgeconvnext.tuning.norm_removal import Loss, measure_loss, replace_within_budget

FEWEST_IMAGES = 6
"""A third of them is held out, and recovery learns from the others."""


@dataclass(frozen=True)
class CompressOptions:
    """What is done to a network.

    macs: share of the multiply-adds to keep; None prunes nothing. replace_norms: whether LayerNorms may go; norms: all of them, or
    those of blocks only, behind the depthwise convs. max_drop: points that replacing norms may cost on held-out images. recover:
    whether the result is trained, without labels, towards the original; epochs, minutes: how long (`train.distill`). images: as
    REFIT_IMAGES. multiple: of hidden widths; None: the target's. threads, measure_latency: of the runtime, if it is here; what
    a norm saves decides which go, so a run remembers both, and validating it anew keeps its network.
    """

    macs: float | None = None
    replace_norms: bool = Compression.replace_norm
    norms: NormScope = Compression.norms
    max_drop: float = Compression.norm_drop
    recover: bool = Compression.recover
    epochs: int = Compression.epochs
    minutes: float | None = None
    images: int = REFIT_IMAGES
    multiple: int | None = None
    threads: int = Measuring.threads
    measure_latency: bool = Measuring.latency

    def check(self) -> None:
        """Raise RewriteError for values that make no sense, before any image is read."""
        if self.macs is not None and not 0 < self.macs <= 1:
            raise RewriteError(
                f"The share of multiply-adds to keep must lie above 0 and at most at 1; it is {self.macs:g}."
            )
        if not 0 < self.max_drop <= 100:
            raise RewriteError(
                f"Replacing LayerNorms may cost points above 0 and up to 100, as in 0.5; {self.max_drop:g} were allowed."
            )
        if self.images < FEWEST_IMAGES:
            raise RewriteError(
                f"Layers are re-fitted on at least {FEWEST_IMAGES} images, better hundreds; {self.images} were asked for."
            )
        if self.epochs < 1 or (self.minutes is not None and not 0 < self.minutes < math.inf):
            raise RewriteError("Recovery takes at least one epoch (--epochs) and a time above 0 (--budget-minutes).")


@dataclass(frozen=True)
class Compressed:
    """The changed network, exactly folded, and what was done and measured."""

    module: ConvNeXt
    record: CompressionRecord


def compress(
    model: LoadedModel,
    images: ImageSet,
    options: CompressOptions,
    target: Target,
    *,
    checkpoint: Path | None = None,
) -> Compressed:
    """Prune, replace LayerNorms and recover, as `options` say, in this order.

    images: unlabelled or labelled; `options.images` of them are fitted on and judged by, and recovery trains on all but those held
    out. checkpoint: where recovery is saved meanwhile and resumed from. Raises RewriteError for budgets that cannot be met.
    """
    options.check()
    if not model.module.inverted_bottlenecks:
        raise RewriteError(
            f"Pruning, replacing LayerNorms and recovery know ConvNeXts; {model.name} is another network. Quantise it as it is."
        )
    if options.recover and UNKNOWN_NORMALIZATION in model.notes:
        raise RewriteError(
            "Recovery trains on pixels, and the mean and std of the images in memory are not known. Give images that are not "
            "prepared, or a model with its mean and std: edgeconvnext.load_model(model, mean=..., std=...)."
        )
    chosen = images.take(options.images)
    if len(chosen) < FEWEST_IMAGES:
        raise RewriteError(
            f"Layers are re-fitted on at least {FEWEST_IMAGES} images, better hundreds; {images.name} has {len(chosen)}."
        )
    fit, held_out = split_held_out(chosen)
    labels = _labels(chosen, model, held_out)
    proof = torch.cat(list(read_images(model, chosen, fit[:PROOF_IMAGES])))
    original = cast(ConvNeXt, fold_exact(model.module, proof).module)
    with tempfile.TemporaryDirectory(prefix="edgeconvnext-") as scratch:
        folder = Path(scratch)
        with StoredImages(folder, read_images(model, chosen, fit), read_images(model, chosen, held_out)) as stored:
            work = _Work(model, original, stored, labels, folder, options, target)
            module = work.prune(original)
            module = work.replace_norms(module)
            if options.recover:
                held = {chosen.ids[index] for index in held_out}
                train = [index for index, name in enumerate(images.ids) if name not in held]
                module = work.recover(module, images, train, checkpoint)
            return Compressed(module, work.record(module))


class _Work:
    """The steps, and what each found."""

    def __init__(
        self,
        model: LoadedModel,
        original: ConvNeXt,
        stored: StoredImages,
        labels: np.ndarray | None,
        folder: Path,
        options: CompressOptions,
        target: Target,
    ) -> None:
        self.model = model
        self.original = original
        self.stored = stored
        self.labels = labels
        self.folder = folder
        self.options = options
        self.target = target
        self.pruning: PruningRecord | None = None
        self.verdicts: tuple[NormVerdict, ...] = ()
        self.recovery: RecoveryRecord | None = None
        self.pruned = original

    def prune(self, module: ConvNeXt) -> ConvNeXt:
        if self.options.macs is None:
            return module
        result = prune(
            module,
            self.stored.fit(),
            self.stored.held_out(),
            Budget("macs", self.options.macs),
            input_size=self.model.preprocess.input_size,
            multiple=self.options.multiple or backend_for(self.target).limits.channel_multiple,
        )
        changed = {block.path: block.relative_error for block in result.blocks if block.relative_error is not None}
        self.pruning = PruningRecord(
            asked_macs=self.options.macs, widths=result.widths, errors=changed, loss=_record(self.loss(result.module))
        )
        self.pruned = result.module
        return result.module

    def replace_norms(self, module: ConvNeXt) -> ConvNeXt:
        if not self.options.replace_norms:
            return module
        timed = self._norm_latencies(module)
        saved = norm_elements(module, self.model.preprocess.input_size) if timed is None else timed
        found = replace_within_budget(
            module,
            self.stored,
            self.folder,
            self.labels,
            # What pruning lost is not the norms' to pay for.
            max_drop=self.options.max_drop + (0.0 if self.pruning is None else self.pruning.loss.expected_points),
            saved=saved,
            unit="values" if timed is None else "ms",
            reference=None if self.pruning is None else self.original,
            norms=self._asked(module),
        )
        self.verdicts = found.verdicts
        return found.module

    def recover(self, module: ConvNeXt, images: ImageSet, train: list[int], checkpoint: Path | None) -> ConvNeXt:
        """Train towards the original; with norms to replace, the network without any of them, if that keeps the budget."""
        before = self.loss(module)
        student, every = module, False
        norms: list[str] = []
        if self.options.replace_norms:
            norms = self._asked(self.pruned)
            reference = None if self.pruning is None else self.original
            frozen = replace_norms(self.pruned, norms, self.stored, self.folder, reference=reference).module
            student, every = with_batch_norms(frozen, norms), True
            leave_inputs_as_they_are(student, self.stored.fit())
        options = DistillOptions(epochs=self.options.epochs, budget_minutes=self.options.minutes)
        trained = distill(
            student, self.original, images, self.model.preprocess, options, indices=train, checkpoint=checkpoint
        )
        result = fold_batch_norms(trained.module)
        after = self.loss(result)
        spent = 0.0 if self.pruning is None else self.pruning.loss.expected_points
        # Where all the norms are gone without training, what training gives must be the better network.
        nearer = after.kl < before.kl
        kept = nearer
        if every:
            gone_before = set(norms) <= set(module.config.identity_norms)
            kept = after.within(self.options.max_drop + spent) and (nearer or not gone_before)
        self.recovery = RecoveryRecord(
            epochs=len(trained.losses),
            images=trained.images,
            minutes=trained.minutes,
            losses=list(trained.losses),
            before=_record(before),
            after=_record(after),
            kept=kept,
        )
        if kept and every:
            self.verdicts = tuple(
                row.model_copy(
                    update={"method": "trained", "verdict": "replaced", "why": _trained(self.options.max_drop)}
                )
                if row.method == "frozen" and row.norm in norms
                else row
                for row in self.verdicts
            )
        return result if kept else module

    def loss(self, module: ConvNeXt) -> Loss:
        """Compare with the original on the held-out images."""
        with torch.no_grad():
            pairs = [(self.original(batch), module.eval()(batch)) for batch in self.stored.held_out()]
        expected, logits = (torch.cat(side) for side in zip(*pairs, strict=True))
        return measure_loss(expected, logits, self.labels)

    def record(self, module: ConvNeXt) -> CompressionRecord:
        size = self.model.preprocess.input_size
        latency = None
        timer = self._timer()
        if timer is not None:
            latency = timer.compare_latency(
                self.original, module, (module.config.in_channels, *size), threads=self.options.threads
            )
        return CompressionRecord(
            images=self.stored.fit_images + self.stored.held_out_images,
            held_out=self.stored.held_out_images,
            judged_by="agreement"
            if self.labels is None
            else "accuracy"
            if self.original.config.num_classes == 1
            else "top-1",
            max_drop=self.options.max_drop if self.options.replace_norms else None,
            macs_before=count_macs(self.original, size),
            macs_after=count_macs(module, size),
            parameters_before=count_parameters(self.original),
            parameters_after=count_parameters(module),
            pruning=self.pruning,
            norms=list(self.verdicts),
            recovery=self.recovery,
            loss=_record(self.loss(module)),
            latency=latency,
        )

    def _asked(self, module: ConvNeXt) -> list[str]:
        every = self.options.norms == "all"
        return [norm for norm in replaceable_norms(module) if every or norm.startswith("stages.")]

    def _norm_latencies(self, module: ConvNeXt) -> dict[str, float] | None:
        timer = self._timer()
        if timer is None:
            return None
        return measure_norm_latencies(module, self.model.preprocess.input_size, timer, threads=self.options.threads)

    def _timer(self) -> FloatTimer | None:
        """Return what times float networks in the target's runtime; None where that is not here, or nothing is to be timed."""
        return backend_for(self.target).float_timer() if self.options.measure_latency else None


def _trained(max_drop: float) -> str:
    return f"gone with all others after recovery, within {max_drop:g} points"


def _record(loss: Loss) -> HeldOutLoss:
    return HeldOutLoss(
        points=loss.points,
        expected_points=loss.expected_points,
        kl=loss.kl,
        agreement=loss.agreement,
        agreement_low=loss.agreement_low,
        agreement_high=loss.agreement_high,
    )


def _labels(images: ImageSet, model: LoadedModel, held_out: list[int]) -> np.ndarray | None:
    """Return the model's classes of the held-out images, or None where they are not known."""
    try:
        return classes_of_images(images, model.labels, model.config.num_classes)[held_out]
    except LabelMismatchError:
        return None


def read_images(model: LoadedModel, images: ImageSet, indices: list[int]) -> Iterator[torch.Tensor]:
    """Read some images of a set as batches (N, C, H, W), preprocessed as the model's checkpoint says."""
    stream = batches(images, model.preprocess, indices=indices, description="Reading images")
    for batch in stream:
        yield batch.images
    check_broken(images, stream.skipped)


def compressed_model(model: LoadedModel, result: Compressed) -> LoadedModel:
    """Return the loaded model with its network replaced."""
    return replace(model, module=result.module, config=result.module.config)
