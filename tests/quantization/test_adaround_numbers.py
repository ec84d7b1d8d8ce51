"""AdaRound against its paper's formulas (arXiv 2004.10568) in float64, with Adam (arXiv 1412.6980) written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from edgeconvnext.model.network import Network
from edgeconvnext.model.units import Unit
from edgeconvnext.quantization import adaround
from edgeconvnext.quantization.adaround import refine
from edgeconvnext.quantization.plan import QParams
from edgeconvnext.rewrite.tensor_file import TensorFile

IMAGES, BEYOND = 40, 10
LAYERS = ("block.0", "block.1")
# Soft codes and biases after 30 steps of 0.03: float32 errs by about 1e-6 of a gradient, so by 30 * 0.03 * 1e-6 at least, and by
# some ten times as much where gradients nearly cancel. A hundredth more or less of any constant moves them by over 1e-3.
TOLERANCE = 1e-4


class TwoLinears(Network):
    """Two linear layers as a unit of their own; the second one is 2:4 sparse."""

    def __init__(self, weights: list[torch.Tensor], biases: list[torch.Tensor]) -> None:
        super().__init__()
        self.block = nn.Sequential(*(nn.Linear(weight.shape[1], weight.shape[0]) for weight in weights))
        for linear, weight, bias in zip(self.block, weights, biases, strict=True):
            linear.weight.data.copy_(weight)
            linear.bias.data.copy_(bias)


@dataclass
class Call:
    """One forward of the unit: which network's, what it got, and the parameters it had then, float64."""

    network: Network
    x: torch.Tensor
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class WatchedUnit(Unit):
    """A unit that notes each forward. Before a step both networks run; the working one's parameters are the step's."""

    calls: list[Call] = field(default_factory=list)

    def branch(self, module: Network, x: torch.Tensor) -> torch.Tensor:
        tensors = {name: value.detach().double() for name, value in module.named_parameters()}
        self.calls.append(Call(module, x, {name: value.clone() for name, value in tensors.items()}))
        return super().branch(module, x)


@dataclass
class Case:
    """A reference network, a rounded one and its grids, and inputs of both, of which the first `images` are to be fitted on."""

    reference: TwoLinears
    working: TwoLinears
    grids: dict[str, QParams]
    expected: torch.Tensor
    given: torch.Tensor
    images: int = IMAGES

    def run(self, folder: Path, *, seconds: float) -> WatchedUnit:
        unit = WatchedUnit("block", LAYERS, residual=False)
        with TensorFile(folder / "expected.bin") as expected, TensorFile(folder / "given.bin") as given:
            expected.append(self.expected)
            given.append(self.given)
            refine(unit, self.reference, self.working, self.grids, (expected, given, self.images), seconds=seconds)
        return unit


def codes_and_case() -> tuple[list[torch.Tensor], Case]:
    """4-bit weights whose codes reach both ends of the grid, and inputs of which the third is always zero."""
    generator = torch.Generator().manual_seed(4)
    codes = [
        torch.tensor([[7.0, -7.0, 3.0, 1.0], [2.0, -5.0, 7.0, -7.0], [-1.0, 4.0, -6.0, 3.0], [5.0, 1.0, 2.0, -3.0]]),
        torch.tensor([[0.0, 7.0, -4.0, 0.0], [-7.0, 0.0, 0.0, 6.0], [5.0, 0.0, 0.0, 0.0]]),
    ]
    # In float32, 7 * 0.118 / 0.118 is 6.9999995: codes are rounded, not cut off.
    scales = [torch.tensor([0.118, 0.2, 0.15, 0.12]), torch.tensor(0.25)]
    biases = [torch.randn(4, generator=generator), torch.randn(3, generator=generator)]
    exact = [code * scale.view(-1, 1) for code, scale in zip(codes, scales, strict=True)]
    moved = [0.9 * torch.rand(code.shape, generator=generator) - 0.45 for code in codes]
    moved[1] *= codes[1] != 0
    # A weight that may differ from zero although its code is zero.
    moved[1][2, 1] = -0.4
    drawn = [weight + scale.view(-1, 1) * shift for weight, scale, shift in zip(exact, scales, moved, strict=True)]
    expected = torch.randn(IMAGES + BEYOND, 4, generator=generator)
    expected[:, 2] = 0.0
    given = expected + 0.1 * torch.randn(IMAGES + BEYOND, 4, generator=generator)
    given[:, 2] = 0.0
    # What is beyond the images to fit on would turn every direction round.
    expected[IMAGES:] *= 1000.0
    grids = {
        "block.0": QParams(scales[0], torch.zeros(4, dtype=torch.int32), -7, 7, axis=0),
        "block.1": QParams(scales[1], torch.tensor(0, dtype=torch.int32), -7, 7),
    }
    case = Case(TwoLinears(drawn, biases), TwoLinears(exact, [0.8 * bias for bias in biases]), grids, expected, given)
    return codes, case


