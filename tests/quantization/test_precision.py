"""Bits by layer: plan files, the command line over them, and what runtimes do not take."""

from pathlib import Path

import pytest
from networks import small_network
from reconstructions import target_with

from edgeconvnext.backends import check_bits, load_target
from edgeconvnext.errors import ConfigFileError, EdgeConvNextError, QuantizationError
from edgeconvnext.quantization.precision import BitPlan, LayerEntry, Precision, asked_bits, read_plan, resolve_precision


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = BitPlan(
        weights=8, layers={"head": LayerEntry(float=True), "stages.0.0.pwconv1": LayerEntry(weights=4, activations=16)}
    )
    path = tmp_path / "plan.toml"
    path.write_text(plan.toml())
    assert read_plan(path) == plan


def test_the_bits_of_every_layer_are_comments_of_the_same_plan(tmp_path: Path) -> None:
    plan = BitPlan(weights=4, layers={"head": LayerEntry(float=True)})
    text = plan.toml_with(
        resolve_precision(small_network(), load_target("coreml-p6"), plan.over(BitPlan(activations=16)))
    )
    path = tmp_path / "plan.toml"
    path.write_text(text)
    assert read_plan(path) == plan
    assert "# stages.0.0.pwconv1: 4-bit weights, float activations\n" in text
    assert "# head" not in text


def test_layers_go_before_the_plan_and_the_plan_before_the_target() -> None:
    network = small_network()
    plan = BitPlan(
        weights=4, layers={"head": LayerEntry(float=True), "stages.0.0.pwconv1": LayerEntry(weights=8, activations=16)}
    )
    found = resolve_precision(network, load_target("onnx"), plan)
    assert found["stages.0.0.pwconv1"] == Precision(8, 16)
    assert found["stages.0.0.pwconv2"] == Precision(4, 8)
    assert "head" not in found
    assert "stages.0.0.dwconv" not in found, "the target leaves depthwise convs float"


def test_what_is_asked_goes_over_what_a_run_was_made_with() -> None:
    stored = BitPlan(weights=8, activations=16, layers={"head": LayerEntry(float=True)})
    assert BitPlan(weights=4).over(stored) == BitPlan(
        weights=4, activations=16, layers={"head": LayerEntry(float=True)}
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weights = 5", "weights"),
        ("weight = 4", "Did you mean weights?"),
        ('[layers.head]\nfloat = true\nweights = 4', "float = true leaves the layer unquantised"),
        ("weights =", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_plan_file_that_does_not_hold_names_its_key(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(ConfigFileError) as refused:
        read_plan(path)
    assert expected in str(refused.value)


def test_a_plan_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match=r"There is no plan file .*plan\.toml"):
        read_plan(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("target", "plan", "expected"),
    [
        ("jetson", BitPlan(activations=16), "TensorRT has 8-bit ones only"),
        ("jetson", BitPlan(weights=4), "TensorRT"),
        ("coreml", BitPlan(weights=4), "iOS18"),
        ("onnx", BitPlan(layers={"stages.0.0.pwconv3": LayerEntry(weights=4)}), "Did you mean stages.0.0.pwconv"),
    ],
)
def test_bits_that_a_runtime_does_not_take_are_refused_by_name(target: str, plan: BitPlan, expected: str) -> None:
    with pytest.raises(QuantizationError) as refused:
        check_bits(load_target(target), asked_bits(small_network(), load_target(target), plan))
    assert expected in str(refused.value)


def test_old_opsets_have_no_four_bit_weights() -> None:
    target = target_with("onnx").model_copy(update={"opset": 20})
    with pytest.raises(QuantizationError, match="from opset 21 on"):
        check_bits(target, asked_bits(small_network(), target, BitPlan(weights=4)))


def test_blocks_are_for_four_bit_weights_in_onnx() -> None:
    with pytest.raises((ValueError, EdgeConvNextError), match="block_size divides 4-bit weights"):
        target_with("onnx", weights={"block_size": 32})
    with pytest.raises((ValueError, EdgeConvNextError), match="block_size"):
        target_with("jetson", weights={"bits": 4, "block_size": 32})
