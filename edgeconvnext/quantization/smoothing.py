"""Candidates for what happens to a layer's input before it is quantised; which one is taken is measured in `reconstruct`."""

from __future__ import annotations

import torch

from edgeconvnext.data.preprocess import Preprocess, ValueRange
from edgeconvnext.quantization.layer_statistics import LayerStatistics
from edgeconvnext.rewrite.channel_scaling import ChannelScaling

# Exponents of scale migration; 1 gives every channel the same range, 0 would change nothing.
ALPHAS = (0.5, 0.75, 1.0)


def smoothing_candidates(
    statistics: LayerStatistics, weight: torch.Tensor, *, scales: bool, shifts: bool, one_shift: bool
) -> list[ChannelScaling]:
    """Return the scalings that compete in front of a layer, the identity first.

    weight: (G, R, K). scales: a factor per channel. shifts: also a shift per channel, to the middle of its range. one_shift: a
    single shift for all channels, to the middle of the tensor's range.

    Scales are r^-alpha, and, as in SmoothQuant, w^(1 - alpha) * r^-alpha, with r half a channel's range and w the largest weight
    that meets it. Their geometric mean is one, so that float16 holds what it held before.
    """
    low, high = statistics.channel_low.double(), statistics.channel_high.double()
    candidates = [ChannelScaling.identity(len(low))]
    if one_shift:
        center = float(low.min() + high.max()) / 2
        candidates.append(ChannelScaling(torch.ones(len(low)), torch.full((len(low),), -center), "shift"))
    if not scales:
        return candidates
    largest = torch.zeros(len(low), dtype=torch.float64)
    largest.scatter_reduce_(0, statistics.channels.flatten(), weight.abs().amax(dim=1).double().flatten(), "amax")
    for moved in (False, True) if shifts else (False,):
        middle = (low + high) / 2 if moved else torch.zeros_like(low)
        reach = torch.maximum(high - middle, middle - low)
        reach = reach.clamp_min(1e-3 * float(reach.max().clamp_min(1e-12)))
        for alpha in ALPHAS:
            plain = reach**-alpha
            candidates.append(_normalised(plain, middle, f"scale^{alpha:g}", moved))
            if alpha < 1 and statistics.channels.shape[0] == 1:
                floor = 1e-3 * float(largest.max().clamp_min(1e-12))
                balanced = largest.clamp_min(floor) ** (1 - alpha) * plain
                candidates.append(_normalised(balanced, middle, f"smooth {alpha:g}", moved))
    return candidates


def _normalised(scale: torch.Tensor, middle: torch.Tensor, name: str, moved: bool) -> ChannelScaling:
    scale = (scale / scale.log().mean().exp()).float()
    return ChannelScaling(scale, (-middle * scale.double()).float(), f"{name}, shift" if moved else name)


def pixel_scaling(preprocess: Preprocess, value_range: ValueRange, signed: bool) -> ChannelScaling:
    """Return the scaling that turns a network's input back into pixels 0..255, less 128 where codes are signed.

    Pixels are integers, so that a grid of scale 1 holds them exactly.
    """
    if value_range == "normalized":
        scale = torch.tensor(preprocess.std) * 255
        shift = torch.tensor(preprocess.mean) * 255
    else:
        scale = torch.full((preprocess.in_channels,), 1.0 if value_range == "0..255" else 255.0)
        shift = torch.zeros(preprocess.in_channels)
    return ChannelScaling(scale.float(), (shift - (128 if signed else 0)).float(), "pixels")
