"""Removal of whole blocks: the one whose loss is least goes, with the block beside it fitted to answer for both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.progress import progress_bar
from edgeconvnext.rewrite.paired_networks import PairedActivations, StoredImages
from edgeconvnext.rewrite.prune_curves import fitted_layer, measured_kl, segment_moments
from edgeconvnext.rewrite.prune_segments import Segment, enter_stage, segments_of


@dataclass(frozen=True)
class Removal:
    """A block that was taken out. owner: the block fitted to answer for it. kl: of the logits in nats, held-out images, with the
    blocks between the owner's neighbours replaced by the owner alone. others: what taking out another block would have cost."""

    path: str
    owner: str
    kl: float
    others: dict[str, float]


def remove_blocks(reference: ConvNeXt, images: StoredImages, logits: torch.Tensor, count: int) -> list[Removal]:
    """Choose `count` blocks, one after the other, by the rise of the measured KL; every stage keeps at least one.

    logits: the original network's of the held-out images.
    """
    measured: dict[Segment, float] = {}
    removed: list[Removal] = []
    with TemporaryDirectory(prefix="edgeconvnext-depth-") as name, progress_bar("Choosing blocks", count) as advance:
        for _ in range(count):
            gone = [removal.path for removal in removed]
            now = segments_of(reference.config, gone)
            rises: dict[str, tuple[float, Segment]] = {}
            for segment in now:
                after = segments_of(reference.config, [*gone, segment.path])
                changed = [each for each in after if each not in now]
                if not changed:
                    continue  # the last block of its stage
                owner = changed[0]
                before = sum(
                    measured.get(each, 0.0)
                    for each in now
                    if owner.first <= each.owner <= owner.last and each.stage == owner.stage
                )
                if owner not in measured:
                    measured[owner] = _kl(reference, owner, images, logits, Path(name))
                rises[segment.path] = (measured[owner] - before, owner)
            if not rises:
                raise RewriteError(
                    f"--blocks {count} cannot be met: every stage keeps at least one block, and after {len(removed)} "
                    "none is left to go."
                )
            path = min(rises, key=lambda each: rises[each][0])
            owner = rises[path][1]
            others = {each: rise for each, (rise, _) in rises.items() if each != path}
            removed.append(Removal(path, owner.path, measured[owner], others))
            advance(1)
    return removed


def _kl(reference: ConvNeXt, segment: Segment, images: StoredImages, logits: torch.Tensor, folder: Path) -> float:
    """Measure the segment's block, fitted to stand for the whole segment, in the original network."""
    with PairedActivations(images, folder) as inputs:
        inputs.step(partial(_before, reference, segment))
        block = segment.block(reference)
        moments = segment_moments(reference, segment, inputs)
        width = block.pwconv2.in_features
        layer = fitted_layer(block.pwconv2.weight, moments, torch.arange(width), width)
        return measured_kl(reference, segment, inputs, logits, [layer])[0]


def _before(reference: ConvNeXt, segment: Segment, x: torch.Tensor) -> torch.Tensor:
    """Return the segment's input in the original network, for images x."""
    for stage in range(segment.stage + 1):
        x = enter_stage(reference, stage, x)
        if stage < segment.stage:
            x = reference.get_submodule(f"stages.{stage}")(x)
    for index in range(segment.first):
        x = reference.get_submodule(f"stages.{segment.stage}.{index}")(x)
    return x
