"""Ridge regression: weights W that minimise |t - W x|^2 + p |W - W0|^2, from the moments of x and t.

With C the covariance of x and X that of t with x (all centred), W (C + p I) = X + p W0, or W = W0 + (X - W0 C) (C + p I)^-1. Both
forms are used: the second where W itself is wanted, the first where C + p I and X + p W0 are needed again. They are equal but for
rounding, as are the two factorisations; a caller keeps to one of each, so that its result is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

LEAST_VARIANCE = 1e-30
"""Stands for the mean variance of inputs that do not vary, so that C + p I can be inverted."""

Solver = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def penalty_of(covariance: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return p, (...): `ridge` as a share of the mean variance. covariance: (..., K, K)."""
    return ridge * covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp_min(LEAST_VARIANCE)


def damped(covariance: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return C + p I, (..., K, K)."""
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    return covariance + penalty_of(covariance, ridge)[..., None, None] * eye


def by_cholesky(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return right @ matrix^-1, (..., R, K); least squares where rounding has left the matrix not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):
        return torch.linalg.lstsq(matrix, right.mT).solution.mT
    return torch.cholesky_solve(right.mT, factor).mT


def by_lu(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return right @ matrix^-1, (..., R, K)."""
    return torch.linalg.solve(matrix, right.mT).mT


def inverse_cholesky(matrix: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the matrix's inverse, (..., K, K)."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(matrix)), upper=True)


def ridge_fit(
    start: torch.Tensor, covariance: torch.Tensor, cross: torch.Tensor, ridge: float, solve: Solver
) -> torch.Tensor:
    """Return W = W0 + (X - W0 C) (C + p I)^-1, (..., R, K).

    start: W0, (..., R, K). cross: X, (..., R, K). ridge: as `penalty_of` takes it. Few images thus leave the weights near W0.
    """
    return start + solve(damped(covariance, ridge), cross - start @ covariance)


def towards(start: torch.Tensor, covariance: torch.Tensor, cross: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return X + p W0, the right side of W (C + p I) = X + p W0, (..., R, K)."""
    return cross + penalty_of(covariance, ridge)[..., None, None] * start
