"""Moves from one placement to another, and which of them a search takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgeconvnext.backends import backend_for, load_target
from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.quantization.precision import BitPlan, resolve_precision
from edgeconvnext.schema.placement import Measured, Placement
from edgeconvnext.schema.report import Interval
from edgeconvnext.targets import LayoutSection
from edgeconvnext.tuning.placement import Region, moves
from edgeconvnext.tuning.placement_search import climb, pays, why_float

NETWORK = ConvNeXt(ConvNeXtConfig(depths=(1, 2), dims=(8, 16), num_classes=3))
LAYERS = weighted_layers(NETWORK)
TARGET = load_target("onnx")
OUTPUTS_TOO = backend_for(TARGET).limits.outputs_too
START = Placement.of(TARGET, LAYERS)
LIMIT = 1.0


def moved(region: Region, key: str, placement: Placement = START) -> Placement | None:
    (move,) = [move for move in moves(region, LAYERS, OUTPUTS_TOO) if move.key == key]
    return move.apply(placement)


def quantised(placement: Placement) -> set[str]:
    """The layers that the target of a placement quantises, as the quantizer reads it."""
    return set(resolve_precision(NETWORK, placement.on(TARGET), BitPlan()))


def measured(speed: float, kl: float = 0.01) -> Measured:
    return Measured(
        speedup=Interval(value=speed, low=speed, high=speed),
        ms=1 / speed,
        fp32_ms=1.0,
        sqnr_db=30.0,
        kl=kl,
        agreement=100.0,
        size_bytes=1,
    )


class Fake:
    """Measures by a formula, and counts."""

    def __init__(self, formula: Callable[[Placement], Measured]) -> None:
        self.formula = formula
        self.asked: list[Placement] = []
        self.taken_over = 0

    def measure(self, placement: Placement) -> Measured:
        self.asked.append(placement)
        return self.formula(placement)


def test_the_start_is_the_targets_own_placement_for_the_layers_there_are() -> None:
    assert START.operators == ("pointwise1", "pointwise2", "downsample", "head")
    assert START.outputs == ()
    assert START.on(TARGET).quantize.weights == TARGET.quantize.weights
    assert quantised(START) == {layer for layer, kind in LAYERS.items() if kind in START.operators}


def test_a_class_goes_to_float_and_comes_back() -> None:
    without = moved("class", "downsample")
    assert without is not None
    assert quantised(without) == quantised(START) - {"downsample_layers.1.1"}
    again = moved("class", "downsample", without)
    assert again is not None and quantised(again) == quantised(START)


def test_int8_depthwise_convs_get_quantised_outputs() -> None:
    """Without them onnxruntime would run these convs in float."""
    placement = moved("class", "depthwise")
    assert placement is not None
    assert quantised(placement) - quantised(START) == {f"stages.{block}.dwconv" for block in ("0.0", "1.0", "1.1")}
    assert placement.outputs == ("depthwise",)
    back = moved("class", "depthwise", placement)
    assert back is not None and back.outputs == () and quantised(back) == quantised(START)


@pytest.mark.parametrize(
    ("region", "key", "layers"),
    [
        ("stage", "pointwise1 in stages.1", {"stages.1.0.pwconv1", "stages.1.1.pwconv1"}),
        ("block", "pointwise2 in stages.1.1", {"stages.1.1.pwconv2"}),
    ],
)
def test_a_region_of_a_class_goes_to_float_alone(region: Region, key: str, layers: set[str]) -> None:
    placement = moved(region, key)
    assert placement is not None and quantised(START) - quantised(placement) == layers
    assert placement.float_layers == layers


def test_a_region_of_a_float_class_goes_to_int8_alone() -> None:
    placement = moved("block", "depthwise in stages.0.0")
    assert placement is not None
    assert quantised(placement) - quantised(START) == {"stages.0.0.dwconv"}
    quantize = placement.on(TARGET).quantize
    assert quantize.takes_output("stages.0.0.dwconv", "depthwise")
    assert not quantize.takes_output("stages.1.0.dwconv", "depthwise")


def test_the_last_quantised_class_stays() -> None:
    only = Placement(("head",), (), frozenset(), LayoutSection())
    assert moved("class", "head", only) is None


def test_forms_change_the_file_and_no_layer() -> None:
    placement = moved("file", "linears = matmul")
    assert placement is not None and placement.layout.linears == "matmul"
    assert quantised(placement) == quantised(START)
    assert moved("file", "linears = gemm") is None


def test_float_layers_of_another_network_are_refused() -> None:
    other = Placement(START.operators, (), frozenset({"stages.3.8.pwconv1"}), LayoutSection())
    with pytest.raises(QuantizationError, match=r"stages\.3\.8\.pwconv1"):
        resolve_precision(NETWORK, other.on(TARGET), BitPlan())


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        (measured(1.52), True),  # faster, as accurate
        (measured(1.52, kl=0.9), True),  # less accurate, within the limit
        (measured(1.52, kl=1.1), False),
        (measured(1.505), False),  # within the noise
        (measured(1.5, kl=0.007), True),  # as fast, more accurate
        (measured(1.5, kl=0.009), False),  # not clearly
        (measured(1.45, kl=0.001), False),
    ],
)
def test_what_pays(found: Measured, taken: bool) -> None:
    assert pays(found, measured(1.5), LIMIT) is taken


def test_identical_answers_are_not_compared_by_their_noise() -> None:
    assert not pays(measured(1.5, kl=1e-9), measured(1.5, kl=1e-7), LIMIT)


def test_a_climb_takes_what_pays_and_says_why_the_rest_is_float() -> None:
    def formula(placement: Placement) -> Measured:
        speed = 1.5 + 0.1 * (placement.layout.linears == "matmul")
        speed += 0.05 * ("stages.0.0.pwconv1" in placement.float_layers)  # int8 is slower in this layer alone
        speed -= 0.2 * ("depthwise" in placement.operators)
        return measured(speed, kl=0.5 if "stem" in placement.operators else 0.01)

    fake = Fake(formula)
    best, done, untried = climb(fake, START, LAYERS, OUTPUTS_TOO, seconds=1e9)
    assert best.layout == LayoutSection(linears="matmul")
    assert best.float_layers == {"stages.0.0.pwconv1"}
    assert untried == 0
    assert [trial.move for trial in done if trial.taken] == ['linears = "matmul"', "pointwise1 in stages.0 in float"]
    reasons = why_float(best, LAYERS, done)
    assert set(reasons) == set(LAYERS) - quantised(best)
    assert reasons["stages.1.0.dwconv"] == (
        "depthwise in int8: 1.40x over FP32, 30.0 dB instead of 1.60x over FP32, 30.0 dB"
    )
    assert reasons["stages.0.0.pwconv1"].startswith("pointwise1 in stages.0 in float: 1.65x over FP32")


def test_without_time_nothing_but_the_start_is_measured() -> None:
    fake = Fake(lambda placement: measured(1.5))
    best, done, untried = climb(fake, START, LAYERS, OUTPUTS_TOO, seconds=-1)
    assert (best, done) == (START, []) and untried > 10
    assert set(fake.asked) == {START}
    assert "not tried" in why_float(best, LAYERS, done)["stages.0.0.dwconv"]
