"""Linear layers fitted in closed form to inputs and targets that stream by: ridge regression with fold-wise held-out error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

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
        self._count = torch.zeros(FOLDS, dtype=torch.float64)
        self._x = torch.zeros(FOLDS, inputs, dtype=torch.float64)
        self._t = torch.zeros(FOLDS, outputs, dtype=torch.float64)
        self._xx = torch.zeros(FOLDS, inputs, inputs, dtype=torch.float64)
        self._xt = torch.zeros(FOLDS, inputs, outputs, dtype=torch.float64)
        self._tt = torch.zeros(FOLDS, outputs, dtype=torch.float64)
        self._origin: tuple[torch.Tensor, torch.Tensor] | None = None
        self._batches = 0

    def add(self, x: torch.Tensor, t: torch.Tensor) -> None:
        """Add rows of inputs (n, inputs) and targets (n, outputs); each call is a fold's next share."""
        if self._origin is None:
            # Products of one batch are formed in float32: around the mean they lose nothing to a large offset.
            self._origin = x.mean(0), t.mean(0)
        x, t = x - self._origin[0], t - self._origin[1]
        fold = self._batches % FOLDS
        self._batches += 1
        self._count[fold] += len(x)
        self._x[fold] += x.sum(0, dtype=torch.float64)
        self._t[fold] += t.sum(0, dtype=torch.float64)
        self._xx[fold] += x.T @ x
        self._xt[fold] += x.T @ t
        self._tt[fold] += t.square().sum(0, dtype=torch.float64)

    @property
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each input over all rows, (inputs,) each, float64."""
        assert self._origin is not None
        mean = self._x.sum(0) / self._count.sum()
        variance = self._xx.sum(0).diagonal() / self._count.sum() - mean.square()
        return mean + self._origin[0], variance.clamp(min=0).sqrt()

    def solve(self, prior: torch.Tensor | None = None, ridges: Sequence[float] = RIDGES) -> FittedLinear:
        """Return the fit whose ridge leaves the least held-out error.

        prior: (outputs, inputs), the weights that a large ridge pulls towards; None: zero. ridges: penalties on the change from
        `prior`, as shares of the inputs' mean variance. Of one batch alone the error is measured on the rows it was fitted to.
        """
        assert self._origin is not None, "no rows were added"
        start = torch.zeros_like(self._xt[0]).T if prior is None else prior.detach().double()
        used = [fold for fold in range(FOLDS) if self._count[fold] > 0]
        errors = []
        for ridge in ridges:
            lost = 0.0
            for fold in used:
                rest = [other for other in used if other != fold] or [fold]
                weight, mean_x, mean_t = self._fit(rest, start, ridge)
                lost += self._lost(fold, weight, mean_t - weight @ mean_x)
            errors.append(lost)
        mean_t = self._t[used].sum(0) / self._count.sum()
        total = float((self._tt[used].sum(0) - self._count.sum() * mean_t.square()).sum())
        best = min(range(len(ridges)), key=lambda index: errors[index])
        weight, mean_x, mean_t = self._fit(used, start, ridges[best])
        bias = mean_t + self._origin[1] - weight @ (mean_x + self._origin[0])
        return FittedLinear(weight, bias, errors[best] / total if total > 0 else 0.0, ridges[best])

    def _fit(
        self, folds: Sequence[int], start: torch.Tensor, ridge: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the weight fitted to some folds, and the means of inputs and targets there, around the origin."""
        folds = list(folds)
        count = self._count[folds].sum()
        mean_x, mean_t = self._x[folds].sum(0) / count, self._t[folds].sum(0) / count
        c = self._xx[folds].sum(0) / count - torch.outer(mean_x, mean_x)
        cross = self._xt[folds].sum(0) / count - torch.outer(mean_x, mean_t)
        penalty = ridge * float(c.diagonal().mean()) + torch.finfo(torch.float64).tiny
        c.diagonal().add_(penalty)
        # The change D from the start W0 solves D (C + p I) = X' - W0 C; with C + p I on the left that is X' + p W0 = W (C + p I).
        right = cross + penalty * start.T
        factor, failed = torch.linalg.cholesky_ex(c)
        solved = torch.linalg.lstsq(c, right).solution if failed else torch.cholesky_solve(right, factor)
        return solved.T, mean_x, mean_t

    def _lost(self, fold: int, weight: torch.Tensor, bias: torch.Tensor) -> float:
        """Return sum |W x + b - t|^2 over one fold, around the origin."""
        power = float(((weight @ self._xx[fold]) * weight).sum() - 2 * (weight * self._xt[fold].T).sum())
        linear = 2 * float(bias @ (weight @ self._x[fold]) - bias @ self._t[fold])
        return max(0.0, power + linear + float(self._tt[fold].sum() + self._count[fold] * bias.square().sum()))
