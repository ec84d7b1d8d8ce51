"""Streamed ridge fits against numpy's least squares on the rows themselves, with the penalty as further rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeconvnext.rewrite.least_squares import FOLDS, RIDGES, FittedLinear, LinearFit


class Ridge(NamedTuple):
    weight: np.ndarray
    bias: np.ndarray


def ridge_by_rows(x: np.ndarray, t: np.ndarray, ridge: float, prior: np.ndarray | None = None) -> Ridge:
    """Minimise |x W' + b - t|^2 / n + p |W - prior|^2, p = ridge times the mean variance of x, by rows sqrt(n p) I."""
    prior = np.zeros((t.shape[1], x.shape[1])) if prior is None else prior
    centred, rest = x - x.mean(0), t - t.mean(0) - (x - x.mean(0)) @ prior.T
    penalty = np.sqrt(len(x) * ridge * x.var(0).mean()) * np.eye(x.shape[1])
    rows = np.concatenate([centred, penalty]), np.concatenate([rest, np.zeros((x.shape[1], t.shape[1]))])
    weight = prior + np.linalg.lstsq(*rows, rcond=None)[0].T
    return Ridge(weight, t.mean(0) - weight @ x.mean(0))


def held_out_error(
    x: np.ndarray, t: np.ndarray, fold: np.ndarray, ridge: float, prior: np.ndarray | None = None
) -> float:
    """Squared error of each fold by a fit to the others, relative to the squared deviation of t from its mean."""
    lost = 0.0
    for number in sorted(set(fold.tolist())):
        rest, held = fold != number, fold == number
        fit = ridge_by_rows(*((x[rest], t[rest]) if rest.any() else (x, t)), ridge, prior)
        lost += float(np.square(x[held] @ fit.weight.T + fit.bias - t[held]).sum())
    return lost / float(np.square(t - t.mean(0)).sum())


def streamed(x: np.ndarray, t: np.ndarray, batches: list[int]) -> LinearFit:
    fit = LinearFit(x.shape[1], t.shape[1])
    for part, target in zip(*(torch.from_numpy(rows).split(batches) for rows in (x, t)), strict=True):
        fit.add(part, target)
    return fit


def rows(seed: int, batches: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated inputs (n, 4) off zero with variances of their own, targets (n, 2), and the fold of each row: batches in turn."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((sum(batches), 4)) @ rng.standard_normal((4, 4)) + 2 + rng.standard_normal(4)
    t = x @ rng.standard_normal((4, 2)) + 1 + rng.standard_normal((sum(batches), 2))
    return x, t, np.repeat(np.arange(len(batches)) % 3, batches)


def assert_equals(fitted: FittedLinear, expected: Ridge, error: float) -> None:
    # Sums of squares and rows agree to float64 rounding times the condition number, below 1e4 in these problems.
    np.testing.assert_allclose(fitted.weight.numpy(), expected.weight, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(fitted.bias.numpy(), expected.bias, rtol=1e-8, atol=1e-9)
    assert fitted.error == pytest.approx(error, rel=1e-8)


def test_three_folds_and_four_ridges_are_tried() -> None:
    assert FOLDS == 3
    assert RIDGES == (0.0001, 0.001, 0.01, 0.1)


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("ridge", [1e-6, 0.03, 2.0])
@pytest.mark.parametrize("batches", [[9], [8, 5], [9, 8, 1], [6, 7, 8], [5, 9, 6, 7, 8, 6, 3]])
def test_fit_and_error_are_those_of_the_rows(batches: list[int], ridge: float, with_prior: bool) -> None:
    x, t, fold = rows(len(batches), batches)
    prior = np.random.default_rng(9).standard_normal((2, 4)) if with_prior else None
    given = None if prior is None else torch.from_numpy(prior)
    fitted = streamed(x, t, batches).solve(given, ridges=(ridge,))
    assert fitted.ridge == ridge
    assert_equals(fitted, ridge_by_rows(x, t, ridge, prior), held_out_error(x, t, fold, ridge, prior))


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(2, 9), min_size=3, max_size=6))
def test_the_ridge_of_least_held_out_error_is_taken(seed: int, batches: list[int]) -> None:
    x, t, fold = rows(seed, batches)
    errors = {ridge: held_out_error(x, t, fold, ridge) for ridge in RIDGES}
    best = min(errors, key=lambda ridge: errors[ridge])
    fitted = streamed(x, t, batches).solve()
    assert fitted.ridge == best
    assert_equals(fitted, ridge_by_rows(x, t, best), errors[best])


