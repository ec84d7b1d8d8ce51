"""Moments of inputs and targets, batch by batch, against numpy's covariances of all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeconvnext.errors import RewriteError
from edgeconvnext.rewrite.moments import Moments, MomentSums, require_finite


def rows(seed: int, count: int = 60, inputs: int = 7, targets: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs (count, inputs) off zero, and targets (count, targets) that they explain in part; float64."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, inputs)) @ rng.standard_normal((inputs, inputs)) + rng.standard_normal(inputs) + 2
    return x, x @ rng.standard_normal((inputs, targets)) + 5 + rng.standard_normal((count, targets))


def added(sums: MomentSums, x: np.ndarray, t: np.ndarray, batches: int = 3) -> MomentSums:
    """x: (..., positions, K), t: (..., positions, R), cut into batches along the positions."""
    for part, target in zip(*(np.array_split(array, batches, axis=-2) for array in (x, t)), strict=True):
        sums.add(torch.from_numpy(part), torch.from_numpy(target))
    return sums


def moments_of(x: np.ndarray, t: np.ndarray, batches: int = 3) -> Moments:
    return added(MomentSums(x.shape[1], t.shape[1]), x, t, batches).result()


def assert_numpys(moments: Moments, x: np.ndarray, t: np.ndarray) -> None:
    both = np.cov(np.concatenate([x, t], axis=1).T, ddof=0)
    inputs = x.shape[1]
    np.testing.assert_allclose(moments.mean.numpy(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.target_mean.numpy(), t.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance.numpy(), both[:inputs, :inputs], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments.cross.numpy(), both[inputs:, :inputs], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batches", [1, 2, 7])
def test_moments_are_numpys_covariances(batches: int) -> None:
    x, t = rows(0)
    assert_numpys(moments_of(x, t, batches), x, t)


def test_each_group_has_moments_of_its_own() -> None:
    pairs = [rows(seed) for seed in range(4)]
    x, t = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    together = added(MomentSums(7, 3, groups=4), x, t).result()
    for group, pair in enumerate(pairs):
        single = (together.mean[group], together.covariance[group], together.target_mean[group], together.cross[group])
        assert_numpys(Moments(*single), *pair)


def test_float32_inputs_far_from_zero_lose_nothing() -> None:
    x, t = rows(1)
    shifted = (x + 3e4).astype(np.float32)
    moments = moments_of(shifted, t.astype(np.float32))
    # Less the first batch's mean, values below 20 are exact; products of 20 rows are summed in float32: 20 * 6e-8 * 20^2.
    expected = np.cov(shifted.astype(np.float64).T, ddof=0)
    np.testing.assert_allclose(moments.covariance.numpy(), expected, atol=5e-4)


def test_sums_of_parts_with_one_origin_are_those_of_all_rows() -> None:
    x, t = rows(2)
    origin = torch.from_numpy(x[:5].mean(0))
    parts = [
        added(MomentSums(7, 3, origin=origin), *piece)
        for piece in zip(np.array_split(x, 3), np.array_split(t, 3), strict=True)
    ]
    whole = MomentSums.joined(parts)
    assert whole.count == len(x)
    assert_numpys(whole.result(), x, t)
    np.testing.assert_allclose(whole.centred().mean.numpy(), x.mean(0) - origin.numpy(), rtol=1e-12)
    assert_numpys(MomentSums.joined(parts[1:]).result(), x[20:], t[20:])


def test_either_order_of_factors_gives_the_same_cross_covariance() -> None:
    x, t = rows(3)
    first = added(MomentSums(7, 3, inputs_first=True), x, t).result()
    assert_numpys(first, x, t)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_name_the_layer(bad: float) -> None:
    x, t = rows(2)
    assert require_finite(moments_of(x, t), "stages.0.0").mean.shape == (7,)
    x[30, 2] = bad
    with pytest.raises(RewriteError, match=r"stages\.0\.0 hold NaN or Inf"):
        require_finite(moments_of(x, t), "stages.0.0")


def test_without_rows_there_are_no_moments() -> None:
    with pytest.raises(AssertionError, match="no rows"):
        MomentSums(7, 3).result()
