"""What each block loses at several widths: KL of the logits on held-out images with this block alone pruned and re-fitted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from edgeconvnext.choices import Score
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.progress import progress_bar
from edgeconvnext.rewrite.moments import Moments, MomentSums, require_finite
from edgeconvnext.rewrite.paired_networks import PairedActivations, StoredImages
from edgeconvnext.rewrite.prune_channels import SINGLE_SCORES, refit, removal_order
from edgeconvnext.rewrite.prune_segments import Segment, enter_stage, logit_kl

SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Widths that are measured beside the narrowest, as shares of the block's own; between them log(KL) is interpolated."""

PROBE = 3 / 8
"""Width at which the scores compete."""


@dataclass(frozen=True)
class Curve:
    """One block. points: KL in nats by width; score: what chose the channels; probes: KL of every score at PROBE."""

    score: Score
    points: dict[int, float]
    probes: dict[Score, float]


Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Channels that stay, (width,) indices ascending; the weight, (dim, width), and bias, (dim,), of pwconv2 for them, float32."""


def measure_curves(
    reference: ConvNeXt,
    segments: list[Segment],
    images: StoredImages,
    logits: torch.Tensor,
    folder: Path,
    score: Score,
    taylor: dict[str, torch.Tensor],
    multiple: int,
) -> dict[str, Curve]:
    """Return the curve of each segment's block, by its path.

    logits: the original network's of the held-out images. folder: where block inputs lie meanwhile. taylor: scores by block,
    where `score` needs them.
    """
    curves: dict[str, Curve] = {}
    stage = -1
    label = "Measuring each block at several widths"
    with PairedActivations(images, folder) as inputs, progress_bar(label, len(segments)) as advance:
        for segment in segments:
            if segment.stage != stage:
                stage = segment.stage
                inputs.step(partial(enter_stage, reference, stage))
            curves[segment.path] = _curve(reference, segment, inputs, logits, score, taylor.get(segment.path), multiple)
            inputs.step(partial(segment.run, reference))
            advance(1)
    return curves


def segment_moments(reference: ConvNeXt, segment: Segment, inputs: PairedActivations) -> Moments:
    """Return the statistics of the segment's block on the inputs it has in the original network, of the images to fit on."""
    block = segment.block(reference)
    sums = MomentSums(block.pwconv2.in_features, block.pwconv2.out_features)
    for batch, _ in inputs.fit():
        target = (segment.run(reference, batch) - batch).permute(0, 2, 3, 1)
        sums.add(block.hidden(batch).flatten(0, 2), target.flatten(0, 2))
    return require_finite(sums.result(), segment.path)


def measured_kl(
    reference: ConvNeXt,
    segment: Segment,
    inputs: PairedActivations,
    logits: torch.Tensor,
    layers: list[Layer],
) -> list[float]:
    """Return the KL of the logits for each of several pwconv2 of the segment's block, everything else as it was."""
    block = segment.block(reference)
    answers: list[list[torch.Tensor]] = [[] for _ in layers]
    for batch, _ in inputs.held_out():
        hidden = block.hidden(batch)
        for (channels, weight, bias), batches in zip(layers, answers, strict=True):
            added = F.linear(hidden[..., channels], weight, bias).permute(0, 3, 1, 2)
            batches.append(segment.tail(reference, batch + added))
    return [logit_kl(logits, torch.cat(batches)) for batches in answers]


def fitted_layer(weight: torch.Tensor, moments: Moments, order: torch.Tensor, width: int) -> Layer:
    """Return the re-fitted pwconv2 on the last `width` channels of a removal order."""
    channels = order[len(order) - width :].sort().values
    fitted, bias = refit(weight, moments, channels)
    return channels, fitted.float(), bias.float()


def _curve(
    reference: ConvNeXt,
    segment: Segment,
    inputs: PairedActivations,
    logits: torch.Tensor,
    score: Score,
    taylor: torch.Tensor | None,
    multiple: int,
) -> Curve:
    block = segment.block(reference)
    weight = block.pwconv2.weight
    width = weight.shape[1]
    moments = segment_moments(reference, segment, inputs)
    names: tuple[Score, ...] = SINGLE_SCORES if score == "auto" else (score,)
    orders = {name: removal_order(block, moments, name, taylor) for name in names}
    probes: dict[Score, float] = {}
    if len(names) > 1:
        probe = measured_width(width, PROBE, multiple)
        layers = [fitted_layer(weight, moments, order, probe) for order in orders.values()]
        kls = measured_kl(reference, segment, inputs, logits, layers)
        probes = dict(zip(orders, kls, strict=True))
    chosen = min(probes, key=lambda name: probes[name]) if probes else names[0]
    widths = sorted({min(multiple, width), *(measured_width(width, share, multiple) for share in SHARES)} - {width})
    if segment.first < segment.last:  # it stands for removed blocks too, and loses something at its full width
        widths.append(width)
    layers = [fitted_layer(weight, moments, orders[chosen], each) for each in widths]
    kls = measured_kl(reference, segment, inputs, logits, layers)
    return Curve(chosen, {width: 0.0} | dict(zip(widths, kls, strict=True)), probes)


def measured_width(width: int, share: float, multiple: int) -> int:
    """Return a share of a width as the nearest multiple, at least one and at most the width: 3/8 of 160 in eights is 64."""
    return min(width, max(multiple, round(width * share / multiple) * multiple))
