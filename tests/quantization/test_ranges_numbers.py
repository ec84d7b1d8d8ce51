"""Grids, quantization errors and range estimators against closed forms, scipy's KL divergence and torch's own observer."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from torch.ao.quantization.observer import MinMaxObserver

from edgeconvnext.quantization.histogram import Histogram
from edgeconvnext.quantization.ranges import (
    ESTIMATORS,
    PERCENTILE,
    CodeRange,
    Estimator,
    choose_range,
    estimate_range,
    quantization_mse,
    round_scale,
)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's, of a division by zero

INT8 = CodeRange(-128, 127, symmetric=True)
UINT8 = CodeRange(0, 255, symmetric=False)
SIGNED = CodeRange(-128, 127, symmetric=False)
UINT8_HALF = CodeRange(0, 255, symmetric=False, float16_scale=True)
INT4 = CodeRange(-8, 7, symmetric=True)
UINT4 = CodeRange(0, 15, symmetric=False)
GRIDS = [INT8, UINT8, SIGNED, UINT8_HALF, INT4, UINT4]


def fitted(grid: CodeRange, low: float, high: float) -> tuple[float, float]:
    scale, zero_point = grid.qparams(np.array([low]), np.array([high]))
    return float(scale[0]), float(zero_point[0])


def exactly_at(values: list[float], counts: list[float] | None = None) -> Histogram:
    """A histogram whose bin centers are `values`, which lie a multiple of 1/8 apart."""
    first = round(8 * values[0])
    bins = np.zeros(round(8 * values[-1]) - first + 1)
    bins[[round(8 * value) - first for value in values]] = [1.0] * len(values) if counts is None else counts
    return _Centered(bins, first, 0.125, values[0], values[-1])


class _Centered(Histogram):
    @property
    def centers(self) -> np.ndarray:
        return (self.first + np.arange(len(self.counts))) * self.width


# Grids


def test_symmetric_scale_is_divided_by_127_not_128() -> None:
    assert fitted(INT8, -127.0, 50.0) == (1.0, 0.0)
    assert fitted(INT8, -50.0, 127.0) == (1.0, 0.0)
    assert fitted(INT4, -3.5, 0.5) == (0.5, 0.0)


def test_affine_scale_is_the_span_over_255() -> None:
    assert (UINT8.levels, SIGNED.levels, UINT4.levels) == (255, 255, 15)
    assert fitted(UINT8, -10.0, 245.0) == (1.0, 10.0)
    assert fitted(SIGNED, -10.0, 245.0) == (1.0, -118.0)
    assert fitted(UINT4, -2.0, 5.5) == (0.5, 4.0)


def test_zero_point_is_rounded_not_floored() -> None:
    assert fitted(UINT8, -3.625, 251.375) == (1.0, 4.0)
    assert fitted(UINT8, -3.375, 251.625) == (1.0, 3.0)
    assert fitted(SIGNED, -3.625, 251.375) == (1.0, -124.0)


def test_the_example_of_the_docstring() -> None:
    scale, zero_point = fitted(UINT8, -0.17, 13.43)
    assert scale == np.float32(13.6 / 255)
    assert round(scale, 4) == 0.0533
    assert zero_point == 3.0


def test_a_range_beside_zero_is_extended_to_it() -> None:
    assert fitted(UINT8, 5.0, 255.0) == (1.0, 0.0)
    assert fitted(UINT8, -255.0, -5.0) == (1.0, 255.0)
    assert fitted(INT8, 3.0, 254.0) == (2.0, 0.0)


def test_an_empty_range_gets_the_smallest_scale() -> None:
    for grid, zero_point in ((INT8, 0.0), (UINT8, 0.0), (SIGNED, -128.0)):
        assert fitted(grid, 0.0, 0.0) == (float(np.float32(1e-12)), zero_point)
    assert fitted(UINT8_HALF, 0.0, 0.0) == (2.0**-20, 0.0)
    assert fitted(CodeRange(-128, 127, symmetric=True, float16_scale=True), 0.0, 0.0) == (2.0**-20, 0.0)


RANGE = st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)).map(sorted)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(RANGE, st.sampled_from(GRIDS))
def test_a_grid_holds_its_range_to_half_a_step(interval: list[float], grid: CodeRange) -> None:
    """Both ends come back within half a step; zero exactly; codes stay in their range and rise with the values."""
    low, high = interval
    scale, zero_point = fitted(grid, low, high)
    values = np.sort([low, 0.0, high])
    codes = np.floor(values / scale + zero_point + 0.5)
    assert zero_point == int(zero_point) and grid.quant_min <= zero_point <= grid.quant_max
    # Float32 rounds the scale by 2^-24 of itself: 255 steps of it are off by far less than the hundredth of a step allowed.
    clipped = np.clip(codes, grid.quant_min, grid.quant_max)
    assert (np.abs((clipped - zero_point) * scale - values) <= 0.51 * scale).all()
    assert (clipped[values == 0.0] == zero_point).all()
    assert (np.diff(clipped) >= 0).all()
    # No finer step would do: the range fills all codes, or one side of them.
    fills = max(abs(low), abs(high)) / grid.quant_max if grid.symmetric else (max(high, 0) - min(low, 0)) / grid.levels
    if fills > 2.0**-14:
        assert fills * (1 - 2.0**-24) <= scale <= fills * (1 + (2.0**-10 if grid.float16_scale else 2.0**-24))


@pytest.mark.parametrize("grid", [INT8, UINT8, SIGNED, INT4, UINT4])
def test_torchs_observer_chooses_the_same_parameters(grid: CodeRange) -> None:
    """Its symmetric scale is the largest magnitude over half of the codes' span: 127 where the lowest code is -127."""
    rng = np.random.default_rng(0)
    for low, high in np.sort(rng.normal(0.0, 3.0, (20, 2)).astype(np.float32), axis=1).tolist():
        observer = MinMaxObserver(
            torch.qint8 if grid.quant_min < 0 else torch.quint8,
            torch.per_tensor_symmetric if grid.symmetric else torch.per_tensor_affine,
            quant_min=-grid.quant_max if grid.symmetric else grid.quant_min,
            quant_max=grid.quant_max,
            eps=1e-12,
        )
        observer(torch.tensor([low, high]))
        scale, zero_point = (float(value) for value in observer.calculate_qparams())
        # The observer subtracts and divides in float32, each rounded by 2^-24.
        assert fitted(grid, low, high) == (pytest.approx(scale, rel=2.0**-22), zero_point)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(2.0**-20, 6e4))
