"""Grids against torch's and torchao's own quantization, and against all codes tried one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchao.quantization.quant_primitives import dequantize_affine, quantize_affine

from edgeconvnext.quantization.plan import ActivationPlan, LayerDecision, QParams, QuantPlan
from edgeconvnext.rewrite.channel_scaling import ChannelScaling

few = settings(max_examples=40, derandomize=True, deadline=None, database=None)


def per_tensor(scale: float, zero_point: int, low: int, high: int) -> QParams:
    return QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), low, high)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("low", "high"), [(-127, 127), (-128, 127), (0, 255), (-7, 7), (-64, 64), (0, 65535)])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_per_tensor_grid_rounds_as_torch_does(low: int, high: int, share: float) -> None:
    grid = per_tensor(0.037, round(low + share * (high - low)), low, high)
    x = 0.037 * (high - low) * random(500)
    expected = torch.fake_quantize_per_tensor_affine(x, 0.037, int(grid.zero_point), low, high)
    torch.testing.assert_close(grid.fake_quantize(x), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 0), ((5, 3, 2, 2), 0), ((2, 5, 3, 3), 1), ((2, 3, 5), 2)])
def test_a_per_channel_grid_rounds_as_torch_does(shape: tuple[int, ...], axis: int) -> None:
    scale, zero_point = 0.01 + random(5).abs(), torch.tensor([-3, 0, 7, 100, -100], dtype=torch.int32)
    grid = QParams(scale, zero_point, -127, 127, axis=axis)
    x = 60 * random(*shape, seed=1)
    expected = torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, -127, 127)
    torch.testing.assert_close(grid.fake_quantize(x), expected, rtol=1e-6, atol=0)


def test_a_blocked_grid_rounds_as_torchao_does() -> None:
    """Rows of 12 inputs with 3 scales each: blocks of 4."""
    scale = 0.05 + random(6, 3).abs()
    grid = QParams(scale, torch.zeros(6, 3, dtype=torch.int32), -7, 7, axis=0)
    assert grid.blocked
    x = 3 * random(6, 12, seed=1)
    codes = quantize_affine(x, (1, 4), scale, grid.zero_point, torch.int8, -7, 7)
    expected = dequantize_affine(codes, (1, 4), scale, grid.zero_point, torch.int8, -7, 7)
    torch.testing.assert_close(grid.fake_quantize(x), expected, rtol=1e-6, atol=0)
    assert torch.equal(grid.nearest_code(x / grid.broadcast(grid.scale, x)), codes.float())


def test_only_two_axes_of_scales_are_blocks() -> None:
    assert not per_tensor(1.0, 0, -7, 7).blocked
    assert not QParams(torch.ones(4), torch.zeros(4, dtype=torch.int32), -7, 7, axis=0).blocked


def test_halves_go_to_the_even_code_and_values_outside_to_the_ends() -> None:
    grid = per_tensor(2.0, 3, 0, 15)
    x = torch.tensor([-100.0, -7.0, -5.0, -3.0, 1.0, 3.0, 5.0, 23.0, 24.1, 100.0])
    # x / 2 rounds to -50, -4 (from -3.5), -2, -2, 0, 2, 2, 12, 12, 50; codes 0..15 hold -3..12 steps.
    assert grid.fake_quantize(x).tolist() == [-6.0, -6.0, -4.0, -4.0, 0.0, 4.0, 4.0, 24.0, 24.0, 24.0]
    assert grid.nearest_code(x / 2, torch.tensor(3)).tolist() == [0.0, 0.0, 1.0, 1.0, 3.0, 5.0, 5.0, 15.0, 15.0, 15.0]
    assert grid.nearest_code(torch.tensor([-1.0, 0.4, 1.5, 99.0])).tolist() == [0.0, 0.0, 2.0, 15.0]


def test_the_values_given_are_left_as_they_are() -> None:
    x = random(9)
    before = x.clone()
    grid = per_tensor(0.5, 0, -1, 1)
    grid.fake_quantize(x)
    grid.nearest_code(x)
    assert torch.equal(x, before)


@given(
    levels=st.lists(st.integers(-127, 127), min_size=2, max_size=16).map(sorted),
    steps=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20),
)
@few
def test_a_palette_gives_the_level_nearest_to_each_value(levels: list[int], steps: list[float]) -> None:
    grid = replace(per_tensor(1.0, 0, -127, 127), levels=torch.tensor(levels, dtype=torch.float32))
    codes = grid.nearest_code(torch.tensor(steps, dtype=torch.float64)).tolist()
    for value, code in zip(steps, codes, strict=True):
        assert code in levels
        assert abs(value - code) == min(abs(value - level) for level in levels)


def test_the_middle_of_two_levels_goes_to_the_lower_one_and_a_scale_multiplies_back() -> None:
    grid = QParams(torch.tensor([0.5, 2.0]), torch.zeros(2, dtype=torch.int32), -127, 127, axis=0)
    grid = replace(grid, levels=torch.tensor([-4.0, -1.0, 0.0, 5.0]))
    x = torch.tensor([[-1.25, -1.2, 1.25, 1.3], [-6.0, -1.0, 5.0, 5.1]])
    # In steps: -2.5, -2.4, 2.5, 2.6 and -3.0, -0.5, 2.5, 2.55.
    assert grid.fake_quantize(x).tolist() == [[-2.0, -0.5, 0.0, 2.5], [-8.0, -2.0, 0.0, 10.0]]
    assert grid.nearest_code(torch.tensor([2.6], dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (per_tensor(0.5, 0, -127, 127), (-63.5, 63.5)),
        (per_tensor(0.5, 3, 0, 255), (-1.5, 126.0)),
        (per_tensor(0.25, -128, -128, 127), (0.0, 63.75)),
        (QParams(torch.tensor([0.5, 2.0]), torch.tensor([1, -1]), -7, 7, axis=0), (-12.0, 16.0)),
    ],
)
def test_the_range_of_a_grid_is_what_its_first_and_last_code_stand_for(
    grid: QParams, expected: tuple[float, float]
) -> None:
    """(quant_min - zero_point) * scale and (quant_max - zero_point) * scale; the widest of all channels."""
    assert grid.range() == expected


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [
        (-7, 7, 4), (-8, 7, 4), (0, 15, 4), (0, 16, 8), (-8, 8, 8), (-64, 64, 8), (-127, 127, 8), (-128, 127, 8),
        (0, 255, 8), (0, 256, 16), (-128, 128, 16), (-32768, 32767, 16), (0, 65535, 16),
    ],
)  # fmt: skip
def test_bits_are_those_of_the_smallest_type_that_holds_the_codes(low: int, high: int, bits: int) -> None:
    grid = per_tensor(1.0, 0, low, high)
    assert grid.bits == bits
    assert grid.has_eight_bit_form == (bits == 4)
    assert grid.signed == (low < 0)


def test_a_grid_from_minus_one_on_is_signed() -> None:
    assert per_tensor(1.0, 0, -1, 1).signed
    assert not per_tensor(1.0, 0, 0, 1).signed


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (4, 2), (16, 4), (17, 5), (64, 6)])
def test_bits_of_a_palette_are_those_of_its_index(levels: int, bits: int) -> None:
    grid = replace(per_tensor(1.0, 0, -127, 127), levels=torch.arange(levels, dtype=torch.float32))
    assert grid.bits == bits
    assert not grid.has_eight_bit_form


def test_scales_take_the_shape_that_multiplies_a_tensor() -> None:
    per_channel = QParams(torch.arange(1.0, 4.0), torch.zeros(3, dtype=torch.int32), -7, 7, axis=1)
    assert per_channel.broadcast(per_channel.scale, torch.empty(2, 3, 5, 5)).shape == (1, 3, 1, 1)
    blocked = QParams(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2, dtype=torch.int32), -7, 7, axis=0)
    assert blocked.broadcast(blocked.scale, torch.empty(1, 6)).tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]]
    assert per_tensor(3.0, 0, -7, 7).broadcast(torch.tensor(3.0), torch.empty(2, 2)).shape == ()


@pytest.mark.parametrize(
    ("signal", "mse", "sqnr_db"),
    [(100.0, 1.0, 20.0), (2.0, 4.0, -3.0102999566398119), (1.0, 0.0, 200.0), (0.0, 1.0, -200.0)],
)
def test_sqnr_is_ten_times_the_logarithm_of_signal_over_error(signal: float, mse: float, sqnr_db: float) -> None:
    plan = ActivationPlan("head:input", per_tensor(1.0, 0, -127, 127), "mse", mse, signal)
    assert plan.sqnr_db == pytest.approx(sqnr_db, rel=1e-15)


def test_a_palette_and_all_codes_agree_where_every_code_is_a_level() -> None:
    grid = per_tensor(0.1, 0, -7, 7)
    palette = replace(grid, levels=torch.arange(-7.0, 8.0))
    x = random(200, seed=2)
    assert torch.equal(grid.fake_quantize(x), palette.fake_quantize(x))
    closest = np.abs(x.numpy()[:, None] / np.float32(0.1) - np.arange(-7, 8)).argmin(axis=1) - 7
    assert palette.nearest_code(x / 0.1).tolist() == closest.tolist()


def test_a_refined_decision_names_the_further_method_and_its_sqnr_and_keeps_the_rest() -> None:
    decision = LayerDecision(ChannelScaling.identity(3), "gptq", 30.0, 25.0, {"none": 30.0})
    refined = decision.refined("adaround", 33.5)
    assert refined == LayerDecision(decision.scaling, "gptq, adaround", 33.5, 25.0, {"none": 30.0})
    assert decision.rounding == "gptq"


def test_what_is_not_given_is_empty() -> None:
    grid = per_tensor(1.0, 0, -7, 7)
    assert (grid.axis, grid.levels) == (None, None)
    assert ActivationPlan("a:input", grid, "mse", 0.0, 1.0).candidates == {}
    assert LayerDecision(ChannelScaling.identity(1), "nearest", 1.0, 1.0).candidates == {}
    assert QuantPlan({}, {}).decisions == {}
