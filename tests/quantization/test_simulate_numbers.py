"""The fast simulation against the arithmetic it stands for, in numpy: float64 where sums are exact, rounded where hardware rounds.

The program holds Q/DQ nodes of every form that is met, and numbers for which float32 sums are exact in any order.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import ExportedProgram

from edgeconvnext.quantization.simulate import simulator

_Q = torch.ops.quantized_decomposed
IMAGES = torch.randint(-80, 80, (5, 2, 3, 3), generator=torch.Generator().manual_seed(0)) / 16
CONV = torch.tensor([[[[2.0]], [[-3.0]]], [[[7.0]], [[1.0]]], [[[-7.0]], [[4.0]]]]).to(torch.int8)
CONV_SCALE = torch.tensor([0.5, 0.25, 1.0])
CONV_BIAS = torch.tensor([0.25, -1.5, 2.0])
LINEAR = torch.randint(-127, 128, (4, 27), generator=torch.Generator().manual_seed(1)).to(torch.int8)
HEAD = torch.randint(-8, 9, (2, 4), generator=torch.Generator().manual_seed(2)) / 4
# 0.3 is no float16: the float16 program has the nearest one, 0.300048828125.
INPUT, HIDDEN, FEATURE = (0.5, 3, 0, 15, torch.uint8), (0.3, 0, -127, 127, torch.int8), (4.0, -1, -128, 127, torch.int8)


class Quantized(nn.Module):
    """A conv and two linears with weights in codes per channel, per tensor and none; an add that goes past the second grid."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("conv", CONV)
        self.register_buffer("conv_scale", CONV_SCALE)
        self.register_buffer("conv_zero_point", torch.zeros(3, dtype=torch.int64))
        self.conv_bias = nn.Parameter(CONV_BIAS)
        self.register_buffer("linear", LINEAR)
        self.head = nn.Linear(4, 2, bias=False)
        self.head.weight.data.copy_(HEAD)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = _rounded(x, *INPUT)
        weight = _Q.dequantize_per_channel(self.conv, self.conv_scale, self.conv_zero_point, 0, -7, 7, torch.int8)
        x = F.conv2d(x, weight, self.conv_bias)
        x = (x + _rounded(x, *HIDDEN)).flatten(1)
        x = F.linear(x, _Q.dequantize_per_tensor(self.linear, 0.125, 2, -127, 127, torch.int8))
        return self.head(_rounded(x, *FEATURE))


def _rounded(x: torch.Tensor, *grid: object) -> torch.Tensor:
    return _Q.dequantize_per_tensor(_Q.quantize_per_tensor(x, *grid), *grid)


def on_grid(x: np.ndarray, scale: float, zero_point: int, low: int, high: int, _type: torch.dtype) -> np.ndarray:
    return (np.clip(np.rint(x / scale) + zero_point, low, high) - zero_point) * scale


def in_numpy(images: np.ndarray, dtype: type) -> np.ndarray:
    """What the program computes when each of its tensors is stored as `dtype`."""

    def stored(values: np.ndarray | float) -> np.ndarray:
        return np.asarray(values).astype(dtype).astype(np.float64)

    def grid(x: np.ndarray, scale: float, *codes: object) -> np.ndarray:
        return stored(on_grid(x, float(stored(scale)), *codes))

    x = grid(stored(images), *INPUT)
    weight = CONV[:, :, 0, 0].double().numpy() * CONV_SCALE.double().numpy()[:, None]
    x = stored(np.einsum("nchw,oc->nohw", x, weight) + CONV_BIAS.double().numpy()[:, None, None])
    x = stored(x + grid(x, *HIDDEN)).reshape(len(x), -1)
    x = stored(x @ ((LINEAR.double().numpy() - 2) * 0.125).T)
    return stored(grid(x, *FEATURE) @ HEAD.double().numpy().T)


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return torch.export.export(Quantized(), (IMAGES,), strict=False)


def test_float32_is_the_definition_bit_for_bit(program: ExportedProgram) -> None:
    with torch.inference_mode():
        logits = simulator(program)(IMAGES)
    assert logits.dtype == torch.float32
    assert np.array_equal(logits.double().numpy(), in_numpy(IMAGES.double().numpy(), np.float32))


def test_float16_multiplies_in_float32_and_rounds_what_is_stored(program: ExportedProgram) -> None:
    with torch.inference_mode():
        logits = simulator(program, "float16")(IMAGES)
    assert logits.dtype == torch.float32
    expected = in_numpy(IMAGES.double().numpy(), np.float16)
    assert np.array_equal(logits.double().numpy(), expected)
    assert not np.array_equal(expected, in_numpy(IMAGES.double().numpy(), np.float32))


class PerChannel(nn.Module):
    """An activation with a scale for each channel: its scales are stored, its codes are not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([0.5, 2.0]))
        self.register_buffer("zero_point", torch.tensor([1, -2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = (self.scale, self.zero_point, 1, -7, 7, torch.int8)
        return _Q.dequantize_per_channel(_Q.quantize_per_channel(x, *grid), *grid)


def test_codes_that_are_computed_from_the_image_stay_computed_and_any_batch_runs() -> None:
    x = torch.tensor([[[[0.3, 100.0]], [[7.1, -100.0]]]])
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(PerChannel(), (x.expand(2, 2, 1, 2),), dynamic_shapes=({0: batch},), strict=False)
    module = simulator(program)
    # Codes 1 + 1 and 7 of -7..7 for the first channel; 4 - 2 and -7 for the second.
    assert module(x).tolist() == [[[[0.5, 3.0]], [[8.0, -10.0]]]]
    assert module(x.expand(5, 2, 1, 2)).shape == (5, 2, 1, 2)
    assert not [node for node in module.graph.nodes if node.op == "call_module"], "no checks of shapes are left in it"


@pytest.mark.parametrize("float_type", ["float32", "float16"])
def test_activations_need_one_operator_for_each_grid_and_the_program_stays_as_it_was(
    program: ExportedProgram, float_type: str
) -> None:
    before = {name: value.clone() for name, value in program.state_dict.items()}
    module = simulator(program, float_type)
    called = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.aten.fake_quantize_per_tensor_affine.default) == 3
    assert _Q.quantize_per_tensor.default not in called
    # The weight with one scale for all of its channels.
    assert called.count(_Q.dequantize_per_tensor.default) == 1
    assert _Q.dequantize_per_channel.default not in called
    assert program.state_dict.keys() == before.keys()
    assert all(value.dtype == before[name].dtype for name, value in program.state_dict.items())
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict.items())