def clock_by_steps(monkeypatch: pytest.MonkeyPatch, now_s: Callable[[int], float]) -> None:
    """Replace the clock that `refine` reads by one that depends on the steps done only: `now_s` maps their number to seconds."""
    count = {"reads": 0}

    def perf_counter() -> float:
        # The clock is read at the beginning, after 20 steps, and after each further one.
        step = 0 if count["reads"] == 0 else 19 + count["reads"]
        count["reads"] += 1
        return 100.0 + now_s(step)

    monkeypatch.setattr(adaround, "time", SimpleNamespace(perf_counter=perf_counter))


def outputs(x: torch.Tensor, weights: list[torch.Tensor], biases: list[torch.Tensor]) -> torch.Tensor:
    for weight, bias in zip(weights, biases, strict=True):
        x = torch.einsum("ni,oi->no", x, weight) + bias
    return x


def numbers_of(case: Case, network: TwoLinears) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    linears = [network.get_submodule(layer) for layer in LAYERS]
    return [x.weight.detach().double() for x in linears], [x.bias.detach().double() for x in linears]


@dataclass
class Soft:
    """What the formulas give before each step, and after the last: soft codes less the lower one, weights and biases by layer."""

    weights: list[list[torch.Tensor]]
    biases: list[list[torch.Tensor]]
    hardened: list[torch.Tensor]


def adaround_in_float64(
    codes: list[torch.Tensor], case: Case, steps_known: Callable[[int], int], count: int, batch: int = 16
) -> Soft:
    """Run `count` steps of the paper's method. steps_known: how many steps the run is to have, as known at each step."""
    float_weights, float_biases = numbers_of(case, case.reference)
    weights, start_biases = numbers_of(case, case.working)
    rows = min(case.images, 320)
    target = outputs(case.expected[:rows].double(), float_weights, float_biases)
    leaves = [weight.clone().requires_grad_() for weight in weights]
    error = ((outputs(case.given[:rows].double(), leaves, start_biases) - target) ** 2).sum()
    # A gradient below zero: the error falls where the weight rises, so that the upper neighbour is offered; else the lower one.
    rises = [gradient < 0 for gradient in torch.autograd.grad(error, leaves)]
    lower = [torch.where(up, code, code - 1).double() for up, code in zip(rises, codes, strict=True)]
    scales = [grid.scale.double().view(-1, 1) * torch.ones(1, 4) for grid in case.grids.values()]
    scales[1] = scales[1] * (float_weights[1] != 0)
    # h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1) is 0.05 for V = ln(0.15 / 1.05), and 0.95 for the opposite number.
    start = torch.log(torch.tensor(0.15 / 1.05, dtype=torch.float64))
    v = [torch.where(up, start, -start).requires_grad_() for up in rises]
    biases = [bias.clone().requires_grad_() for bias in start_biases]
    parameters = [*v, *biases]
    rates = [0.03] * len(v) + [0.003] * len(biases)
    mean, square = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    shuffle, first, result = torch.Generator().manual_seed(0), 0.0, Soft([], [], [])
    total = sum(value.numel() for value in v)
    for step in range(count):
        h = [(1.2 / (1 + torch.exp(-value)) - 0.1).clamp(0, 1) for value in v]
        soft = [(a + b).clamp(-7, 7) * scale for a, b, scale in zip(lower, h, scales, strict=True)]
        result.weights.append([weight.detach() for weight in soft])
        result.biases.append([bias.detach().clone() for bias in biases])
        rows_of_step = torch.randperm(case.images, generator=shuffle)[:batch]
        target = outputs(case.expected[rows_of_step].double(), float_weights, float_biases)
        error = outputs(case.given[rows_of_step].double(), soft, biases) - target
        loss = (error**2).sum() / max(float((target**2).sum()), 1e-12 * target.numel())
        first = first or float(loss.detach())
        share = step / steps_known(step)
        if share > 0.2:
            # beta falls from 20 at a fifth of the steps to 2 at the end.
            beta = 2 + 18 * (1 - share) / 0.8
            loss = loss + 5 * first * sum((1 - (2 * x - 1).abs() ** beta).sum() for x in h) / total
        for number, (p, g) in enumerate(zip(parameters, torch.autograd.grad(loss, parameters), strict=True)):
            mean[number] = 0.9 * mean[number] + 0.1 * g
            square[number] = 0.999 * square[number] + 0.001 * g**2
            m, s = mean[number] / (1 - 0.9 ** (step + 1)), square[number] / (1 - 0.999 ** (step + 1))
            p.data -= rates[number] * m / (s.sqrt() + 1e-8)
    for value, a, scale in zip(v, lower, scales, strict=True):
        result.hardened.append((a + (value.detach() > 0)).clamp(-7, 7) * scale)
    result.biases.append([bias.detach() for bias in biases])
    return result


