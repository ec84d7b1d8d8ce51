"""Weight rounding against Optimal Brain Quantization by direct inversion, and re-fitting against least squares, in float64."""

import numpy as np
import pytest
import torch

from edgeconvnext.quantization.plan import QParams
from edgeconvnext.quantization.rounding import factor_hessian, gptq, nearest, refit


def codes_up_to(limit: int) -> QParams:
    return QParams(torch.tensor(1.0), torch.tensor(0), -limit, limit)


def inputs_of(columns: int, seed: int, groups: int = 1, rows: int = 400) -> np.ndarray:
    """Correlated inputs of unequal power, (groups, rows, columns)."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, columns, columns)) * rng.uniform(0.3, 3.0, (groups, 1, columns))
    return rng.normal(size=(groups, rows, columns)) @ mixing


def covariance(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, 1, 2) @ x / x.shape[1]


def damped(hessian: np.ndarray, share: float) -> np.ndarray:
    """One matrix with `share` of its diagonal's mean added to the diagonal."""
    return hessian + share * np.trace(hessian) / len(hessian) * np.eye(len(hessian))


def brain_quantized(
    weight: np.ndarray, step: np.ndarray, limit: int, hessian: np.ndarray, mask: np.ndarray, damping: float = 0.01
) -> np.ndarray:
    """Equations 2 and 3 of arXiv 2208.11580 for one group, with the columns that remain inverted anew each time.

    weight, step, mask: (R, K). The column with the most power first: delta = -error / inverse[q, q] * inverse[:, q].
    """
    h = damped(hessian, damping)
    w, codes = weight.astype(np.float64).copy(), np.zeros_like(weight)
    left = sorted(range(len(h)), key=lambda column: -hessian[column, column])
    while left:
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        column = left[0]
        codes[:, column] = np.clip(np.rint(w[:, column] / step[:, column]), -limit, limit) * mask[:, column]
        error = w[:, column] - codes[:, column] * step[:, column]
        w[:, left] -= np.outer(error / inverse[0, 0], inverse[0])
        left = left[1:]
    return codes


@pytest.mark.parametrize("columns", [1, 2, 9, 63, 64, 65, 130])
@pytest.mark.parametrize("masked", [False, True])
def test_codes_are_those_of_optimal_brain_quantization(columns: int, masked: bool) -> None:
    """Blocks of 64 columns, one Cholesky factor and float32 change the arithmetic, not the codes."""
    rng = np.random.default_rng(columns)
    weight = rng.normal(size=(2, 3, columns))
    step = rng.uniform(0.2, 0.5, (2, 3, columns))
    mask = rng.random(weight.shape) < 0.5 if masked else np.ones(weight.shape, dtype=bool)
    hessian = covariance(inputs_of(columns, seed=columns, groups=2))
    expected = [brain_quantized(*each) for each in zip(weight, step, [4, 4], hessian, mask, strict=True)]
    codes = gptq(
        torch.from_numpy(weight),
        torch.from_numpy(step),
        codes_up_to(4),
        factor_hessian(torch.from_numpy(hessian)),
        torch.from_numpy(mask) if masked else None,
    )
    assert codes.dtype == torch.float64
    np.testing.assert_array_equal(codes.numpy(), np.stack(expected))
    # Were errors not spread, other codes would come out.
    assert columns < 9 or (codes.numpy() != np.clip(np.rint(weight / step), -4, 4) * mask).mean() > 0.1


def test_the_lowest_code_is_used() -> None:
    """The grid of int8 activations has one code more below zero."""
    grid = QParams(torch.tensor(1.0), torch.tensor(0), -128, 127)
    weight, step = torch.tensor([[[-130.0, 130.0, -0.6]]]), torch.ones(1, 1, 1)
    assert nearest(weight, step, grid).tolist() == [[[-128.0, 127.0, -1.0]]]
    hessian = torch.eye(3, dtype=torch.float64)[None]
    codes = gptq(weight.double(), step, grid, factor_hessian(hessian))
    assert codes.tolist() == [[[-128.0, 127.0, -1.0]]]
    assert codes.dtype == torch.float64


