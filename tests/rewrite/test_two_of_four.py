"""The 2:4 pattern group by group, and the masked fit against scipy's conjugate gradients and against each row solved alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, cg

from edgeconvnext.model.two_of_four import GROUP, KEPT, is_two_of_four, zero_mask
from edgeconvnext.rewrite.two_of_four import masked_fit


def test_a_group_of_four_holds_at_most_two_weights() -> None:
    assert (KEPT, GROUP) == (2, 4)
    for first, second in itertools.product(itertools.product((0.0, -0.5), repeat=4), repeat=2):
        fits = sum(map(bool, first)) <= 2 and sum(map(bool, second)) <= 2
        assert is_two_of_four(torch.tensor([[*first, *second]])) is fits
        assert is_two_of_four(torch.tensor([[1.0, 1, 0, 0], [*first]])) is (sum(map(bool, first)) <= 2)


@pytest.mark.parametrize("shape", [(8,), (2, 4, 1, 1), (1, 2, 4), (4, 3), (4, 6)])
def test_only_matrices_of_whole_groups_can_have_the_pattern(shape: tuple[int, ...]) -> None:
    assert is_two_of_four(torch.zeros(shape)) is False
    assert zero_mask(torch.zeros(shape)) is None


def test_the_mask_is_true_where_a_weight_may_stay() -> None:
    mask = zero_mask(torch.tensor([[1.0, 0, -2, 0], [0, 0, 0, 3]]))
    assert mask is not None and mask.tolist() == [[True, False, True, False], [False, False, False, True]]
    assert zero_mask(torch.tensor([[1.0, 1, -2, 0], [0, 0, 0, 3]])) is None
    assert zero_mask(torch.zeros(2, 4)) is None


def problem(seed: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Start (rows, columns), mask, covariance of inputs whose variances spread widely, covariance with the targets; float64."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((3 * columns, columns)) * np.logspace(-1, 1, columns)
    start, mask = rng.standard_normal((rows, columns)), rng.random((rows, columns)) < 0.6
    given = (start, mask, samples.T @ samples / len(samples), rng.standard_normal((rows, columns)))
    return tuple(torch.from_numpy(array) for array in given)  # type: ignore[return-value]


def cg_row(start: np.ndarray, free: np.ndarray, hessian: np.ndarray, cross: np.ndarray, steps: int) -> np.ndarray:
    """Return scipy's weights of one row after `steps` conjugate gradients, scaled by the diagonal."""
    own = hessian[np.ix_(free, free)]
    scaled = LinearOperator(own.shape, matvec=lambda residual: residual / own.diagonal())
    weight = np.zeros(len(free))
    weight[free], _ = cg(own, cross[free], x0=start[free], rtol=0, atol=0, maxiter=steps, M=scaled)
    return weight


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_each_step_is_scipys(steps: int) -> None:
    start, mask, hessian, cross = problem(0, rows=5, columns=12)
    fitted = masked_fit(start, mask, hessian, cross, steps=steps).numpy()
    for row in range(5):
        expected = cg_row(*(array[row].numpy() for array in (start, mask)), hessian.numpy(), cross[row].numpy(), steps)
        np.testing.assert_allclose(fitted[row], expected, rtol=1e-9, atol=1e-10)


def test_no_step_leaves_the_start_outside_the_mask_at_zero() -> None:
    start, mask, hessian, cross = problem(1, rows=3, columns=8)
    assert torch.equal(masked_fit(start, mask, hessian, cross, steps=0), start * mask)


def test_fifty_steps_are_taken_unless_told_otherwise() -> None:
    start, mask, _, cross = problem(2, rows=2, columns=160)
    time = torch.arange(1, 161, dtype=torch.float64)
    hessian = torch.minimum(time, time[:, None])  # of a random walk, on which the iteration is slow
    by_default = masked_fit(start, mask, hessian, cross)
    assert torch.equal(by_default, masked_fit(start, mask, hessian, cross, steps=50))
    for other in (49, 51):
        assert not torch.allclose(by_default, masked_fit(start, mask, hessian, cross, steps=other), rtol=1e-9, atol=0)


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 10))
def test_every_row_is_solved_among_its_own_weights(seed: int, rows: int, columns: int) -> None:
    start, mask, hessian, cross = problem(seed, rows, columns)
    fitted = masked_fit(start, mask, hessian, cross, steps=200)
    for row, free in enumerate(mask):
        own = hessian[free][:, free].numpy()
        exact = np.linalg.solve(own, cross[row, free].numpy())
        # Iteration ends with the scaled residual at 1e-6 of where it began; the solution is as near, times sqrt(condition number).
        begun = cross[row, free].numpy() - own @ start[row, free].numpy()
        scale = own.diagonal()
        condition = np.linalg.cond(own / np.sqrt(np.outer(scale, scale))) if len(own) else 1.0
        allowed = 1e-6 * condition * np.sqrt((begun**2 / scale).sum())
        off = np.sqrt((scale * (fitted[row, free].numpy() - exact) ** 2).sum())
        assert off <= allowed + 1e-12
        assert not fitted[row, ~free].any()


