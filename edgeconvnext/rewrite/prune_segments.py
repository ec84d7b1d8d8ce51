"""The blocks of a network as they are pruned: each with the original blocks it stands for, and the data on its way through them.

A block that stays stands for itself and for removed blocks beside it: those behind it, and those before it at the start of a
stage. Its input is compared with the original network's before the first of them, its output with that behind the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F

from edgeconvnext.decisions import two_logits
from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import Block, ConvNeXt, ConvNeXtConfig
from edgeconvnext.rewrite.paired_networks import StoredImages

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
        return cast(Block, reference.get_submodule(self.path))

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
        staying = [index for index in range(depth) if f"stages.{stage}.{index}" not in removed]
        for position, owner in enumerate(staying):
            first = owner if position else 0
            last = staying[position + 1] - 1 if position + 1 < len(staying) else depth - 1
            segments.append(Segment(stage, owner, first, last))
    return segments


def hidden_widths(config: ConvNeXtConfig) -> dict[str, int]:
    """Return the width between pwconv1 and pwconv2 of each block, by its path."""
    return {
        f"stages.{stage}.{index}": width
        for stage, widths in enumerate(config.hidden_widths)
        for index, width in enumerate(widths)
    }


def check_images(images: StoredImages) -> None:
    """Raise RewriteError where there are none to fit on, or none to judge by."""
    if not (images.fit_images and images.held_out_images):
        raise RewriteError(
            f"Weights are fitted on calibration images and judged on others; there are {images.fit_images} and "
            f"{images.held_out_images}. Name a set of at least {FEWEST_IMAGES} images with --calib, better 200 or more."
        )


def run_held_out(network: ConvNeXt, images: StoredImages) -> torch.Tensor:
    """Return the logits of the held-out images, (held out, classes)."""
    return torch.cat([network(batch) for batch in images.held_out()])


def enter_stage(reference: ConvNeXt, stage: int, x: torch.Tensor) -> torch.Tensor:
    """Return what the stem or the downsampling layer in front of a stage makes of x, (N, C, H, W)."""
    return reference.downsample_layers[stage](x) if stage else reference.forward_stem(x)


def logit_agreement(expected: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the share of images with the same class, or the same sign of one logit, per cent. Both (N, classes)."""
    return 100 * float((two_logits(expected).argmax(1) == two_logits(logits).argmax(1)).float().mean())


def logit_kl(expected: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the mean KL(softmax(expected) || softmax(logits)) over images, in nats. Both (N, classes)."""
    expected, logits = two_logits(expected), two_logits(logits)
    return float(
        F.kl_div(
            logits.double().log_softmax(1), expected.double().log_softmax(1), log_target=True, reduction="batchmean"
        )
    )
