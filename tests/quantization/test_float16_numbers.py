"""Float16 around int8 operators, against numpy's own float16: what is rounded, what stays float32, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.program_float16 import half_module, to_float16

_Q = torch.ops.quantized_decomposed
SMALLEST = 2.0**-24  # of the float16 numbers above zero


def program_of(module: nn.Module, *example: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), example, strict=False)


def half(values: np.ndarray | torch.Tensor) -> np.ndarray:
    return np.asarray(values).astype(np.float16).astype(np.float64)


class Norm(nn.Module):
    """Global Response Normalization with a square taken by `square`; sums of 300^2 are beyond float16's 65504."""

    def __init__(self, power: bool) -> None:
        super().__init__()
        self.power = power
        self.gamma = nn.Parameter(torch.tensor([0.1, 0.7, -1.3]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squares = x.pow(2) if self.power else x.square()
        norm = squares.sum(dim=1, keepdim=True).sqrt()
        return x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)) * self.gamma


@pytest.mark.parametrize("power", [True, False])
def test_sums_of_squares_are_float32_and_everything_else_float16(power: bool) -> None:
    x = 300 * torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    norm = Norm(power)
    y = to_float16(program_of(norm, x)).module()(x)
    image = half(x)
    sums = np.sqrt((image**2).sum(axis=1, keepdims=True))
    assert (sums**2 > 65504).any()
    share = half(sums / (sums.mean(axis=-1, keepdims=True) + 1e-6))
    expected = half(half(image * share) * half(norm.gamma.detach()))
    assert y.dtype == torch.float32
    # float32's error in the share can send a float16 to its neighbour, 2^-10 away, and the products after it likewise.
    np.testing.assert_allclose(y.double().numpy(), expected, rtol=3 * 2.0**-10, atol=0)
    assert np.mean(y.double().numpy() == expected) > 0.9


class Scaled(nn.Module):
    """A linear layer whose scales are given, per tensor for its input and per channel for its weight."""

    def __init__(self, scale: float, channel_scales: list[float]) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("codes", torch.eye(len(channel_scales), dtype=torch.int8))
        self.register_buffer("scales", torch.tensor(channel_scales))
        self.register_buffer("zeros", torch.zeros(len(channel_scales), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = (self.scale, 0, -127, 127, torch.int8)
        x = _Q.dequantize_per_tensor(_Q.quantize_per_tensor(x, *grid), *grid)
        return F.linear(x, _Q.dequantize_per_channel(self.codes, self.scales, self.zeros, 0, -127, 127, torch.int8))


@pytest.mark.parametrize("scale", [0.3, 1.0, 1e-5, 1e-9])
def test_a_grids_scale_is_the_nearest_float16_but_not_zero(scale: float) -> None:
    """1e-9 would be float16's zero, which runtimes refuse."""
    x = torch.tensor([[30 * scale]])
    module = half_module(program_of(Scaled(scale, [1.0]), x))
    expected = max(float(np.float16(scale)), SMALLEST)
    nodes = [node for node in module.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert [node.args[1] for node in nodes] == [expected, expected]
    dequantized = [node for node in module.graph.nodes if "dequantize" in str(node.target)]
    assert [node.kwargs["out_dtype"] for node in dequantized] == [torch.float16, torch.float16]
    assert [node.kwargs for node in nodes if node not in dequantized] == [{}]


def test_scales_of_channels_are_float32_tensors_of_float16_values_and_not_zero() -> None:
    scales = [0.3, 1.0, 1e-5, 1e-9, 0.0]
    module = half_module(program_of(Scaled(1.0, scales), torch.ones(1, 5)))
    stored = module.get_buffer("scales")
    assert stored.dtype == torch.float32
    assert stored.tolist() == [max(float(np.float16(scale)), SMALLEST) for scale in scales]
    assert module.get_buffer("codes").dtype == torch.int8


class Parameter(nn.Module):
    """A bias of zero and one of `value`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 2)
        self.inner.weight.data.fill_(1.0)
        self.inner.bias.data.copy_(torch.tensor([0.0, value]))
        self.register_buffer("nothing", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.nothing.sum()


@pytest.mark.parametrize("value", [65504.0, -65504.0, 0.1, 1e-9])
def test_parameters_become_the_nearest_float16_and_the_program_keeps_its_own(value: float) -> None:
    program = program_of(Parameter(value), torch.zeros(1, 1))
    module = half_module(program)
    bias = module.get_parameter("inner.bias")
    assert bias.dtype == torch.float16
    assert not bias.requires_grad
    assert bias.tolist() == [0.0, float(np.float16(value))]
    assert program.state_dict["inner.bias"].dtype == torch.float32
    assert program.state_dict["inner.bias"].tolist() == [0.0, float(np.float32(value))]


@pytest.mark.parametrize("value", [65505.0, -70000.0])
def test_a_parameter_beyond_float16_is_refused_by_name(value: float) -> None:
    with pytest.raises(QuantizationError, match=r"inner\.bias holds .*, and float16 ends at 65504"):
        half_module(program_of(Parameter(value), torch.zeros(1, 1)))


class TwoEnds(nn.Module):
    """The image is used twice, and there are two outputs."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + x * x, x - 1


def test_the_image_is_rounded_at_the_entrance_and_every_output_is_float32() -> None:
    x = torch.tensor([[0.1, 100.3, -3.14159]])
    outputs = half_module(program_of(TwoEnds(), x))(x)
    image = half(x)
    for output, expected in zip(outputs, (half(image + half(image**2)), half(image - 1)), strict=True):
        assert output.dtype == torch.float32
        assert np.array_equal(output.double().numpy(), expected)


def test_a_dynamic_batch_stays_one() -> None:
    module = TwoEnds()
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(module, (torch.ones(2, 3),), dynamic_shapes=({0: batch},), strict=False)
    assert to_float16(program).module()(torch.ones(5, 3))[0].shape == (5, 3)
