"""Weight grids: symmetric, one scale for each output channel."""

from __future__ import annotations

import numpy as np
import torch

from edgeconvnext.quantize.plan import QParams
from edgeconvnext.quantize.ranges import round_scale


def weight_grid(weight: torch.Tensor, range_bits: int, *, float16_scale: bool, search: bool) -> QParams:
    """Return the grid of a conv or linear weight, (out, ...), symmetric per output channel.

    range_bits: 8 uses codes -127..127, 7 uses -64..64. search: shrink each channel's scale where that lowers its mean squared
    rounding error (clipping the largest weights), otherwise the largest weight gets the largest code.
    """
    limit = 127 if range_bits == 8 else 64
    rows = weight.detach().flatten(1).double()
    largest = rows.abs().amax(dim=1).clamp_min(1e-12)
    scale = _rounded(largest / limit, float16_scale)
    if search:
        best_error = _rounding_error(rows, scale, limit)
        for shrink in np.linspace(0.98, 0.5, 25):
            candidate = _rounded(largest * float(shrink) / limit, float16_scale)
            error = _rounding_error(rows, candidate, limit)
            better = error < best_error
            scale = torch.where(better, candidate, scale)
            best_error = torch.where(better, error, best_error)
    return QParams(scale.float(), torch.zeros(len(rows), dtype=torch.int32), -limit, limit, axis=0)


def weight_sqnr_db(weight: torch.Tensor, qparams: QParams) -> float:
    """10 log10(signal / rounding error) of a whole weight tensor."""
    error = (qparams.fake_quantize(weight) - weight).double().square().sum()
    return float(10 * torch.log10(weight.double().square().sum() / error.clamp_min(1e-30)))


def _rounded(scale: torch.Tensor, float16: bool) -> torch.Tensor:
    return torch.from_numpy(round_scale(scale.numpy(), float16))


def _rounding_error(rows: torch.Tensor, scale: torch.Tensor, limit: int) -> torch.Tensor:
    """Mean squared error of each row, (out,)."""
    step = scale[:, None]
    return ((rows / step).round().clamp(-limit, limit) * step - rows).square().mean(dim=1)