def test_nearest_codes_are_rounded_halves_to_even() -> None:
    weight = torch.tensor([[[0.74, 0.76, -0.76, 1.25, 1.75, 9.0]]])
    codes = nearest(weight, torch.full((1, 1, 1), 0.5), codes_up_to(7))
    assert codes.tolist() == [[[1.0, 2.0, -2.0, 2.0, 4.0, 7.0]]]


@pytest.mark.parametrize("damping", [None, 0.01, 0.3])
def test_the_factor_is_that_of_the_damped_inverse_by_falling_power(damping: float | None) -> None:
    hessian = covariance(inputs_of(7, seed=1, groups=3))
    ready = (
        factor_hessian(torch.from_numpy(hessian))
        if damping is None
        else factor_hessian(torch.from_numpy(hessian), damping)
    )
    for group in range(3):
        order = np.argsort(-np.diag(hessian[group]))
        assert ready.order[group].tolist() == order.tolist()
        upper = ready.factor[group].numpy()
        assert (np.tril(upper, -1) == 0).all() and (np.diag(upper) > 0).all()
        expected = np.linalg.inv(damped(hessian[group], damping or 0.01)[np.ix_(order, order)])
        np.testing.assert_allclose(upper.T @ upper, expected, rtol=1e-9)


def test_inputs_that_are_always_zero_are_damped_by_a_hundredth_of_almost_nothing() -> None:
    ready = factor_hessian(torch.zeros(1, 2, 2, dtype=torch.float64))
    # The mean counts as 1e-30, so that 1e-32 is inverted: its root is 1e16.
    torch.testing.assert_close(ready.factor, 1e16 * torch.eye(2, dtype=torch.float64)[None], rtol=1e-12, atol=0)


def least_squares(
    weight: np.ndarray, x: np.ndarray, t: np.ndarray, ridge: float, mask: np.ndarray | None = None
) -> np.ndarray:
    """Minimise |t - W x|^2 / n + ridge * mean variance * |W - W0|^2 row by row on the samples, (R, K)."""
    pull = np.sqrt(len(x) * ridge * np.mean(x**2))
    fitted = np.zeros_like(weight)
    for row in range(len(weight)):
        used = np.ones(x.shape[1], dtype=bool) if mask is None else mask[row]
        rows = np.concatenate([x, pull * np.eye(x.shape[1])])[:, used]
        wanted = np.concatenate([t[:, row], pull * weight[row]])
        fitted[row, used] = np.linalg.lstsq(rows, wanted)[0]
    return fitted


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ridge", [1e-4, 0.1, 2.0])
def test_refitted_weights_are_those_of_least_squares(ridge: float, masked: bool) -> None:
    rng = np.random.default_rng(5)
    x = inputs_of(6, seed=6, groups=2)
    weight = rng.normal(size=(2, 4, 6))
    t = (x + 0.3 * rng.normal(size=x.shape)) @ np.swapaxes(weight, 1, 2) + 0.1 * rng.normal(size=(2, 400, 4))
    mask = rng.random(weight.shape) < 0.5 if masked else None
    fitted = refit(
        torch.from_numpy(weight),
        torch.from_numpy(covariance(x)),
        torch.from_numpy(np.swapaxes(t, 1, 2) @ x / 400),
        ridge,
        torch.from_numpy(mask) if masked else None,
    )
    for group in range(2):
        expected = least_squares(weight[group], x[group], t[group], ridge, None if mask is None else mask[group])
        np.testing.assert_allclose(fitted[group].numpy(), expected, rtol=1e-6, atol=1e-7)


def test_weights_without_inputs_stay() -> None:
    """A mean variance of zero counts as 1e-30, so that the penalty alone decides."""
    weight = torch.tensor([[[0.5, -2.0]]], dtype=torch.float64)
    nothing = torch.zeros(1, 2, 2, dtype=torch.float64)
    assert refit(weight, nothing, torch.zeros(1, 1, 2, dtype=torch.float64), 0.1).tolist() == weight.tolist()
    # A covariance of 1e-31 between output and first input pulls it by 1e-31 / (0.1 * 1e-30).
    cross = torch.tensor([[[1e-31, 0.0]]], dtype=torch.float64)
    assert refit(weight, nothing, cross, 0.1)[0, 0].tolist() == pytest.approx([1.5, -2.0], rel=1e-12)