def test_of_equal_ridges_the_first_is_taken() -> None:
    """A target that the prior answers exactly leaves nothing to any ridge."""
    x, _, _ = rows(1, [8, 8, 8])
    x = np.round(x)  # small integers: every sum is exact
    fitted = streamed(x, x[:, :2], [8, 8, 8]).solve(torch.eye(4, dtype=torch.float64)[:2], ridges=(0.5, 0.25))
    assert fitted.ridge == 0.5
    assert 0 <= fitted.error < 1e-15


def test_an_exact_fit_has_no_negative_error() -> None:
    for seed in range(20):
        x, _, _ = rows(seed, [8, 8, 8])
        fitted = streamed(x, 1e-3 * x[:, :2], [8, 8, 8]).solve(ridges=(1e-30,))
        assert 0 <= fitted.error < 1e-12


def test_the_error_of_small_targets_is_as_relative_as_that_of_large_ones() -> None:
    """Powers of two scale every sum without rounding."""
    x, t, _ = rows(6, [8, 8, 8])
    large, small = (streamed(x, scale * t, [8, 8, 8]).solve() for scale in (1.0, 2.0**-30))
    assert (small.error, small.ridge) == (large.error, large.ridge)
    assert torch.equal(small.weight, large.weight * 2.0**-30)


def test_targets_that_never_change_leave_no_error() -> None:
    x, _, _ = rows(2, [8, 8])
    fitted = streamed(x, np.full((16, 2), 3.0), [8, 8]).solve()
    assert fitted.error == 0.0
    np.testing.assert_allclose(fitted.weight.numpy(), 0, atol=1e-15)
    np.testing.assert_allclose(fitted.bias.numpy(), 3)


def test_inputs_that_never_change_leave_the_prior() -> None:
    _, t, _ = rows(3, [8, 8])
    prior = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
    fitted = streamed(np.full((16, 2), 5.0), t, [8, 8]).solve(prior)
    np.testing.assert_allclose(fitted.weight.numpy(), prior.numpy())
    np.testing.assert_allclose(fitted.bias.numpy(), t.mean(0) - 5 * prior.sum(1).numpy())


def test_equal_inputs_without_a_ridge_share_the_weight() -> None:
    """No Cholesky factor exists; of all fits the one of least norm is taken."""
    x = np.array([[1.0, 1.0], [-1.0, -1.0]] * 3)
    t = np.array([[3.0], [-1.0]] * 3)
    fitted = streamed(x, t, [2, 2, 2]).solve(ridges=(0.0,))
    np.testing.assert_allclose(fitted.weight.numpy(), [[1.0, 1.0]], atol=1e-12)
    np.testing.assert_allclose(fitted.bias.numpy(), [1.0], atol=1e-12)


def test_moments_are_numpys() -> None:
    x, t, _ = rows(4, [7, 5, 9, 4])
    mean, deviation = streamed(x, t, [7, 5, 9, 4]).input_spread()
    np.testing.assert_allclose(mean.numpy(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation.numpy(), x.std(0), rtol=1e-12)


def test_a_constant_input_deviates_by_nothing_but_rounding() -> None:
    for count in range(2, 60):
        x = np.full((count, 1), 0.1)
        _, deviation = streamed(x, x, [count]).input_spread()
        # The mean of equal numbers is off by a few roundings of 0.1; a variance that comes out below zero is none.
        assert 0 <= float(deviation) < 1e-16


def test_a_variance_that_float32_loses_is_zero_not_nan() -> None:
    """One row at zero and 20,000 at v: the variance is v^2 / 20,001, less than float32 sums of products may be off."""
    for value in torch.arange(1, 41) / 37:
        fit = LinearFit(1, 1)
        for rows_alike in (torch.zeros(1, 1), value.expand(20_000, 1)):
            fit.add(rows_alike, rows_alike)
        _, deviation = fit.input_spread()
        # 20,000 roundings of 2**-24 are 1.2e-3 of v^2 at most, with the variance itself 1.25e-3.
        assert 0 <= float(deviation) < 1.25e-3**0.5 * float(value)


def test_float32_rows_far_from_zero_lose_nothing() -> None:
    x, t, _ = rows(5, [40, 40, 40])
    shifted = (x + 1e4).astype(np.float32)
    fitted = streamed(shifted, t.astype(np.float32), [40, 40, 40]).solve(ridges=(0.01,))
    expected = ridge_by_rows(shifted.astype(np.float64), t.astype(np.float32).astype(np.float64), 0.01)
    # Rows minus their origin are exact to float32 (6e-8 of values near 5), sums of 40 products to 40 such roundings, times the
    # condition number of the regularised covariance, below 100.
    np.testing.assert_allclose(fitted.weight.numpy(), expected.weight, atol=5e-4)