def test_a_float16_scale_is_the_smallest_that_is_not_below(scale: float) -> None:
    rounded = round_scale(np.array([scale]), True)[0]
    assert rounded == np.float16(rounded)
    assert np.nextafter(np.float16(rounded), np.float16(0)).astype(np.float64) < scale <= rounded


def test_scales_are_rounded_to_what_a_graph_stores() -> None:
    scale = np.array([1.0, 1.0 + 2.0**-11, 1.0 + 2.0**-10, 0.1, 2.0**-20, 2.0**-21, 1e-12])
    half = round_scale(scale, True)
    # One tenth is 0.0999755859375 or 0.10003662109375 in float16.
    expected = [1.0, 1 + 2.0**-10, 1 + 2.0**-10, 0.10003662109375, 2.0**-20, 2.0**-20, 2.0**-20]
    assert half.tolist() == expected
    assert round_scale(scale, False).tolist() == [float(torch.tensor(value, dtype=torch.float32)) for value in scale]
    assert half.dtype == round_scale(scale, False).dtype == np.float64


def test_scales_beyond_float16_are_its_largest_number() -> None:
    scale = np.array([65503.9, 65504.0, 65504.1, 65520.0, 1e6, 1e30])
    assert round_scale(scale, True).tolist() == [65504.0] * 6
    assert round_scale(np.array([65472.0, 65472.1]), True).tolist() == [65472.0, 65504.0]


# Errors


def test_the_error_of_a_grid_in_steps_of_one() -> None:
    # 0.25 and 0.375 lose themselves, 1.25 loses a quarter, 130 is clipped to 127: (0.0625 + 2 * 0.140625 + 0.0625 + 9) / 5.
    data = exactly_at([0.25, 0.375, 1.25, 130.0], [1.0, 2.0, 1.0, 1.0])
    errors = quantization_mse(data, np.array([1.0]), np.array([0.0]), INT8)
    assert errors == pytest.approx([(0.0625 + 2 * 0.140625 + 0.0625 + 9) / 5], rel=1e-14)


def test_the_lowest_code_is_used() -> None:
    for grid, zero_point, ends in (
        (INT8, 0.0, (-128.0, 127.0)),
        (UINT8, 3.0, (-3.0, 252.0)),
        (UINT4, 15.0, (-15.0, 0.0)),
    ):
        errors = quantization_mse(exactly_at(list(ends)), np.array([1.0]), np.array([zero_point]), grid)
        assert errors[0] == 0.0
        beyond = exactly_at([ends[0] - 1, ends[1] + 2])
        assert quantization_mse(beyond, np.array([1.0]), np.array([zero_point]), grid)[0] == 2.5  # (1 + 4) / 2