def steps_of(unit: WatchedUnit, case: Case, direction_batches: int) -> list[Call]:
    """Return the working network's forwards, one for each step, without those that found the directions."""
    assert all(call.network is case.reference for call in unit.calls[::2])
    return [call for call in unit.calls if call.network is case.working][direction_batches:]


def assert_close(actual: dict[str, torch.Tensor], weights: list[torch.Tensor], biases: list[torch.Tensor]) -> None:
    for layer, weight, bias in zip(LAYERS, weights, biases, strict=True):
        torch.testing.assert_close(actual[f"{layer}.weight"], weight, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(actual[f"{layer}.bias"], bias, rtol=0, atol=TOLERANCE)


def test_every_step_is_the_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 steps: half a second each, for 15.3 seconds. Until the first 20 are timed, 2000 steps are what is known of."""
    codes, case = codes_and_case()
    clock_by_steps(monkeypatch, lambda step: 0.5 * step)
    expected = adaround_in_float64(codes, case, lambda step: 2000 if step < 20 else 30, 30)
    steps = steps_of(case.run(tmp_path, seconds=15.3), case, direction_batches=3)
    assert len(steps) == 30
    for step, weights, biases in zip(steps, expected.weights, expected.biases, strict=False):
        assert_close(step.tensors, weights, biases)
    for layer, hard, bias in zip(LAYERS, expected.hardened, expected.biases[-1], strict=True):
        linear = case.working.get_submodule(layer)
        torch.testing.assert_close(linear.weight.detach().double(), hard, rtol=1e-6, atol=0)
        torch.testing.assert_close(linear.bias.detach().double(), bias, rtol=0, atol=TOLERANCE)


def test_the_push_sets_in_after_a_fifth_of_the_steps_and_time_is_over_at_six_fifths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 steps are planned. Step 20, a fifth, is not pushed yet; the clock says 60 s of 50 after 24 steps, and more after 25."""
    codes, case = codes_and_case()
    clock_by_steps(monkeypatch, lambda step: 0.5 * step if step < 24 else 60.0 if step == 24 else 60.5)
    expected = adaround_in_float64(codes, case, lambda step: 2000 if step < 20 else 100, 25)
    steps = steps_of(case.run(tmp_path, seconds=50.0), case, direction_batches=3)
    assert len(steps) == 25
    for step, weights, biases in zip(steps, expected.weights, expected.biases, strict=False):
        assert_close(step.tensors, weights, biases)


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 21), (10.9, 21), (11.4, 22), (12.1, 24)])
def test_the_number_of_steps_is_what_the_time_allows_but_at_least_21(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, count: int
) -> None:
    """Half a second a step: 10.9 s are 21 steps, 11.4 s are 22."""
    _, case = codes_and_case()
    clock_by_steps(monkeypatch, lambda step: 0.5 * min(step, 20))
    assert len(steps_of(case.run(tmp_path, seconds=seconds), case, direction_batches=3)) == count


def one_layer(
    weight: list[float], codes: list[float], scale: float, inputs: torch.Tensor, images: int = IMAGES
) -> Case:
    """A unit of one linear layer with one output, without a bias to begin with. inputs: of both networks."""
    grid = QParams(torch.tensor(scale), torch.tensor(0, dtype=torch.int32), -7, 7)
    reference, working = (
        TwoLinears([row[None]], [torch.zeros(1)]) for row in (torch.tensor(weight), scale * torch.tensor(codes))
    )
    return Case(reference, working, {"block.0": grid}, inputs, inputs, images)


def soft_of(step: Call, scale: float) -> float:
    """Return the soft code of a layer of one weight."""
    return float(step.tensors["block.0.weight"]) / scale


