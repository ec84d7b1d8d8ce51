"""Weight grids: symmetric, one scale for each output channel."""

from __future__ import annotations

import numpy as np
import torch

from edgeconvnext.quantize.plan import QParams
from edgeconvnext.quantize.ranges import round_scale


def weight_grid(
    weight: torch.Tensor,
    limit: int,
    *,
    float16_scale: bool,
    search: bool,
    power: torch.Tensor | None = None,
    block_size: int | None = None,
) -> QParams:
    """Return the grid of a conv or linear weight, (out, ...), symmetric per output channel.

    limit: largest code; 127 for 8 bits, 64 where they are limited to 7, 7 for 4 bits. search: shrink each channel's scale where
    that lowers its mean squared rounding error (clipping the largest weights), otherwise the largest weight gets the largest
    code. power: mean square of the input that each weight of a row meets, (in * ...,), or (out, in * ...) where rows have their
    own; errors are weighted by it. block_size: one scale for so many weights of a row, (out, in / block_size).
    """
    rows = weight.detach().flatten(1).double()
    importance = torch.ones_like(rows) if power is None else power.double().expand_as(rows)
    if block_size is not None:
        rows, importance = rows.reshape(-1, block_size), importance.reshape(-1, block_size)
    largest = rows.abs().amax(dim=1).clamp_min(1e-12)
    scale = _rounded(largest / limit, float16_scale)
    if search:
        best_error = _rounding_error(rows, scale, limit, importance)
        for shrink in np.linspace(0.98, 0.5 if limit > 7 else 0.35, 25):
            candidate = _rounded(largest * float(shrink) / limit, float16_scale)
            error = _rounding_error(rows, candidate, limit, importance)
            better = error < best_error
            scale = torch.where(better, candidate, scale)
            best_error = torch.where(better, error, best_error)
    scale = scale.float() if block_size is None else scale.float().view(len(weight), -1)
    return QParams(scale, torch.zeros(scale.shape, dtype=torch.int32), -limit, limit, axis=0)


def weight_sqnr_db(weight: torch.Tensor, qparams: QParams) -> float:
    """10 log10(signal / rounding error) of a whole weight tensor."""
    error = (qparams.fake_quantize(weight) - weight).double().square().sum()
    return float(10 * torch.log10(weight.double().square().sum() / error.clamp_min(1e-30)))


def _rounded(scale: torch.Tensor, float16: bool) -> torch.Tensor:
    return torch.from_numpy(round_scale(scale.numpy(), float16))


def _rounding_error(rows: torch.Tensor, scale: torch.Tensor, limit: int, importance: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of each row, (rows,)."""
    step = scale[:, None]
    return (((rows / step).round().clamp(-limit, limit) * step - rows).square() * importance).sum(dim=1)