def test_one_value_and_no_value() -> None:
    assert quantization_mse(exactly_at([0.5]), np.array([2.0]), np.array([0.0]), INT8).tolist() == [0.25]
    empty = Histogram(np.zeros(1), 0, 1.0, 0.0, 0.0)
    assert quantization_mse(empty, np.array([2.0]), np.array([0.0]), INT8).tolist() == [0.0]


@pytest.mark.parametrize("grid", GRIDS)
def test_errors_are_those_of_torchs_fake_quantize(grid: CodeRange) -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 5, 400).astype(np.float64)
    data = Histogram(counts, -150, 0.03, -4.5, 7.5)
    lows, highs = -rng.uniform(0.1, 5, 12), rng.uniform(0.1, 8, 12)
    scale, zero_point = grid.qparams(lows, highs)
    centers = torch.from_numpy(np.clip((np.arange(-150, 250) + 0.5) * 0.03, -4.5, 7.5)).double()
    expected = []
    for step, zero in zip(scale.tolist(), zero_point.tolist(), strict=True):
        quantized = torch.fake_quantize_per_tensor_affine(centers, step, int(zero), grid.quant_min, grid.quant_max)
        expected.append(np.average((quantized - centers).numpy() ** 2, weights=counts))
    # torch multiplies by the scale in float32: up to 7.5 * 2^-23 beside errors of at least 0.02 / sqrt(12), twice for the square.
    np.testing.assert_allclose(quantization_mse(data, scale, zero_point, grid), expected, rtol=3e-4)


# Estimators


def kl_divergence(data: Histogram, step: float, zero: float, grid: CodeRange) -> float:
    """TensorRT's loss in its own words: clipped counts go to the last bin in range; Q spreads each code's counts evenly."""
    occupied = [(x, count) for x, count in zip(data.centers, data.counts, strict=True) if count]
    inside = [(round(x / step + zero), count) for x, count in occupied]
    kept = [(code, count) for code, count in inside if grid.quant_min <= code <= grid.quant_max]
    if not kept:
        return np.inf
    p = np.array([count for _, count in kept])
    p[0] += sum(count for code, count in inside if code < grid.quant_min)
    p[-1] += sum(count for code, count in inside if code > grid.quant_max)
    groups = {code: [count for _, count in group] for code, group in itertools.groupby(kept, key=lambda pair: pair[0])}
    q = np.array([np.mean(groups[code]) for code, _ in kept])
    return float(rel_entr(p / p.sum(), q / q.sum()).sum())


def mean_square_error(data: Histogram, step: float, zero: float, grid: CodeRange) -> float:
    codes = np.array([min(max(round(x / step) + zero, grid.quant_min), grid.quant_max) for x in data.centers])
    return float(np.average(((codes - zero) * step - data.centers) ** 2, weights=data.counts))


LOSSES = {"mse": mean_square_error, "entropy": kl_divergence}


def searched(data: Histogram, estimator: str, grid: CodeRange, steps: int) -> tuple[float, float]:
    """Both ends shrunk together to 2 % at most; then, on affine grids, each end twice by factors of 0.3 to 3."""

    def least(candidates: list[tuple[float, float]]) -> tuple[float, float]:
        return min(candidates, key=lambda ends: LOSSES[estimator](data, *fitted(grid, *ends), grid))

    def spaced(begin: float, end: float) -> list[float]:
        return [begin * (end / begin) ** (k / (steps - 1)) for k in range(steps)]

    bottom, top = min(data.low, 0.0), max(data.high, 0.0)
    low, high = least([(bottom * factor, top * factor) for factor in spaced(0.02, 1.0)])
    if not grid.symmetric:
        for _ in range(2):
            low, high = least([(low, min(high * factor, top)) for factor in spaced(0.3, 3.0)])
            low, high = least([(max(low * factor, bottom), high) for factor in spaced(0.3, 3.0)])
    return low, high


