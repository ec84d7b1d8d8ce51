"""Scales and codes of weights: symmetric, one scale for each output channel; with a palette, some of the codes only."""

from __future__ import annotations

import numpy as np
import torch

from edgeconvnext.quantization.plan import QParams
from edgeconvnext.quantization.ranges import round_scale

CACHED_ELEMENTS = 65_536
"""Weights whose values, costs and errors, 4 bytes each, lie in a core's second-level cache together."""


def weight_qparams(
    weight: torch.Tensor,
    limit: int,
    *,
    float16_scale: bool,
    search: bool,
    power: torch.Tensor | None = None,
    block_size: int | None = None,
) -> QParams:
    """Return the qparams of a conv or linear weight, (out, ...), symmetric per output channel.

    limit: largest code; 127 for 8 bits, 64 where they are limited to 7, 7 for 4 bits. search: shrink each channel's scale where
    that lowers its mean squared rounding error (clipping the largest weights), otherwise the largest weight gets the largest
    code. power: mean square of the input that each weight of a row meets, (in * ...,), or (out, in * ...) where rows have their
    own; errors are weighted by it. block_size: one scale for so many weights of a row, (out, in / block_size).
    """
    rows = weight.detach().flatten(1).double()
    importance = None if power is None else power.expand_as(rows)
    if block_size is not None:
        rows = rows.reshape(-1, block_size)
        importance = None if importance is None else importance.reshape(-1, block_size)
    largest = rows.abs().amax(dim=1).clamp_min(1e-12)
    scale = _rounded(largest / limit, float16_scale)
    if search:
        shrinks = np.linspace(0.98, 0.5 if limit > 7 else 0.35, 25)
        smaller = [_rounded(largest * float(shrink) / limit, float16_scale) for shrink in shrinks]
        scale = _best_scale(rows, torch.stack([scale, *smaller]), limit, importance)
    scale = scale.float() if block_size is None else scale.float().view(len(weight), -1)
    return QParams(scale, torch.zeros(scale.shape, dtype=torch.int32), -limit, limit, axis=0)


def palette_qparams(
    weight: torch.Tensor, bits: int, *, float16_scale: bool, power: torch.Tensor | None = None
) -> QParams:
    """Return the qparams of a palettised weight: 8-bit codes and a scale per output channel, of which 2^bits codes are used.

    weight: (out, ...). power: as in `weight_qparams`. Core ML stores each weight as an index into the layer's palette. Scales put
    either the channels' largest weights on the largest code, or their mean squares on one value, or lie half way between; those
    with the least error, weighted by the power of the inputs, are taken.
    """
    rows = weight.detach().flatten(1).double()
    importance = torch.ones_like(rows) if power is None else power.double().expand_as(rows)
    largest = rows.abs().amax(dim=1).clamp_min(1e-12)
    spread = rows.square().mean(dim=1).sqrt().clamp_min(1e-12)
    spread = spread * (largest / spread).max()
    best: tuple[float, QParams] | None = None
    for size in (largest, (largest * spread).sqrt(), spread):
        scale = _rounded(size / 127, float16_scale)
        steps, cost = rows / scale[:, None], importance * scale[:, None].square()
        qparams = QParams(
            scale.float(),
            torch.zeros(len(scale), dtype=torch.int32),
            -127,
            127,
            axis=0,
            levels=_palette(steps, cost, bits),
        )
        error = float(((qparams.nearest_code(steps) - steps).square() * cost).sum())
        if best is None or error < best[0]:
            best = (error, qparams)
    assert best is not None
    return best[1]


def _palette(steps: torch.Tensor, cost: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the 2^bits whole numbers of -127..127, (2^bits,), that serve these values with the least weighted squared error.

    Values are counted by the nearest whole number; over those, the best division into intervals is found by dynamic programming
    (Wang and Song, 2011, The R Journal 3/2:29), each served by the whole number next to its mean.
    """
    codes = np.arange(-127, 128)
    index = (steps.round().clamp(-127, 127) + 127).long().flatten()
    weight = torch.bincount(index, weights=cost.flatten(), minlength=len(codes)).numpy()
    # Sums over codes[:i] of weight, weight * code and weight * code^2, so that an interval's are differences.
    zero, one, two = (np.concatenate([[0.0], np.cumsum(weight * codes**power)]) for power in range(3))
    mass = zero[None] - zero[:, None]
    mean = np.divide(one[None] - one[:, None], mass, out=np.zeros_like(mass), where=mass > 0)
    level = np.rint(mean).clip(-127, 127)
    error = (two[None] - two[:, None]) - 2 * level * (one[None] - one[:, None]) + level**2 * mass
    error[np.tril_indices(len(error), -1)] = np.inf
    # least[j]: error of codes[:j] in the intervals so far; start[n][j]: where the last of n + 1 of these begins.
    least, start = error[0], []
    for _ in range(2**bits - 1):
        candidates = least[:, None] + error
        start.append(candidates.argmin(axis=0))
        least = candidates.min(axis=0)
    end, levels = len(codes), []
    for begins in reversed(start):
        levels.append(level[begins[end], end])
        end = int(begins[end])
    levels.append(level[0, end])
    # Where a palette has more places than there are codes in use, some repeat.
    return torch.from_numpy(np.sort(np.array(levels))).float()


def _rounded(scale: torch.Tensor, float16: bool) -> torch.Tensor:
    return torch.from_numpy(round_scale(scale.numpy(), float16))


def _best_scale(rows: torch.Tensor, scales: torch.Tensor, limit: int, importance: torch.Tensor | None) -> torch.Tensor:
    """Return the scale of each row with the least weighted squared rounding error; of equal ones, the first.

    scales: candidates, (candidates, rows).

    A few rows at a time, in float32 and in place, so that what all candidates read and write stays in the cache: the search is
    bound by memory, and is made for every candidate of every layer.
    """
    best = []
    rows_at_a_time = max(1, CACHED_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), rows_at_a_time):
        part = slice(start, start + rows_at_a_time)
        values = rows[part].float()
        cost = None if importance is None else importance[part].float()
        work = torch.empty_like(values)
        errors = []
        for scale in scales[:, part]:
            step = scale.float()[:, None]
            torch.div(values, step, out=work)
            work.round_().clamp_(-limit, limit).mul_(step).sub_(values).square_()
            if cost is not None:
                work.mul_(cost)
            errors.append(work.sum(dim=1))
        chosen = torch.stack(errors).argmin(dim=0)
        best.append(scales[:, part].gather(0, chosen[None])[0])
    return torch.cat(best)
