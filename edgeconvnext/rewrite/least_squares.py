"""Linear layers fitted in closed form to inputs and targets that stream by: ridge regression with fold-wise held-out error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgeconvnext.rewrite.moments import Moments, MomentSums
from edgeconvnext.rewrite.ridge import by_cholesky, damped, towards

FOLDS = 3
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class FittedLinear:
    """weight: (outputs, inputs), bias: (outputs,), float64.

    error: squared error left, relative to the targets' variance, each fold judged by a fit to the others. ridge: as chosen.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    error: float
    ridge: float


class LinearFit:
    """Sums that say which W and b minimise |W x + b - t|^2 over all rows seen; their size does not depend on the number of rows.

    Rows go to one of FOLDS folds, so that the error of a ridge is measured on rows it was not fitted to: three sums of each kind
    are kept, and the fit to two of them is judged by the third without the rows themselves, as |W x - t|^2 sums to
    tr(W C W') - 2 tr(W X) + tr(T), C = sum x x', X = sum x t', T = sum t t'.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self._shape = inputs, outputs
        self._folds: list[MomentSums] = []
        self._target_squares = torch.zeros(FOLDS, outputs, dtype=torch.float64)
        self._target_origin = torch.zeros(outputs)
        self._batches = 0

    def add(self, x: torch.Tensor, t: torch.Tensor) -> None:
        """Add rows of inputs (n, inputs) and targets (n, outputs); each call is a fold's next share."""
        if not self._folds:
            # Products of one batch are formed in float32: around the mean they lose nothing to a large offset.
            origin, self._target_origin = x.mean(0), t.mean(0)
            self._folds = [MomentSums(*self._shape, origin=origin, inputs_first=True) for _ in range(FOLDS)]
        t = t - self._target_origin
        fold = self._batches % FOLDS
        self._batches += 1
        self._folds[fold].add(x, t)
        self._target_squares[fold] += t.square().sum(0, dtype=torch.float64)

    def input_spread(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each input over all rows, (inputs,) each, float64."""
        moments = MomentSums.joined(self._folds).result()
        return moments.mean, moments.covariance.diagonal().clamp(min=0).sqrt()

    def solve(self, prior: torch.Tensor | None = None, ridges: Sequence[float] = RIDGES) -> FittedLinear:
        """Return the fit whose ridge leaves the least held-out error.

        prior: (outputs, inputs), the weights that a large ridge pulls towards; None: zero. ridges: penalties on the change from
        `prior`, as shares of the inputs' mean variance. Of one batch alone the error is measured on the rows it was fitted to.
        """
        assert self._folds, "no rows were added"
        inputs, outputs = self._shape
        start = torch.zeros(outputs, inputs, dtype=torch.float64) if prior is None else prior.detach().double()
        used = [fold for fold in range(FOLDS) if self._folds[fold].count > 0]
        errors = []
        for ridge in ridges:
            lost = 0.0
            for fold in used:
                rest = [other for other in used if other != fold] or [fold]
                weight, moments = self._fit(rest, start, ridge)
                lost += self._lost(fold, weight, moments.target_mean - weight @ moments.mean)
            errors.append(lost)
        whole = MomentSums.joined([self._folds[fold] for fold in used])
        mean_t = whole.target_sum / whole.count
        total = float((self._target_squares[used].sum(0) - whole.count * mean_t.square()).sum())
        best = min(range(len(ridges)), key=lambda index: errors[index])
        weight, moments = self._fit(used, start, ridges[best])
        bias = moments.target_mean + self._target_origin - weight @ (moments.mean + whole.origin)
        return FittedLinear(weight, bias, errors[best] / total if total > 0 else 0.0, ridges[best])

    def _fit(self, folds: Sequence[int], start: torch.Tensor, ridge: float) -> tuple[torch.Tensor, Moments]:
        """Return the weight fitted to some folds, and the moments of inputs and targets there, around the origins."""
        moments = MomentSums.joined([self._folds[fold] for fold in folds]).centred()
        right = towards(start, moments.covariance, moments.cross, ridge)
        return by_cholesky(damped(moments.covariance, ridge), right), moments

    def _lost(self, fold: int, weight: torch.Tensor, bias: torch.Tensor) -> float:
        """Return sum |W x + b - t|^2 over one fold, around the origins."""
        sums, squares = self._folds[fold], self._target_squares[fold]
        power = float(((weight @ sums.products) * weight).sum() - 2 * (weight * sums.cross).sum())
        linear = 2 * float(bias @ (weight @ sums.sum) - bias @ sums.target_sum)
        return max(0.0, power + linear + float(squares.sum() + sums.count * bias.square().sum()))