def heavy_tailed(seed: int, offset: float, unit: float = 1.0) -> Histogram:
    """A bell of ten thousand values around `offset`, two uneven tails, empty bins between; 16 bins a unit."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(offset, 1.0, 10_000), rng.exponential(3.0, 300), -rng.exponential(1.5, 200)])
    first = int(np.floor(values.min() / 0.0625))
    counts = np.bincount(np.floor(values / 0.0625).astype(int) - first).astype(np.float64)
    return Histogram(counts, first, unit * 0.0625, float(unit * values.min()), float(unit * values.max()))


@pytest.mark.parametrize("estimator", ["mse", "entropy"])
@pytest.mark.parametrize("grid", [INT4, UINT4, CodeRange(-8, 7, symmetric=False)], ids=["int4", "uint4", "affine int4"])
@pytest.mark.parametrize(
    ("seed", "offset", "unit"),
    [(0, 0.0, 1.0), (1, 2.0, 2.0**-6), (2, -1.5, 2.0**-6), (3, 20.0, 2.0**-7), (4, -40.0, 1.0)],
)
def test_a_searched_range_has_the_least_loss(
    estimator: Estimator,
    grid: CodeRange,
    seed: int,
    offset: float,
    unit: float,
) -> None:
    data = heavy_tailed(seed, offset, unit)
    expected = searched(data, estimator, grid, 16)
    assert estimate_range(data, estimator, grid, 16) == pytest.approx(expected, rel=1e-9)


def test_the_shrunk_range_ends_at_two_per_cent() -> None:
    # Steps of 1 keep every value but the one at 127 * 50; in three steps, shrunk to 0.02, sqrt(0.02) or not at all.
    data = exactly_at([float(value) for value in range(-127, 128)] + [6350.0], [1.0] * 255 + [1e-9])
    assert estimate_range(data, "mse", INT8, 3) == pytest.approx((-127 * 0.02, 127.0), rel=1e-12)
    rough = exactly_at([889.0, 6350.0], [1.0, 1e-9])
    assert estimate_range(rough, "mse", INT8, 3) == pytest.approx((0.0, 6350 * 0.02**0.5), rel=1e-12)


def test_entropys_upper_tail_counts() -> None:
    """Values in 0..1 at 300 places and a third of all at 50: 2 % of the range would be perfect but for those it clips."""
    inner = [1 / 8 + k / 8 for k in range(127)]
    counts = [1.0 + k % 3 for k in range(127)]
    data = exactly_at([*inner, 793.75], [*counts, 100.0])
    assert estimate_range(data, "entropy", INT8, 2)[1] == 793.75
    # The same without the far values: nothing speaks against the finer steps.
    assert estimate_range(exactly_at([*inner, 793.75], [*counts, 1e-6]), "entropy", INT8, 2)[1] == 793.75 * 0.02


def test_entropys_lower_tail_counts() -> None:
    inner = [-127 / 8 + k / 8 for k in range(127)]
    counts = [1.0 + k % 3 for k in range(127)]
    data = exactly_at([-793.75, *inner], [100.0, *counts])
    assert estimate_range(data, "entropy", INT8, 2)[0] == -793.75
    assert estimate_range(exactly_at([-793.75, *inner], [1e-6, *counts]), "entropy", INT8, 2)[0] == -793.75 * 0.02


def test_a_range_that_holds_no_value_is_no_candidate() -> None:
    far = exactly_at([100.0, 100.125, 100.25], [1.0, 5.0, 1.0])
    assert estimate_range(far, "entropy", INT8, 2) == (0.0, 100.25)


def test_the_percentile_leaves_out_half_a_ten_thousandth_at_each_end_not_twice_as_much() -> None:
    """Of a million values 50 are left out at each end: 49 of them fill one bin, and 98 would fill two."""
    assert PERCENTILE == 99.99
    data = Histogram(np.array([49.0, 49.0, 999_804.0, 49.0, 49.0]), -2, 1.0, -1.5, 2.75)
    assert estimate_range(data, "percentile", INT8) == (-1.0, 2.0)
    data = Histogram(np.array([49.0, 2.0, 999_898.0, 2.0, 49.0]), -2, 0.5, -0.75, 1.25)
    assert estimate_range(data, "percentile", INT8) == (-0.5, 1.0)
    data = Histogram(np.array([51.0, 999_898.0, 51.0]), 4, 2.0, 8.5, 13.5)
    assert estimate_range(data, "percentile", INT8) == (8.5, 13.5)


def test_the_percentile_of_few_values_is_their_range() -> None:
    assert estimate_range(Histogram(np.array([1.0]), 3, 1.0, 3.25, 3.5), "percentile", UINT8) == (3.25, 3.5)
    assert estimate_range(Histogram(np.array([1.0, 0.0, 1.0]), -1, 1.0, -0.5, 1.5), "percentile", UINT8) == (-0.5, 1.5)


@pytest.mark.parametrize("grid", [INT8, UINT8])
def test_a_tensor_of_which_nothing_was_seen_gets_a_grid_without_error(grid: CodeRange) -> None:
    empty = Histogram(np.zeros(1), 0, 1.0, 0.0, 0.0)
    choice = choose_range(empty, empty, grid)
    assert choice.candidates == dict.fromkeys(ESTIMATORS, 0.0)
    assert (choice.scale, choice.zero_point) == (float(np.float32(1e-12)), 0)


@pytest.mark.parametrize(("low", "high"), [(0.25, 0.5), (-0.5, -0.25), (6.0, 8.0), (-8.0, -6.0)])
@pytest.mark.parametrize("estimator", ["mse", "entropy"])
@pytest.mark.parametrize("grid", [INT8, UINT8])
def test_a_range_beside_zero_is_searched_between_its_far_end_and_zero(
    grid: CodeRange,
    estimator: Estimator,
    low: float,
    high: float,
) -> None:
    width = (high - low) / 4
    data = Histogram(np.array([3.0, 1.0, 1.0, 2.0]), round(low / width), width, low, high)
    ends = estimate_range(data, estimator, grid, 16)
    assert ends == pytest.approx(searched(data, estimator, grid, 16), rel=1e-9)
    assert min(low, 0.0) <= ends[0] <= 0.0 <= ends[1] <= max(high, 0.0)


def test_min_max_is_the_range_seen() -> None:
    assert estimate_range(Histogram(np.ones(4), -2, 1.0, -1.75, 1.25), "minmax", INT8) == (-1.75, 1.25)


def test_eighty_candidates_unless_said_otherwise() -> None:
    data = heavy_tailed(5, 1.0)
    for estimator in ("mse", "entropy"):
        ends = estimate_range(data, estimator, UINT8)
        assert ends == estimate_range(data, estimator, UINT8, 80)
        assert ends not in (estimate_range(data, estimator, UINT8, 79), estimate_range(data, estimator, UINT8, 81))
    chosen = choose_range(data, data, UINT8, ("mse",))
    assert (chosen.scale, chosen.zero_point) == fitted(UINT8, *estimate_range(data, "mse", UINT8, 80))


# The choice


def test_estimators_are_judged_on_the_held_out_half_not_on_the_fitted_one() -> None:
    """Ranges: 0..127 by min-max, 0..2.54 by the search. Fitted values lie in the latter but one; held-out values do not."""
    fit = exactly_at([0.25, 0.5, 2.5, 127.0], [1e6, 1e6, 1e6, 1e-3])
    held_out = exactly_at([2.5, 127.0], [1.0, 1.0])
    choice = choose_range(fit, held_out, INT8, ("mse", "minmax"), 2)
    # Steps of 1: 2.5 becomes 2. Steps of 0.02: 127 becomes 2.54, and 2.5 stays.
    assert choice.candidates == {
        "minmax": pytest.approx(0.25 / 2),
        "mse": pytest.approx((127 - 2.54) ** 2 / 2, rel=1e-6),
    }
    assert (choice.estimator, choice.scale, choice.zero_point, choice.mse) == ("minmax", 1.0, 0, pytest.approx(0.125))
    # Judged on the fitted values, the search wins: min-max rounds 0.25 and 0.5 to 0, 2.5 to 2.
    assert choose_range(fit, fit, INT8, ("mse", "minmax"), 2).estimator == "mse"


def test_ranges_come_from_the_fitted_half() -> None:
    fit, held_out = exactly_at([-10.0, 245.0]), exactly_at([-20.0, 490.0])
    choice = choose_range(fit, held_out, UINT8, ("minmax",))
    assert (choice.scale, choice.zero_point, choice.estimator) == (1.0, 10, "minmax")
    # -20 is clipped to -10, 490 to 245.
    assert choice.mse == choice.candidates["minmax"] == (10**2 + 245**2) / 2


def test_four_estimators_compete_and_the_first_of_equals_wins() -> None:
    assert ESTIMATORS == ("minmax", "percentile", "entropy", "mse")
    zeros = exactly_at([0.0])
    choice = choose_range(zeros, zeros, INT8)
    assert choice.candidates == dict.fromkeys(ESTIMATORS, 0.0)
    assert choice.estimator == "minmax"
    data, other = heavy_tailed(6, 1.0), heavy_tailed(7, 1.0)
    choice = choose_range(data, other, UINT4, steps=20)
    for estimator in ESTIMATORS:
        step, zero = fitted(UINT4, *estimate_range(data, estimator, UINT4, 20))
        assert choice.candidates[estimator] == pytest.approx(mean_square_error(other, step, zero, UINT4), rel=1e-9)
