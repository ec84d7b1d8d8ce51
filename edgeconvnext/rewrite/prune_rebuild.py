"""The pruned network, built block after block on what the blocks before it hand over."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from edgeconvnext.choices import Score
from edgeconvnext.model.build import build
from edgeconvnext.model.convnext.network import Block, ConvNeXt
from edgeconvnext.progress import progress_bar
from edgeconvnext.rewrite.moments import MomentSums, require_finite
from edgeconvnext.rewrite.paired_networks import PairedActivations, StoredImages
from edgeconvnext.rewrite.prune_channels import refit, removal_order
from edgeconvnext.rewrite.prune_segments import Segment, enter_stage


def rebuild(
    reference: ConvNeXt,
    segments: list[Segment],
    images: StoredImages,
    folder: Path,
    widths: dict[str, int],
    scores: dict[str, Score],
    taylor: dict[str, torch.Tensor],
    compensation: float,
) -> tuple[ConvNeXt, dict[str, float]]:
    """Return the network with these blocks and widths, and the relative error of each changed block on held-out images.

    folder: where block inputs lie meanwhile. compensation: the share of the error in a block's input that its branch is fitted
    to take back; at 0 it is fitted to the original branch.
    """
    blocks: dict[str, Block] = {}
    errors: dict[str, float] = {}
    stage = -1
    with PairedActivations(images, folder) as inputs, progress_bar("Rebuilding the network", len(segments)) as advance:
        for segment in segments:
            if segment.stage != stage:
                stage = segment.stage
                inputs.step(partial(enter_stage, reference, stage))
            block, path = segment.block(reference), segment.path
            if not inputs.same or widths[path] < block.pwconv2.in_features or segment.first < segment.last:
                blocks[path] = _fitted(
                    reference, segment, inputs, widths[path], scores[path], taylor.get(path), compensation
                )
                errors[path] = _relative_error(reference, segment, blocks[path], inputs)
                inputs.step(partial(segment.run, reference), blocks[path])
            else:
                blocks[path] = copy.deepcopy(block)
                inputs.step(block)
            advance(1)
    return _assembled(reference, segments, blocks), errors


def _fitted(
    reference: ConvNeXt,
    segment: Segment,
    inputs: PairedActivations,
    width: int,
    score: Score,
    taylor: torch.Tensor | None,
    compensation: float,
) -> Block:
    """Return the segment's block with `width` hidden channels and its pwconv2 fitted on the images to fit on."""
    block = segment.block(reference)
    sums = MomentSums(block.pwconv2.in_features, block.pwconv2.out_features)
    for x, y in inputs.fit():
        target = segment.run(reference, x) - torch.lerp(x, y, compensation)
        sums.add(block.hidden(y).flatten(0, 2), target.permute(0, 2, 3, 1).flatten(0, 2))
    moments = require_finite(sums.result(), segment.path)
    full = block.pwconv2.in_features
    order = removal_order(block, moments, score, taylor) if width < full else torch.arange(full)
    channels = order[full - width :].sort().values
    weight, bias = refit(block.pwconv2.weight, moments, channels)
    narrow = copy.deepcopy(block)
    narrow.pwconv1 = _linear(block.pwconv1.weight[channels], block.pwconv1.bias[channels])
    narrow.pwconv2 = _linear(weight, bias)
    return narrow


def _relative_error(reference: ConvNeXt, segment: Segment, block: Block, inputs: PairedActivations) -> float:
    """RMS error of the block's output against the original's, relative to the RMS variation of what the original adds."""
    error = power = 0.0
    sums, positions = torch.zeros(1), 0
    for x, y in inputs.held_out():
        output = segment.run(reference, x)
        added = (output - x).double()
        error += float((output - block(y)).square().sum(dtype=torch.float64))
        power += float(added.square().sum())
        sums = sums + added.sum(dim=(0, 2, 3))
        positions += added.numel() // added.shape[1]
    variation = power - float(sums.square().sum()) / positions
    return (error / variation) ** 0.5 if variation > 0 else 0.0


def _assembled(reference: ConvNeXt, segments: list[Segment], blocks: dict[str, Block]) -> ConvNeXt:
    """Put the blocks into a network of their sizes, everything else as it was."""
    config = reference.config
    by_stage = [[segment for segment in segments if segment.stage == stage] for stage in range(len(config.depths))]
    hidden = tuple(tuple(blocks[each.path].pwconv2.in_features for each in stage) for stage in by_stage)
    depths = tuple(len(stage) for stage in by_stage)
    tensors = {name: value for name, value in reference.state_dict().items() if not name.startswith("stages.")}
    gone = [norm for norm in config.identity_norms if not norm.startswith("stages.")]
    for stage, owners in enumerate(by_stage):
        for index, segment in enumerate(owners):
            state = blocks[segment.path].state_dict()
            tensors |= {f"stages.{stage}.{index}.{name}": value for name, value in state.items()}
            if f"{segment.path}.norm" in config.identity_norms:
                gone.append(f"stages.{stage}.{index}.norm")
    changed = dataclasses.replace(config, depths=depths, hidden=hidden, identity_norms=tuple(gone))
    pruned = cast(ConvNeXt, build(changed)).to(next(reference.parameters()))
    pruned.load_state_dict(tensors)
    return pruned.eval()


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.detach().float().contiguous())
    layer.bias = nn.Parameter(bias.detach().float().contiguous())
    return layer
