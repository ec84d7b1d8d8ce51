"""The ridge solution, in each form and by each factorisation, against numpy on rows that hold the penalty."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from edgeconvnext.rewrite.ridge import (
    by_cholesky,
    by_lu,
    damped,
    inverse_cholesky,
    penalty_of,
    ridge_fit,
    towards,
)

Solver = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def problem(seed: int, inputs: int = 6, outputs: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return centred rows, centred targets, and the covariances C and X of them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((50, inputs)) @ rng.standard_normal((inputs, inputs))
    x -= x.mean(0)
    t = x @ rng.standard_normal((inputs, outputs)) + rng.standard_normal((50, outputs))
    t -= t.mean(0)
    return x, t, x.T @ x / 50, t.T @ x / 50


def numpys(x: np.ndarray, t: np.ndarray, start: np.ndarray, penalty: float) -> np.ndarray:
    """Least squares over the rows and, for each input, one row that pulls its weight towards `start`."""
    pull = np.sqrt(50 * penalty)
    rows = np.concatenate([x, pull * np.eye(x.shape[1])])
    targets = np.concatenate([t, pull * start.T])
    return np.linalg.lstsq(rows, targets, rcond=None)[0].T


@pytest.mark.parametrize("solve", [by_cholesky, by_lu])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_both_forms_are_least_squares_with_the_penalty_as_rows(ridge: float, solve: Solver) -> None:
    x, t, covariance, cross = problem(0)
    start = np.random.default_rng(1).standard_normal((3, 6))
    expected = numpys(x, t, start, ridge * np.trace(covariance) / 6)
    w, c, k = (torch.from_numpy(array) for array in (start, covariance, cross))
    np.testing.assert_allclose(ridge_fit(w, c, k, ridge, solve).numpy(), expected, rtol=1e-9, atol=1e-12)
    direct = solve(damped(c, ridge), towards(w, c, k, ridge))
    np.testing.assert_allclose(direct.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solve", [by_cholesky, by_lu])
def test_groups_are_solved_each_by_itself(solve: Solver) -> None:
    problems = [problem(seed) for seed in range(3)]
    covariance, cross = (torch.from_numpy(np.stack([entry[index] for entry in problems])) for index in (2, 3))
    start = torch.zeros(3, 3, 6, dtype=torch.float64)
    together = ridge_fit(start, covariance, cross, 0.01, solve)
    for group, (x, t, own, _) in enumerate(problems):
        expected = numpys(x, t, np.zeros((3, 6)), 0.01 * np.trace(own) / 6)
        np.testing.assert_allclose(together[group].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_penalty_is_a_share_of_the_mean_variance() -> None:
    covariance = torch.tensor([[2.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    assert float(penalty_of(covariance, 0.5)) == 1.5
    assert damped(covariance, 0.5).tolist() == [[3.5, 1.0], [1.0, 5.5]]


@pytest.mark.parametrize("solve", [by_cholesky, by_lu])
def test_inputs_that_do_not_vary_leave_the_weights_as_they_were(solve: Solver) -> None:
    still, start = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([[3.0, -2.0]], dtype=torch.float64)
    assert ridge_fit(start, still, torch.zeros(1, 2, dtype=torch.float64), 0.1, solve).tolist() == start.tolist()
    direct = solve(damped(still, 0.1), towards(start, still, torch.zeros_like(start), 0.1))
    np.testing.assert_allclose(direct.numpy(), start.numpy(), rtol=1e-12)


def test_where_cholesky_fails_least_squares_answers() -> None:
    indefinite = torch.tensor([[1.0, 0.0], [0.0, -1e-18]], dtype=torch.float64)
    right = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(by_cholesky(indefinite, right).numpy(), [[2.0, 0.0]], atol=1e-12)


def test_the_factor_of_the_inverse_multiplies_to_the_inverse() -> None:
    matrix = torch.from_numpy(problem(4)[2]) + torch.eye(6)
    factor = inverse_cholesky(matrix)
    assert torch.equal(factor, factor.triu())
    np.testing.assert_allclose((factor.mT @ factor).numpy(), np.linalg.inv(matrix.numpy()), rtol=1e-10, atol=1e-12)