def scaled_power(weight: np.ndarray, free: np.ndarray, hessian: np.ndarray, cross: np.ndarray) -> float:
    residual = (cross - weight @ hessian)[free]
    return float((residual**2 / hessian.diagonal()[free]).sum())


def test_a_row_stops_once_its_scaled_residual_has_lost_twelve_orders() -> None:
    """Rows stop one by one: each is what scipy has after the first step below 1e-12, whatever the others still need."""
    start, mask, hessian, cross = problem(3, rows=16, columns=24)
    mask[0] = False
    mask[0, :3] = True  # done after three steps, long before the others
    fitted = masked_fit(start, mask, hessian, cross, steps=500).numpy()
    taken = []
    for row in range(16):
        given = start[row].numpy(), mask[row].numpy(), hessian.numpy(), cross[row].numpy()
        begun = scaled_power(given[0] * given[1], *given[1:])
        for steps in range(1, 200):
            expected = cg_row(*given, steps)
            if scaled_power(expected, *given[1:]) <= 1e-12 * begun:
                break
        before = cg_row(*given, steps - 1)
        np.testing.assert_allclose(fitted[row], expected, rtol=1e-6, atol=1e-9)
        assert np.abs(before - expected).max() > 10 * np.abs(fitted[row] - expected).max(), row
        taken.append(steps)
    assert taken[0] == 3 and max(taken) > 10


def test_a_row_at_its_solution_stays() -> None:
    _, mask, hessian, cross = problem(4, rows=2, columns=8)
    mask[:] = True
    cross[0] = 0
    start = torch.zeros_like(cross)
    fitted = masked_fit(start, mask, hessian, cross, steps=100)
    assert not fitted[0].any()
    np.testing.assert_allclose(fitted[1].numpy(), np.linalg.solve(hessian.numpy(), cross[1].numpy()), rtol=1e-4)


def test_small_targets_are_fitted_as_well_as_large_ones() -> None:
    """Powers of two scale every sum without rounding, so that each row takes the same steps."""
    start, mask, hessian, cross = problem(8, rows=4, columns=12)
    small = masked_fit(start * 2**-30, mask, hessian, cross * 2**-30)
    assert torch.equal(small, masked_fit(start, mask, hessian, cross) * 2**-30)


def test_inputs_that_are_always_zero_leave_the_start() -> None:
    start = torch.tensor([[3.0, -2.0]], dtype=torch.float64)
    still, cross = torch.zeros(2, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    assert masked_fit(start, torch.ones(1, 2, dtype=torch.bool), still, cross).tolist() == [[3.0, -2.0]]


def test_layers_in_front_are_fitted_side_by_side() -> None:
    ones = [problem(seed, rows=3, columns=8) for seed in (5, 6)]
    together = masked_fit(*(torch.stack(pair) for pair in zip(*ones, strict=True)))
    for index, single in enumerate(ones):
        np.testing.assert_allclose(together[index].numpy(), masked_fit(*single).numpy(), rtol=1e-12, atol=1e-12)


def test_float32_is_fitted_in_float32() -> None:
    start, mask, hessian, cross = problem(7, rows=3, columns=8)
    fitted = masked_fit(start.float(), mask, hessian.float(), cross.float())
    assert fitted.dtype == torch.float32
    # Both end with the scaled residual at 1e-6 of its start; float32 adds some 1e-6 of the largest weight, ten times over.
    exact = masked_fit(start, mask, hessian, cross)
    assert float((fitted - exact).abs().max()) < 1e-5 * float(exact.abs().max())
