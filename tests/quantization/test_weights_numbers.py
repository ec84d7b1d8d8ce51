"""Weight grids and palettes against closed forms, exhaustive search in float64 and the scales of torch's own observer."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.ao.quantization.observer import PerChannelMinMaxObserver

from edgeconvnext.quantization.weights import palette_qparams, weight_qparams


def largest_first(limit: int, lowest: float) -> np.ndarray:
    """Shares of the largest weight that a scale may give the largest code: 1, then 25 from 0.98 down to `lowest`."""
    return np.array([1.0] + [0.98 - (0.98 - lowest) * k / 24 for k in range(25)]) / limit


LIMITS = [(127, 0.5), (64, 0.5), (8, 0.5), (7, 0.35), (1, 0.35)]


def test_the_largest_weight_gets_code_127_where_nothing_is_searched() -> None:
    weight = torch.tensor([[1.0, -254.0], [127.0, 63.5], [0.0, 0.0]])
    grid = weight_qparams(weight, 127, float16_scale=False, search=False)
    assert grid.scale.tolist() == [2.0, 1.0, pytest.approx(1e-12 / 127, rel=2.0**-24, abs=0)]
    assert grid.scale.dtype == torch.float32
    assert grid.zero_point.tolist() == [0, 0, 0] and grid.zero_point.dtype == torch.int32
    assert (grid.quant_min, grid.quant_max, grid.axis, grid.levels) == (-127, 127, 0, None)
    assert weight_qparams(weight, 7, float16_scale=False, search=False).scale[0] == np.float32(254 / 7)
    # A dead channel's scale is the smallest that float16 holds with 4 bits to spare; 0.1 is rounded up.
    half = weight_qparams(torch.tensor([[0.7], [0.0]]), 7, float16_scale=True, search=False)
    assert half.scale.tolist() == [0.10003662109375, 2.0**-20]


@pytest.mark.parametrize(("limit", "lowest"), LIMITS)
def test_the_search_takes_each_of_26_scales_for_weights_that_lie_on_it(limit: int, lowest: float) -> None:
    """Nothing is lost by clipping the largest weight, whose input is always zero; all others are whole numbers of steps."""
    scales = 3.0 * largest_first(limit, lowest)
    rng = np.random.default_rng(0)
    codes = rng.integers(-limit, limit + 1, (26, 40))
    codes[:, 1], codes[:, 2] = limit, -limit
    weight = np.concatenate([np.full((26, 1), 3.0), codes * scales[:, None]], axis=1)
    power = torch.tensor([0.0] + [1.0] * 40)
    grid = weight_qparams(torch.from_numpy(weight).float(), limit, float16_scale=False, search=True, power=power)
    np.testing.assert_allclose(grid.scale.numpy(), scales, rtol=1e-6)
    assert (grid.quant_min, grid.quant_max) == (-limit, limit)


@pytest.mark.parametrize("limit", [7, 127])
def test_torchs_observer_chooses_the_same_scales(limit: int) -> None:
    weight = torch.randn(16, 9, generator=torch.Generator().manual_seed(0))
    observer = PerChannelMinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-limit, quant_max=limit, eps=1e-12
    )
    observer(weight)
    scale, _ = observer.calculate_qparams()
    # The observer divides in float32.
    grid = weight_qparams(weight, limit, float16_scale=False, search=False)
    torch.testing.assert_close(grid.scale, scale, rtol=2.0**-22, atol=0)


def best_scales(
    rows: np.ndarray, limit: int, lowest: float, importance: np.ndarray, float16: bool = False
) -> np.ndarray:
    """The scale of each row with the least weighted squared error, all of them tried in float64, (rows,)."""
    scales = np.abs(rows).max(axis=1)[:, None] * largest_first(limit, lowest)
    if float16:
        near = scales.astype(np.float16)
        scales = np.where(near < scales, np.nextafter(near, np.float16(np.inf)), near).astype(np.float64)
    codes = np.clip(np.rint(rows[:, None] / scales[:, :, None]), -limit, limit)
    errors = ((codes * scales[:, :, None] - rows[:, None]) ** 2 * importance[:, None]).sum(axis=2)
    return np.take_along_axis(scales, errors.argmin(axis=1)[:, None], axis=1)[:, 0]


@pytest.mark.parametrize(("limit", "lowest"), LIMITS)
@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("power", ["none", "per input", "per weight"])
def test_searched_scales_have_the_least_weighted_error(limit: int, lowest: float, float16: bool, power: str) -> None:
    rng = np.random.default_rng(limit)
    weight = torch.from_numpy(rng.standard_t(4, (12, 5, 3, 3))).float()
    rows = weight.double().flatten(1).numpy()
    importance = np.ones_like(rows)
    if power == "per input":
        importance = np.broadcast_to(rng.uniform(0, 4, 45) ** 2, rows.shape).copy()
    elif power == "per weight":
        importance = rng.uniform(0, 4, rows.shape) ** 2
    given = None if power == "none" else torch.from_numpy(importance[0] if power == "per input" else importance)
    grid = weight_qparams(weight, limit, float16_scale=float16, search=True, power=given)
    expected = best_scales(rows, limit, lowest, importance, float16)
    np.testing.assert_allclose(grid.scale.numpy(), expected, rtol=2.0**-23)
    # Weighting matters: some rows have another scale without it.
    plain = best_scales(rows, limit, lowest, np.ones_like(rows), float16)
    assert limit == 1 or (expected != plain).any() == (power != "none")


def test_each_block_of_a_row_has_a_scale_of_its_own() -> None:
    rng = np.random.default_rng(2)
    weight = torch.from_numpy(rng.standard_t(4, (6, 24))).float()
    power = torch.from_numpy(rng.uniform(0, 4, 24) ** 2)
    grid = weight_qparams(weight, 7, float16_scale=False, search=True, power=power, block_size=8)
    assert grid.scale.shape == grid.zero_point.shape == (6, 3)
    rows, importance = weight.double().numpy().reshape(18, 8), np.tile(power.numpy().reshape(3, 8), (6, 1))
    expected = best_scales(rows, 7, 0.35, importance).reshape(6, 3)
    np.testing.assert_allclose(grid.scale.numpy(), expected, rtol=2.0**-23)
    plain = weight_qparams(weight, 7, float16_scale=False, search=False, block_size=8)
    np.testing.assert_allclose(plain.scale.numpy(), np.abs(rows).max(axis=1).reshape(6, 3) / 7, rtol=2.0**-23)
    unweighted = weight_qparams(weight, 7, float16_scale=False, search=True, block_size=8)
    expected = best_scales(rows, 7, 0.35, np.ones_like(rows)).reshape(6, 3)
    np.testing.assert_allclose(unweighted.scale.numpy(), expected, rtol=2.0**-23)


@pytest.mark.parametrize(("rows", "columns"), [(48, 4096), (5, 30_000), (5, 40_000), (5, 70_000)])
def test_rows_that_do_not_fit_the_cache_together_are_searched_as_well(rows: int, columns: int) -> None:
    """Sixteen rows, two rows, one row, and less than a row at a time; each row lies on one of the 26 scales."""
    scales = largest_first(7, 0.35)[np.arange(0, 4 * rows, 4) % 26]
    codes = np.random.default_rng(3).integers(-7, 8, (rows, columns))
    codes[:, :3] = 0
    weight = codes * scales[:, None]
    weight[:, 0] = 1.0
    power = torch.ones(rows, columns)
    power[:, 0] = 0.0
    grid = weight_qparams(torch.from_numpy(weight).float(), 7, float16_scale=False, search=True, power=power)
    np.testing.assert_allclose(grid.scale.numpy(), scales, rtol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=1, max_size=12),
    st.sampled_from([7, 64, 127]),
    st.booleans(),
)
def test_unsearched_weights_come_back_within_half_a_step(row: list[float], limit: int, float16: bool) -> None:
    weight = torch.tensor([row])
    grid = weight_qparams(weight, limit, float16_scale=float16, search=False)
    scale = float(grid.scale[0])
    restored = grid.fake_quantize(weight)
    # Half a step, and 2^-24 of the value for each of float32's division and product.
    assert float((restored - weight).abs().max()) <= scale * (0.5 + limit * 2.0**-22)
    codes = (restored / scale).round()
    assert codes.abs().max() <= limit
    assert torch.equal(grid.fake_quantize(restored), restored)
    assert (codes[0, weight[0].argsort()].diff() >= 0).all()
    assert not float16 or scale == float(grid.scale.half()[0])


# Palettes


def best_levels(steps: np.ndarray, cost: np.ndarray, places: int) -> tuple[list[int], float]:
    """Levels and error of the best division of the occupied codes into intervals, all of them tried."""
    codes = np.clip(np.rint(steps), -127, 127).ravel()
    occupied = sorted(set(codes.tolist()))
    best: tuple[list[int], float] = ([], np.inf)
    for cuts in itertools.combinations(range(1, len(occupied)), min(places, len(occupied)) - 1):
        levels, error = [], 0.0
        for begin, end in itertools.pairwise((0, *cuts, len(occupied))):
            inside = np.isin(codes, occupied[begin:end])
            level = round(float(np.average(codes[inside], weights=cost.ravel()[inside])))
            levels.append(level)
            error += float((cost.ravel()[inside] * (codes[inside] - level) ** 2).sum())
        if error < best[1]:
            best = levels, error
    return best


def on_whole_steps(*codes: float) -> torch.Tensor:
    """One row whose largest weight has code 127, so that all scales that a palette may have are 1."""
    return torch.tensor([[127.0, *codes]])


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_palette_is_the_best_of_all_divisions(bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = on_whole_steps(-127.0, *rng.integers(-127, 128, 9).tolist())
    power = torch.from_numpy(rng.uniform(0.1, 2.0, 11))
    grid = palette_qparams(weight, bits, float16_scale=False, power=power)
    assert grid.scale.tolist() == [1.0]
    assert grid.levels is not None and grid.levels.dtype == torch.float32
    expected, _ = best_levels(weight.numpy(), power.numpy()[None], 2**bits)
    assert grid.levels.tolist() == expected


def test_a_level_is_the_whole_number_next_to_the_weighted_mean() -> None:
    # 10 and 11 by one and by three: 10.75, hence 11; by three and by one: 10.25, hence 10. The lowest code is -127.
    weight = on_whole_steps(-127.0, 60.0, 10.0, 11.0)
    for powers, level in (([1.0, 3.0], 11.0), ([3.0, 1.0], 10.0)):
        power = torch.tensor([1.0, 1.0, 1.0, *powers])
        grid = palette_qparams(weight, 2, float16_scale=False, power=power)
        assert grid.levels.tolist() == [-127.0, level, 60.0, 127.0]
    # 3.4 counts as 3 and 3.6 as 4.
    assert palette_qparams(on_whole_steps(3.4, 3.6, -20.0), 2, float16_scale=False).levels.tolist() == [-20, 3, 4, 127]


def test_places_that_are_left_over_repeat_levels_in_order() -> None:
    grid = palette_qparams(on_whole_steps(-127.0, 0.0, 5.0), 4, float16_scale=False)
    levels = grid.levels.tolist()
    assert len(levels) == 16 and levels == sorted(levels)
    assert set(levels) >= {-127.0, 0.0, 5.0, 127.0}
    assert set(levels) <= {-127.0, 0.0, 5.0, 127.0}
    assert (grid.quant_min, grid.quant_max, grid.axis, grid.bits) == (-127, 127, 0, 4)
    assert grid.zero_point.tolist() == [0] and grid.zero_point.dtype == torch.int32


def test_neighbouring_codes_have_levels_of_their_own() -> None:
    assert palette_qparams(on_whole_steps(3.0, 4.0, 5.0), 2, float16_scale=False).levels.tolist() == [3, 4, 5, 127]
    ends = on_whole_steps(126.0, -126.0, -127.0)
    assert palette_qparams(ends, 2, float16_scale=False).levels.tolist() == [-127, -126, 126, 127]


def test_256_places_hold_all_255_codes() -> None:
    levels = palette_qparams(on_whole_steps(*range(-127, 127)), 8, float16_scale=False).levels.tolist()
    assert len(levels) == 256
    assert set(levels) == set(range(-127, 128))


@pytest.mark.parametrize("quiet", [[63, -40, -107], [-56, -71, 81]])
def test_levels_stay_in_range_where_costs_differ_by_more_than_float64_resolves(quiet: list[int]) -> None:
    """Codes of a channel 2^-24 as loud cost 2^-48 as much; differences of running sums then give means beyond 127."""
    loud = [-100.0, 35.0, 60.0] if quiet[0] > 0 else [52.0, -70.0, 69.0]
    weight = torch.tensor([[127.0, *loud], [127 * 2.0**-24, *(code * 2.0**-24 for code in quiet)]])
    levels = palette_qparams(weight, 3, float16_scale=False).levels.tolist()
    assert set(loud) | {127.0} <= set(levels)
    assert max(levels) == 127.0 and min(levels) >= -127.0


FILLER = 127 / np.sqrt(2)
# Two rows in proportion 1 : 3. The first two columns are what counts; the others, whose inputs are zero, set the scales.
SAME_LARGEST = [[40.0, 100.0, 127.0, 0.0, 0.0], [120.0, 300.0, 381.0, 180.0, 0.0]]
SAME_MEAN_SQUARE = [[40.0, 100.0, 127.0, 0.0, 0.0], [120.0, 300.0, 3 * FILLER, 3 * FILLER, 0.0]]
# The second row's largest is 110 / 127 of the first's; its mean square is 127 / 110 as large, squared.
HALF_WAY = np.sqrt((27729 * (127 / 110) ** 2 - 11600 - 110**2) / 2)
HALF = [[40.0, 100.0, 127.0, 0.0, 0.0], [120.0, 300.0, 330.0, 3 * HALF_WAY, 3 * HALF_WAY]]


@pytest.mark.parametrize(
    "weight",
    [SAME_LARGEST, SAME_MEAN_SQUARE, HALF],
    ids=["largest weights on one code", "palette is spread by the largest ratio not the least", "half way"],
)
def test_scales_of_a_palette_align_what_channels_have_in_common(weight: list[list[float]]) -> None:
    """Each of the three choices of scales puts both rows on levels 40 and 100 in one of the cases, the others in none."""
    power = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    grid = palette_qparams(torch.tensor(weight), 1, float16_scale=False, power=power)
    assert grid.scale.tolist() == pytest.approx([1.0, 3.0], rel=1e-6)
    assert grid.levels.tolist() == [40.0, 100.0]


@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_scales_with_the_least_error_are_taken(seed: int, float16: bool) -> None:
    """All three tried in float64: largest weights, root mean squares (none above the largest code), geometric means of both."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.standard_t(3, (3, 4)) * [[1.0], [0.01], [20.0]]).float()
    rows = weight.double().numpy()
    power = rng.uniform(0.1, 2.0, 4)
    largest, root = np.abs(rows).max(axis=1), np.linalg.norm(rows, axis=1)
    spread = root * max(largest / root)
    tried = []
    for size in (largest, np.exp((np.log(largest) + np.log(spread)) / 2), spread):
        scale = (size / 127).astype(np.float32).astype(np.float64)
        if float16:
            near = (size / 127).astype(np.float16)
            scale = np.where(near < size / 127, np.nextafter(near, np.float16(np.inf)), near).astype(np.float64)
        steps, cost = rows / scale[:, None], power * scale[:, None] ** 2
        levels, _ = best_levels(steps, cost, 4)
        nearest = np.abs(steps[:, :, None] - np.array(levels)).min(axis=2)
        tried.append((float((nearest**2 * cost).sum()), scale, levels))
    _, scale, levels = min(tried, key=lambda each: each[0])
    grid = palette_qparams(weight, 2, float16_scale=float16, power=torch.from_numpy(power))
    np.testing.assert_allclose(grid.scale.numpy(), scale, rtol=2.0**-23)
    assert grid.levels.tolist() == levels


def test_of_equal_palettes_the_first_is_taken_and_dead_channels_have_one() -> None:
    """The dead channel's scale differs between the three choices, the error does not."""
    grid = palette_qparams(torch.tensor([[127.0, 3.0], [0.0, 0.0]]), 2, float16_scale=False)
    assert grid.scale.tolist() == [1.0, pytest.approx(1e-12 / 127, rel=2.0**-23, abs=0)]
    assert set(grid.levels.tolist()) == {0.0, 3.0, 127.0}
    zeros = palette_qparams(torch.zeros(2, 3), 1, float16_scale=False)
    assert zeros.scale.tolist() == [pytest.approx(1e-12 / 127, rel=2.0**-23, abs=0)] * 2
    assert set(zeros.levels.tolist()) == {0.0}
