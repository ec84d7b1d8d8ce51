"""Biases as whole numbers of product steps, against closed forms."""

import pytest
import torch
from torch import nn

from edgeconvnext.quantization.biases import round_biases
from edgeconvnext.quantization.plan import ActivationPlan, QParams, QuantPlan


def activations(scale: float, quant_min: int = -128, quant_max: int = 127) -> ActivationPlan:
    qparams = QParams(torch.tensor(scale), torch.tensor(0, dtype=torch.int32), quant_min, quant_max)
    return ActivationPlan("layer:input", qparams, "mse", 0.0, 1.0)


def weights(*scales: float, limit: int = 127) -> QParams:
    scale = torch.tensor(scales)
    return QParams(scale, torch.zeros(scale.shape, dtype=torch.int32), -limit, limit, axis=0)


def rounded(bias: list[float], plan: QuantPlan) -> list[float]:
    module = nn.ModuleDict({"layer": nn.Linear(4, len(bias))})
    owner = module["layer"]
    owner.bias = nn.Parameter(torch.tensor(bias))
    round_biases(module, plan)
    assert isinstance(owner.bias, nn.Parameter) and owner.bias.dtype == torch.float32
    return owner.bias.tolist()


def test_biases_are_rounded_not_floored() -> None:
    # Steps of 0.5 * 0.25 = 1/8 and 0.5 * 1 = 1/2: 0.7 is 5.6 of the first, -0.2 is -1.6; 0.7 is 1.4 of the second.
    plan = QuantPlan({"layer:input": activations(0.5)}, {"layer": weights(0.25, 0.25, 1.0, 1.0)})
    assert rounded([0.7, -0.2, 0.7, -0.8], plan) == [0.75, -0.25, 0.5, -1.0]
    # Halves go to the even code: 0.0625 is half a step, 0.1875 one and a half.
    assert rounded([0.0625, 0.1875, 0.25, -0.75], plan) == [0.0, 0.25, 0.0, -1.0]


def test_the_code_is_that_of_exact_division_and_the_value_that_of_the_stored_step() -> None:
    """In float64, 16,777,217.4 steps are distinct from 16,777,216; float32 cannot separate them."""
    source, scale = 0.037, 0.0011
    step = float(torch.tensor(source, dtype=torch.float32).double() * torch.tensor(scale, dtype=torch.float32).double())
    step = float(torch.tensor(step, dtype=torch.float32))
    plan = QuantPlan({"layer:input": activations(source)}, {"layer": weights(scale, scale, scale)})
    biases = torch.tensor([3.14159, -271.828, 12345.678])
    expected = [round(bias / step) * step for bias in biases.tolist()]
    assert rounded(biases.tolist(), plan) == torch.tensor(expected, dtype=torch.float32).tolist()


def test_codes_beyond_int32_end_at_one_that_is_an_int32_again() -> None:
    steps = [0.125, 0.3, 0.7]
    plan = QuantPlan({"layer:input": activations(1.0)}, {"layer": weights(*steps * 2)})
    values = rounded([1e12] * 3 + [-1e12] * 3, plan)
    for value, step in zip(values, torch.tensor(steps * 2).tolist(), strict=True):
        code = value / step
        assert 2**31 - 512 <= abs(code) <= 2**31 - 1 and (code > 0) == (value > 0)
    assert values[:3] == [-value for value in values[3:]]
    assert values[0] == (2**31 - 256) * 0.125
    # The largest that is not limited.
    assert rounded([(2**31 - 256) * 0.125 - 16], QuantPlan(plan.activations, {"layer": weights(0.125)})) == [
        2.0**28 - 48
    ]


EIGHT, SIXTEEN = activations(0.5), activations(0.5, -32768, 32767)
BLOCKED = QParams(torch.full((1, 2), 0.25), torch.zeros((1, 2), dtype=torch.int32), -127, 127, axis=0)


@pytest.mark.parametrize(
    ("source", "grid"),
    [
        (EIGHT, weights(0.25, limit=7)),
        (SIXTEEN, weights(0.25)),
        (SIXTEEN, weights(0.25, limit=7)),
        (EIGHT, BLOCKED),
        (None, weights(0.25)),
    ],
    ids=["4-bit weights", "16-bit activations", "neither of 8 bits", "several scales a row", "float activations"],
)
def test_a_bias_without_two_8_bit_factors_stays(source: ActivationPlan | None, grid: QParams) -> None:
    plan = QuantPlan({} if source is None else {"layer:input": source}, {"layer": grid})
    bias = float(torch.tensor(0.7))
    assert rounded([bias], plan) == [bias]


def test_7_bit_codes_in_a_byte_count_as_8_bits_and_layers_without_bias_or_plan_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Sequential(nn.Conv2d(4, 1, 1)), nn.Linear(4, 1))
    conv, last = module.get_submodule("1.0"), module.get_submodule("2")
    conv.bias, last.bias = (nn.Parameter(torch.tensor([0.7])) for _ in range(2))
    sources = {f"{name}:input": activations(0.5) for name in ("0", "1.0", "2")}
    round_biases(module, QuantPlan(sources, {"0": weights(0.25), "1.0": weights(0.25, limit=64)}))
    assert module.get_submodule("0").bias is None
    assert conv.bias.tolist() == [0.75]
    assert last.bias.tolist() == [pytest.approx(0.7)]
