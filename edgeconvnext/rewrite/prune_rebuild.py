"""The pruned network, built block after block on what the blocks before it hand over."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
from torch import nn

from edgeconvnext.model.convnext import Block, ConvNeXt
from edgeconvnext.progress import progress_bar
from edgeconvnext.rewrite.prune_channels import MomentSums, Score, refit, removal_order
from edgeconvnext.rewrite.prune_segments import Segment
from edgeconvnext.tensor_file import TensorFile, pairs_of


def rebuild(
    reference: ConvNeXt,
    segments: list[Segment],
    images: TensorFile,
    counts: tuple[int, int],
    folder: Path,
    widths: dict[str, int],
    scores: dict[str, Score],
    taylor: dict[str, torch.Tensor],
    compensation: float,
) -> tuple[ConvNeXt, dict[str, float]]:
    """Return the network with these blocks and widths, and the relative error of each changed block on held-out images.

    images: those to fit on, then those held out, `counts` of them. folder: where block inputs lie meanwhile. compensation: the
    share of the error in a block's input that its branch is fitted to take back; at 0 it is fitted to the original branch.
    """
    blocks: dict[str, Block] = {}
    errors: dict[str, float] = {}
    expected = given = images
    stage, changed = -1, False
    with progress_bar("Rebuilding the network", len(segments)) as advance:
        for number, segment in enumerate(segments):
            if segment.stage != stage:
                stage = segment.stage
                expected, given = _downsampled(reference, stage, expected, given, images, folder)
            block, path = segment.block(reference), segment.path
            width = widths[path]
            if changed or width < block.pwconv2.in_features or segment.first < segment.last:
                blocks[path] = _fitted(
                    reference, segment, expected, given, counts[0], width, scores[path], taylor.get(path), compensation
                )
                errors[path] = _relative_error(reference, segment, blocks[path], expected, given, counts)
                changed = True
            else:
                blocks[path] = copy.deepcopy(block)
            following = [TensorFile(folder / f"rebuilt-{name}{number % 2}.bin") for name in ("expected", "given")]
            for x, y in pairs_of(expected, given, 0, sum(counts)):
                following[0].append(segment.run(reference, x))
                following[1].append(blocks[path](y))
            _drop(images, expected, given)
            expected, given = following
            advance(1)
    _drop(images, expected, given)
    return _assembled(reference, segments, blocks), errors


def _fitted(
    reference: ConvNeXt,
    segment: Segment,
    expected: TensorFile,
    given: TensorFile,
    count: int,
    width: int,
    score: Score,
    taylor: torch.Tensor | None,
    compensation: float,
) -> Block:
    """Return the segment's block with `width` hidden channels and its pwconv2 fitted on the first `count` images."""
    block = segment.block(reference)
    sums = MomentSums(block.pwconv2.in_features, block.pwconv2.out_features)
    for x, y in pairs_of(expected, given, 0, count):
        target = segment.run(reference, x) - torch.lerp(x, y, compensation)
        sums.add(block.hidden(y).flatten(0, 2), target.permute(0, 2, 3, 1).flatten(0, 2))
    moments = sums.result(segment.path)
    full = block.pwconv2.in_features
    order = removal_order(block, moments, score, taylor) if width < full else torch.arange(full)
    kept = order[full - width :].sort().values
    weight, bias = refit(block.pwconv2.weight, moments, kept)
    narrow = copy.deepcopy(block)
    narrow.pwconv1 = _linear(block.pwconv1.weight[kept], block.pwconv1.bias[kept])
    narrow.pwconv2 = _linear(weight, bias)
    return narrow


def _relative_error(
    reference: ConvNeXt,
    segment: Segment,
    block: Block,
    expected: TensorFile,
    given: TensorFile,
    counts: tuple[int, int],
) -> float:
    """RMS error of the block's output against the original's, relative to the RMS variation of what the original adds."""
    error = power = 0.0
    sums, positions = torch.zeros(1), 0
    for x, y in pairs_of(expected, given, counts[0], sum(counts)):
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
    pruned = ConvNeXt(changed).to(next(reference.parameters()))
    pruned.load_state_dict(tensors)
    return pruned.eval()


def _downsampled(
    reference: ConvNeXt, stage: int, expected: TensorFile, given: TensorFile, images: TensorFile, folder: Path
) -> tuple[TensorFile, TensorFile]:
    """Pass both streams through the stem or the downsampling layer in front of `stage`."""
    following = TensorFile(folder / f"entered-expected{stage}.bin"), TensorFile(folder / f"entered-given{stage}.bin")
    for x, y in pairs_of(expected, given, 0, len(expected)):
        for file, batch in zip(following, (x, y), strict=True):
            file.append(reference.downsample_layers[stage](batch) if stage else reference.forward_stem(batch))
    _drop(images, expected, given)
    return following


def _drop(images: TensorFile, *files: TensorFile) -> None:
    for file in files:
        if file is not images:
            file.delete()


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.detach().float().contiguous())
    layer.bias = nn.Parameter(bias.detach().float().contiguous())
    return layer
