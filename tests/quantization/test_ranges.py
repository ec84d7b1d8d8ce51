"""Range estimators on distributions with a known answer."""

import numpy as np
import pytest
import torch

from edgeconvnext.quantization.histogram import Histogram, StreamingHistogram
from edgeconvnext.quantization.ranges import (
    ESTIMATORS,
    CodeRange,
    choose_range,
    estimate_range,
    quantization_mse,
    round_scale,
)

SYMMETRIC = CodeRange(-128, 127, symmetric=True)
AFFINE = CodeRange(0, 255, symmetric=False)


def histogram(values: torch.Tensor) -> Histogram:
    streaming = StreamingHistogram()
    streaming.update(values, float(values.min()), float(values.max()))
    return streaming.result()


def gaussian(count: int = 200_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def with_outliers(seed: int = 0) -> torch.Tensor:
    """A unit gaussian where one value in 20,000 is at 60: min-max wastes most codes."""
    values = gaussian(seed=seed)
    values[::20_000] = 60.0
    return values


@pytest.mark.parametrize("grid", [SYMMETRIC, AFFINE], ids=["symmetric", "affine"])
def test_histogram_error_equals_the_error_on_the_data(grid: CodeRange) -> None:
    values = gaussian()
    scale, zero_point = grid.qparams(np.array([-3.0]), np.array([3.5]))
    codes = (values / scale[0]).round().add(zero_point[0]).clamp(grid.quant_min, grid.quant_max)
    exact = float(((codes - zero_point[0]) * scale[0] - values).square().mean())
    # 8,192 bins against 256 codes: about 30 bins a code, hence a few per cent.
    assert quantization_mse(histogram(values), scale, zero_point, grid)[0] == pytest.approx(exact, rel=0.05)


def test_zero_is_always_exact() -> None:
    for low, high in ((-0.17, 13.6), (0.3, 9.0), (-5.0, -1.0), (0.0, 0.0)):
        scale, zero_point = AFFINE.qparams(np.array([low]), np.array([high]))
        assert zero_point[0] == round(zero_point[0])
        assert 0 <= zero_point[0] <= 255
        assert scale[0] > 0


def test_mse_clips_outliers_that_minmax_keeps() -> None:
    data = histogram(with_outliers())
    assert estimate_range(data, "minmax", SYMMETRIC)[1] == 60
    assert estimate_range(data, "mse", SYMMETRIC)[1] < 60
    minmax, mse = (
        quantization_mse(
            data, *SYMMETRIC.qparams(*map(np.atleast_1d, estimate_range(data, name, SYMMETRIC))), SYMMETRIC
        )[0]
        for name in ("minmax", "mse")
    )
    assert mse < minmax


def test_entropy_clips_a_long_thin_tail() -> None:
    high = estimate_range(histogram(with_outliers()), "entropy", SYMMETRIC)[1]
    assert 2 < high < 20


def test_percentile_leaves_out_the_stated_share() -> None:
    low, high = estimate_range(histogram(torch.arange(1_000_000).float()), "percentile", SYMMETRIC)
    assert low == pytest.approx(50, abs=200)
    assert high == pytest.approx(999_950, abs=200)


@pytest.mark.parametrize("grid", [SYMMETRIC, AFFINE], ids=["symmetric", "affine"])
def test_auto_takes_the_least_held_out_error(grid: CodeRange) -> None:
    choice = choose_range(histogram(with_outliers(0)), histogram(with_outliers(1)), grid)
    assert set(choice.candidates) == set(ESTIMATORS)
    assert choice.mse == min(choice.candidates.values())
    assert choice.mse < choice.candidates["minmax"]


def test_a_forced_estimator_is_the_only_one_tried() -> None:
    data = histogram(gaussian())
    assert choose_range(data, data, SYMMETRIC, ("entropy",)).candidates.keys() == {"entropy"}


def test_affine_uses_the_bit_that_a_one_sided_tensor_wastes_on_a_symmetric_grid() -> None:
    data = histogram(torch.nn.functional.gelu(gaussian() * 3))
    symmetric, affine = choose_range(data, data, SYMMETRIC), choose_range(data, data, AFFINE)
    # Twice the codes over the used range is a quarter of the squared error, but for GELU's negative part.
    assert affine.mse < 0.4 * symmetric.mse


def test_affine_search_finds_an_asymmetric_tail() -> None:
    values = gaussian()
    values[::20_000] = -40.0
    low, high = estimate_range(histogram(values), "mse", AFFINE)
    assert high == pytest.approx(4.5, abs=1.2)
    assert -41 < low < -3


def test_float16_scales_are_representable_and_never_smaller() -> None:
    scale = np.array([1e-9, 3.3e-5, 0.0123456, 1.0, 37.2])
    rounded = round_scale(scale, float16=True)
    assert (rounded.astype(np.float16).astype(np.float64) == rounded).all()
    assert (rounded >= scale).all()


def test_a_constant_tensor_gets_a_usable_grid() -> None:
    for value in (0.0, 4.0, -4.0):
        data = histogram(torch.full((1000,), value))
        for grid in (SYMMETRIC, AFFINE):
            choice = choose_range(data, data, grid)
            assert choice.scale > 0
            assert choice.mse <= 1e-3
