"""The blocks of a network as they are pruned: each with the original blocks it stands for, and the data on its way through them.

A block that stays stands for itself and for removed blocks beside it: those behind it, and those before it at the start of a
stage. Its input is compared with the original network's before the first of them, its output with that behind the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext import Block, ConvNeXt, ConvNeXtConfig
from edgeconvnext.tensor_file import TensorFile

FEWEST_IMAGES = 3


@dataclass(frozen=True)
class Segment:
    """The block `stages.<stage>.<owner>` and the original blocks `first` to `last` that it stands for."""

    stage: int
    owner: int
    first: int
    last: int

    @property
    def path(self) -> str:
        return f"stages.{self.stage}.{self.owner}"

    def block(self, reference: ConvNeXt) -> Block:
        """Return the block of the original network."""
        block = reference.get_submodule(self.path)
        assert isinstance(block, Block)
        return block

    def run(self, reference: ConvNeXt, x: torch.Tensor) -> torch.Tensor:
        """Return what the original network has behind the segment, for its input x, (N, C, H, W)."""
        for index in range(self.first, self.last + 1):
            x = reference.get_submodule(f"stages.{self.stage}.{index}")(x)
        return x

    def tail(self, reference: ConvNeXt, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the original network for the segment's output x."""
        for index in range(self.last + 1, reference.config.depths[self.stage]):
            x = reference.get_submodule(f"stages.{self.stage}.{index}")(x)
        for stage in range(self.stage + 1, len(reference.config.depths)):
            x = reference.get_submodule(f"stages.{stage}")(reference.downsample_layers[stage](x))
        return reference.forward_head(x)


def segments_of(config: ConvNeXtConfig, removed: list[str]) -> list[Segment]:
    """Return one segment for each block that stays, in forward order. removed: paths such as "stages.2.4"."""
    segments = []
    for stage, depth in enumerate(config.depths):
        kept = [index for index in range(depth) if f"stages.{stage}.{index}" not in removed]
        for position, owner in enumerate(kept):
            first = owner if position else 0
            last = kept[position + 1] - 1 if position + 1 < len(kept) else depth - 1
            segments.append(Segment(stage, owner, first, last))
    return segments


def hidden_widths(config: ConvNeXtConfig) -> dict[str, int]:
    """Return the width between pwconv1 and pwconv2 of each block, by its path."""
    return {
        f"stages.{stage}.{index}": width
        for stage, widths in enumerate(config.hidden_widths)
        for index, width in enumerate(widths)
    }


def stored(images: TensorFile, fit: Iterable[torch.Tensor], held_out: Iterable[torch.Tensor]) -> tuple[int, int]:
    """Write the images to fit on and those held out into `images`, and return how many there are of each.

    Raises RewriteError where there are none.
    """
    counts = []
    for batches in (fit, held_out):
        before = len(images)
        for batch in batches:
            images.append(batch)
        counts.append(len(images) - before)
    if not all(counts):
        raise RewriteError(
            f"Weights are fitted on calibration images and judged on others; there are {counts[0]} and {counts[1]}. Name "
            f"a set of at least {FEWEST_IMAGES} images with --calib, better 200 or more."
        )
    return counts[0], counts[1]


def run_reference(reference: ConvNeXt, images: TensorFile, counts: tuple[int, int]) -> torch.Tensor:
    """Return the logits of the held-out images, which lie behind the images to fit on, (held out, classes)."""
    return torch.cat([reference(batch) for batch in images.batches(counts[0], sum(counts))])


def written(path: Path, source: TensorFile, function: Callable[[torch.Tensor], torch.Tensor]) -> TensorFile:
    """Return a new file that holds `function` of every row of `source`."""
    file = TensorFile(path)
    for batch in source.batches(0, len(source)):
        file.append(function(batch))
    return file


def logit_kl(expected: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the mean KL(softmax(expected) || softmax(logits)) over images, in nats. Both (N, classes)."""
    return float(
        F.kl_div(
            logits.double().log_softmax(1), expected.double().log_softmax(1), log_target=True, reduction="batchmean"
        )
    )
