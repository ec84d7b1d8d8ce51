"""Activations rounded by hooks: the grid of each name at its side of its layer, against the formula in numpy's float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeconvnext.model.network import Network
from edgeconvnext.quantization.fake import (
    fake_quantized,
    quantize_activations,
    quantize_input,
    quantize_output,
    round_activation,
)
from edgeconvnext.quantization.plan import ActivationPlan, QParams, QuantPlan
from edgeconvnext.rewrite.channel_scaling import ChannelScaling, ScaledLinear

INPUT, HIDDEN, OUTPUT = (
    QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), low, high)
    for scale, zero_point, low, high in ((0.25, 0, -7, 7), (0.125, 5, 0, 40), (0.5, -3, -128, 127))
)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class TwoLinears(Network):
    """Two linear layers, the second one behind a multiply-add where `scaling` says so."""

    def __init__(self, scaling: ChannelScaling | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)
        if scaling is not None:
            self.second = ScaledLinear(self.second, scaling)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def rounded(x: np.ndarray, grid: QParams) -> np.ndarray:
    """The definition: the nearest code, halves to the even one, back to a value."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    codes = np.minimum(np.maximum(np.rint(x / scale) + zero_point, grid.quant_min), grid.quant_max)
    return (codes - zero_point) * scale


def linear(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def plan_of(**grids: QParams) -> QuantPlan:
    names = {name.replace("_", ":"): grid for name, grid in grids.items()}
    return QuantPlan({name: ActivationPlan(name, grid, "mse", 0.0, 1.0) for name, grid in names.items()}, {})


def assert_equal(actual: torch.Tensor, expected: np.ndarray) -> None:
    # float32 sums of four products: a few of their last bits.
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("grid", [INPUT, HIDDEN, OUTPUT])
def test_an_activation_is_rounded_as_the_definition_says(grid: QParams) -> None:
    # Steps of an eighth of each grid's, beyond both of its ends: all halves are met, and powers of two divide exactly.
    x = torch.arange(-1200, 1200) * float(grid.scale) / 8
    assert np.array_equal(round_activation(x, grid).double().numpy(), rounded(x.double().numpy(), grid))


def test_gradients_pass_straight_through_inside_the_grid_and_not_outside() -> None:
    x = torch.tensor([-100.0, -1.7, 0.3, 1.7, 100.0], requires_grad=True)
    round_activation(x, INPUT).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("sides", [("first_input",), ("first_output",), ("second_input", "second_output"), ()])
def test_each_side_of_a_layer_that_a_plan_names_is_rounded_to_its_own_grid(sides: tuple[str, ...]) -> None:
    module, grids = TwoLinears(), dict(zip(sides, (HIDDEN, OUTPUT), strict=False))
    unchanged = lambda values, _grid: values  # noqa: E731
    expected = X.double().numpy()
    for name, layer in (("first", module.first), ("second", module.second)):
        for side, step in (("input", lambda values: values), ("output", lambda values, of=layer: linear(values, of))):
            grid = grids.get(f"{name}_{side}")
            expected = (rounded if grid is not None else unchanged)(step(expected), grid)
    with fake_quantized(module, plan_of(**grids)):
        assert_equal(module(X), expected)


def test_an_input_behind_a_multiply_add_is_rounded_after_it() -> None:
    scaling = ChannelScaling(torch.tensor([2.0, 0.5, 4.0]), torch.tensor([0.3, -0.2, 0.1]), "scale")
    module = TwoLinears(scaling)
    hidden = linear(X.double().numpy(), module.first)
    moved = hidden * scaling.scale.double().numpy() + scaling.shift.double().numpy()
    handle = quantize_input(module, "second", INPUT)
    assert_equal(module(X), linear(rounded(moved, INPUT), module.second))
    handle.remove()
    assert_equal(module(X), linear(moved, module.second))


def test_a_handle_takes_the_rounding_back() -> None:
    module = TwoLinears()
    before = module(X)
    for attach, name in ((quantize_input, "first"), (quantize_output, "second")):
        handle = attach(module, name, HIDDEN)
        assert not torch.equal(module(X), before)
        handle.remove()
        assert torch.equal(module(X), before)


def test_there_is_a_handle_for_every_name_of_the_plan() -> None:
    module = TwoLinears()
    before = module(X)
    handles = quantize_activations(module, plan_of(first_input=INPUT, first_output=HIDDEN, second_output=OUTPUT))
    assert len(handles) == 3
    for handle in handles:
        handle.remove()
    assert torch.equal(module(X), before)


def test_rounding_ends_with_the_block_also_when_it_fails() -> None:
    module = TwoLinears()
    before = module(X)
    with pytest.raises(ZeroDivisionError), fake_quantized(module, plan_of(first_input=INPUT, second_output=OUTPUT)):
        assert not torch.equal(module(X), before)
        raise ZeroDivisionError
    assert torch.equal(module(X), before)


def test_weights_stay_as_they_are() -> None:
    module = TwoLinears()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with fake_quantized(module, plan_of(first_input=INPUT, second_output=OUTPUT)):
        module(X)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