def test_with_any_time_there_are_2000_steps_and_codes_move_by_one_towards_the_weight_on_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of 7.8, 3.8, -2.8, -7.8 and 1.2 steps have codes 7, 3, -2, -7 and 1: only 3 and -2 can move for the better."""
    inputs = torch.randn(IMAGES, 5, generator=torch.Generator().manual_seed(1))
    case = one_layer([0.78, 0.38, -0.28, -0.78, 0.12], [7.0, 3.0, -2.0, -7.0, 1.0], 0.1, inputs)
    clock_by_steps(monkeypatch, lambda step: 0.0 if step < 20 else 1.0)
    steps = steps_of(case.run(tmp_path, seconds=1e9), case, direction_batches=3)
    assert len(steps) == 2000
    codes = case.working.get_submodule("block.0").weight.detach()[0] / 0.1
    torch.testing.assert_close(codes, torch.tensor([7.0, 4.0, -3.0, -7.0, 1.0]), rtol=1e-6, atol=0)
    # At the end nothing is between two codes: the stretched sigmoid reaches 0 and 1.
    torch.testing.assert_close(steps[-1].tensors["block.0.weight"][0] / 0.1, codes.double(), rtol=1e-6, atol=0)


def test_steps_fit_on_16_rows_drawn_from_the_images_given_and_the_same_ones_of_both_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, case = codes_and_case()
    clock_by_steps(monkeypatch, lambda step: 0.5 * step)
    calls = case.run(tmp_path, seconds=0.0).calls
    assert [len(call.x) for call in calls] == [16, 16, 16, 16, 8, 8] + [16] * 42
    shuffle = torch.Generator().manual_seed(0)
    rows = [torch.arange(0, 16), torch.arange(16, 32), torch.arange(32, 40)]
    rows += [torch.randperm(40, generator=shuffle)[:16] for _ in range(21)]
    for number, (of_reference, of_working) in enumerate(zip(calls[::2], calls[1::2], strict=True)):
        assert of_reference.network is case.reference
        assert torch.equal(of_reference.x, case.expected[rows[number]])
        assert of_working.network is case.working
        assert torch.equal(of_working.x, case.given[rows[number]])


@pytest.mark.parametrize(("last", "first_code"), [(10.0, 2.05), (-10.0, 1.95)])
def test_directions_come_from_the_first_320_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: float, first_code: float
) -> None:
    """Of the first 319 images, 161 want 3 where the weight of 2 gives 2, and 158 want 1. The 320th decides: it wants 22 or -18.

    The gradient is the sum of twice these errors, so that one large error outweighs many small ones. What follows the 320th
    image is turned the other way and a hundred times as large.
    """
    wanted = torch.ones(330, 1)
    wanted[:161] += 0.5
    wanted[161:319] -= 0.5
    wanted[319] += last
    wanted[320:] -= 100 * last
    case = one_layer([2.0], [2.0], 1.0, wanted, images=330)
    case.given = torch.ones(330, 1)
    clock_by_steps(monkeypatch, lambda step: 0.5 * step)
    calls = case.run(tmp_path, seconds=0.0).calls
    assert len(calls) == 2 * (20 + 21)
    # The code at hand is 2; offered is 3 or 1, of which each weight begins with a twentieth.
    assert float(calls[41].tensors["block.0.weight"]) == pytest.approx(first_code, abs=1e-6)


def test_the_loss_is_the_mean_square_error_relative_to_the_mean_square_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's first step is 0.03 g / (|g| + 1e-8), which tells how large the gradient g is where it is about 1e-8.

    The reference's output is 1, of its bias; the working network's soft code of 0.95 in steps of 1e-4 makes it too large.
    """
    case = one_layer([0.0], [1.0], 1e-4, torch.ones(IMAGES, 1))
    for network in (case.reference, case.working):
        network.get_submodule("block.0").bias.data.fill_(1.0)
    clock_by_steps(monkeypatch, lambda step: 0.5 * step)
    before, after = (soft_of(step, 1e-4) for step in steps_of(case.run(tmp_path, seconds=0.0), case, 3)[:2])
    start = torch.logit(torch.tensor(1.05 / 1.2, dtype=torch.float64))
    slope = 1.2 * start.sigmoid() * (1 - start.sigmoid())
    gradient = 2 * (0.95e-4) * 1e-4 * slope
    expected = 1.2 * (start - 0.03 * gradient / (gradient + 1e-8)).sigmoid() - 0.1
    # The output is 1 + 0.95e-4 in float32, 6e-8 apart: the error and with it the step are right to 1e-3.
    assert before - after == pytest.approx(0.95 - float(expected), rel=1e-2)


def test_an_output_of_nothing_is_no_division_by_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference computes 0, the working network 1e-6 * x; the error counts against a power of 1e-12.

    That makes the loss's gradient far larger than Adam's 1e-8, so that the logit's first step is the whole 0.03; against a
    power of 1 it would be 1e-12 of that, and the soft code would stay.
    """
    case = one_layer([0.0], [1.0], 1e-6, torch.ones(IMAGES, 1))
    clock_by_steps(monkeypatch, lambda step: 0.5 * step)
    soft = [soft_of(step, 1e-6) for step in steps_of(case.run(tmp_path, seconds=0.0), case, 3)[:2]]
    logit = torch.logit(torch.tensor(1.05 / 1.2, dtype=torch.float64)) - 0.03
    assert soft[0] == pytest.approx(0.95, abs=1e-6)
    assert soft[1] == pytest.approx(1.2 * float(logit.sigmoid()) - 0.1, abs=1e-6)
