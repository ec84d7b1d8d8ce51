"""Weight rounding: to the nearest code, or with the error of each weight made good by those rounded after it.

Shapes: a layer's weight is seen as G groups of (rows, columns). A linear or plain conv is one group of (out, in * kH * kW); a
depthwise conv is one group per channel, (C, 1, kH * kW), each with statistics of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeconvnext.quantization.plan import QParams
from edgeconvnext.rewrite.ridge import by_cholesky, damped, inverse_cholesky, ridge_fit
from edgeconvnext.rewrite.two_of_four import masked_fit


def nearest(weight: torch.Tensor, scale: torch.Tensor, qparams: QParams) -> torch.Tensor:
    """Return the nearest codes. weight: (G, R, K); scale: its steps, (G, R, K) or broadcastable."""
    return qparams.nearest_code(weight / scale)


@dataclass(frozen=True)
class HessianFactor:
    """A Hessian made ready for `gptq`: columns by falling power, (G, K), and the inverse's upper Cholesky factor, (G, K, K)."""

    order: torch.Tensor
    factor: torch.Tensor


def factor_hessian(hessian: torch.Tensor, damping: float = 0.01) -> HessianFactor:
    """Return the order in which columns are rounded and how errors spread over those still to come.

    hessian: (G, K, K), covariance of the inputs, float64. damping: added to its diagonal, as a share of the diagonal's mean.
    """
    # Grey images have colour channels of equal power: another order of equal columns, as a stable one, gives other codes.
    order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    matrix = damped(hessian, damping)
    matrix = matrix.gather(1, order[:, :, None].expand_as(matrix)).gather(2, order[:, None].expand_as(matrix))
    return HessianFactor(order, inverse_cholesky(matrix))


def gptq(
    weight: torch.Tensor,
    scale: torch.Tensor,
    qparams: QParams,
    hessian: HessianFactor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return codes with small output error |(W - Q) x|^2 summed over the inputs that `hessian` describes.

    weight: (G, R, K) float64. scale: the steps, (G, R, K), or broadcastable to it. mask: bool (G, R, K), where codes may
    differ from zero; a weight outside becomes zero whatever it gained from others, and the weights still to come take that over.

    Columns are rounded one after the other, those with the most power first; the error of each is spread over the columns still
    to come, in the proportions that change the output least (OBQ, arXiv 2208.11580; GPTQ, arXiv 2210.17323, by one Cholesky
    factor of the inverse). Example: of two equal inputs with weights 0.4 and 0.4 and step 1, nearest gives 0 and 0, an error of
    0.8; here the first rounds to 0, the second becomes 0.8 and rounds to 1, an error of 0.2.
    """
    groups, _, columns = weight.shape
    order, factor = hessian.order[:, None].expand_as(weight), hessian.factor.float()
    # The factor is found in float64; spreading errors that are rounded to codes at once does not need it, and takes half the time.
    w = weight.gather(2, order).float()
    step = scale.expand_as(weight).gather(2, order).float()
    free = None if mask is None else mask.gather(2, order)
    codes = torch.empty_like(w)
    block = 64
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part, errors = w[:, :, start:stop], torch.empty(groups, w.shape[1], stop - start, dtype=w.dtype)
        for column in range(stop - start):
            at = start + column
            code = qparams.nearest_code(part[:, :, column] / step[:, :, at])
            codes[:, :, at] = code if free is None else code * free[:, :, at]
            error = (part[:, :, column] - codes[:, :, at] * step[:, :, at]) / factor[:, at, at][:, None]
            part[:, :, column:] -= error[:, :, None] * factor[:, at, at:stop][:, None]
            errors[:, :, column] = error
        w[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return torch.empty_like(codes).scatter_(2, order, codes).to(weight.dtype)


def refit(
    weight: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor, ridge: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the weights that come closest to the float network's outputs from the quantised network's inputs.

    weight: (G, R, K). hessian: (G, K, K), covariance of the quantised network's inputs. cross: (G, R, K), covariance of the
    float network's outputs with them. ridge: weight of the penalty on changes, as a share of the mean variance.
    mask: bool (G, R, K), where weights may differ from zero.

    Minimises |t - W x|^2 + ridge |W - W0|^2, that is W = W0 + (cross - W0 H) (H + ridge I)^-1. Rounding W afterwards with
    `gptq` makes the errors of the layers before part of what is made good (asymmetric calibration, arXiv 2504.02692).
    """
    if mask is None:
        return ridge_fit(weight, hessian, cross, ridge, by_cholesky)
    matrix = damped(hessian, ridge)
    return masked_fit(weight, mask, matrix, cross + weight @ (matrix - hessian))
