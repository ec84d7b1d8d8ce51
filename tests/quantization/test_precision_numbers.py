"""Whose word counts on a layer's bits: its own entry's, the plan's, the target's; and plan files say what plans hold."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import small_network
from reconstructions import target_with

from edgeconvnext.backends import check_bits, load_target
from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.quantization.precision import BitPlan, LayerEntry, Precision, asked_bits, read_plan, resolve_precision
from edgeconvnext.targets import Target

few = settings(max_examples=60, derandomize=True, deadline=None, database=None)
NETWORK = small_network()
LAYERS = list(weighted_layers(NETWORK))

weight_bits, activation_bits = st.sampled_from([None, 4, 8]), st.sampled_from([None, 8, 16])
entries = st.one_of(
    st.just(LayerEntry(float=True)), st.builds(LayerEntry, weights=weight_bits, activations=activation_bits)
)


def plans(names: st.SearchStrategy[str]) -> st.SearchStrategy[BitPlan]:
    return st.builds(
        BitPlan, weights=weight_bits, activations=activation_bits, layers=st.dictionaries(names, entries, max_size=5)
    )


# What modules can be called: anything printable without a quote or a backslash.
any_name = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters='"\\'), min_size=1, max_size=12)
any_plan, plan_of_network = plans(st.one_of(st.sampled_from(LAYERS), any_name)), plans(st.sampled_from(LAYERS))


@dataclass(frozen=True)
class Wish:
    """Bits of one layer by the rule: None leaves it float."""

    weights: int
    activations: int


def wished(layer: str, plan: BitPlan, target: Target) -> Wish | None:
    """The first that says anything: the layer's entry, the plan, the target."""
    entry = plan.layers.get(layer)
    kind = weighted_layers(NETWORK)[layer]
    if (entry is not None and entry.float) or kind not in target.quantize.operators:
        return None
    said = [(entry.weights, entry.activations)] if entry is not None else []
    said += [(plan.weights, plan.activations), (target.quantize.weights.bits, target.quantize.activations.bits)]
    weights, activations = (next(bits for bits in column if bits is not None) for column in zip(*said, strict=True))
    return Wish(weights, activations)


@given(plan=any_plan)
@few
def test_a_plan_file_says_what_the_plan_holds(plan: BitPlan) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plan.toml"
        path.write_text(plan.toml(), encoding="utf-8")
        assert read_plan(path) == plan
    values = tomllib.loads(plan.toml())
    assert (values.get("weights"), values.get("activations")) == (plan.weights, plan.activations)
    for layer, entry in plan.layers.items():
        written = values["layers"][layer]
        assert (written.get("weights"), written.get("activations")) == (entry.weights, entry.activations)
        assert written.get("float", False) == entry.float


@given(plan=any_plan)
@few
def test_comments_change_nothing(plan: BitPlan) -> None:
    bits = {"head": Precision(4, None), "stages.0.0.pwconv1": Precision(8, 16)}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plan.toml"
        path.write_text(plan.toml_with(bits), encoding="utf-8")
        assert read_plan(path) == plan
    assert plan.toml_with(bits).startswith(plan.toml())
    assert "\n# head: 4-bit weights, float activations\n" in plan.toml_with(bits)
    assert "\n# stages.0.0.pwconv1: 8-bit weights, 16-bit activations\n" in plan.toml_with(bits)


def test_the_example_of_the_module_is_read_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        'weights = 8\nactivations = 8\n[layers."stages.3.1.pwconv2"]\nweights = 4\n[layers.head]\nfloat = true\n'
    )
    assert read_plan(path) == BitPlan(
        weights=8,
        activations=8,
        layers={"stages.3.1.pwconv2": LayerEntry(weights=4), "head": LayerEntry(float=True)},
    )


@given(upper=any_plan, lower=any_plan)
@few
def test_what_is_put_over_a_plan_counts_where_it_says_anything(upper: BitPlan, lower: BitPlan) -> None:
    over = upper.over(lower)
    for key in ("weights", "activations"):
        first = getattr(upper, key)
        assert getattr(over, key) == (first if first is not None else getattr(lower, key))
    assert over.layers.keys() == upper.layers.keys() | lower.layers.keys()
    for layer, entry in over.layers.items():
        assert entry == (upper.layers[layer] if layer in upper.layers else lower.layers[layer])


@given(plan=any_plan)
@few
def test_a_plan_over_an_empty_one_and_an_empty_one_over_it_are_the_plan(plan: BitPlan) -> None:
    assert plan.over(BitPlan()) == plan == BitPlan().over(plan)


@given(plan=any_plan, added=st.dictionaries(st.sampled_from(LAYERS), entries, max_size=3))
@few
def test_added_entries_replace_those_of_their_layers_only(plan: BitPlan, added: dict[str, LayerEntry]) -> None:
    both = plan.with_layers(added)
    assert (both.weights, both.activations) == (plan.weights, plan.activations)
    assert both.layers == plan.layers | added
    assert {layer: both.layers[layer] for layer in added} == added


@given(plan=plan_of_network, bits=st.sampled_from([4, 8]), activations=st.sampled_from([8, 16]))
@few
def test_the_layers_entry_goes_before_the_plan_and_the_plan_before_the_target(
    plan: BitPlan, bits: int, activations: int
) -> None:
    target = target_with("onnx", weights={"bits": bits, "range_bits": 8}, activations={"bits": activations})
    expected = {layer: wish for layer in LAYERS if (wish := wished(layer, plan, target)) is not None}
    actual = resolve_precision(NETWORK, target, plan)
    assert {layer: Wish(bits.weights, bits.activations) for layer, bits in actual.items()} == expected
    assert list(actual) == list(expected), "in forward order"


def test_without_a_plan_the_targets_operators_have_the_targets_bits() -> None:
    target = load_target("onnx")
    kinds = weighted_layers(NETWORK)
    assert resolve_precision(NETWORK, target, BitPlan()) == {
        layer: Precision(8, 8) for layer in LAYERS if kinds[layer] in target.quantize.operators
    }


def test_layers_that_a_target_or_a_plan_keeps_float_are_left_out() -> None:
    target = target_with("onnx", float_layers=["stages.0.0.pwconv1"])
    plan = BitPlan(layers={"head": LayerEntry(float=True), "stages.0.0.pwconv1": LayerEntry(weights=8)})
    layers = resolve_precision(NETWORK, target, plan)
    assert "stages.0.0.pwconv1" not in layers
    assert "head" not in layers
    assert "stages.0.0.pwconv2" in layers


def test_sixteen_bits_are_float_in_core_ml_and_integers_elsewhere() -> None:
    plan = BitPlan(activations=16, layers={"head": LayerEntry(activations=8)})
    core_ml = resolve_precision(NETWORK, load_target("coreml"), plan)
    assert core_ml["stages.0.0.pwconv1"] == Precision(8, None)
    assert core_ml["head"] == Precision(8, 8)
    assert resolve_precision(NETWORK, load_target("onnx"), plan)["stages.0.0.pwconv1"] == Precision(8, 16)


@pytest.mark.parametrize(
    ("target", "changed", "weights", "activations", "refused"),
    [
        ("jetson", {}, 8, 8, False), ("jetson", {}, 4, 8, True), ("jetson", {}, 8, 16, True),
        ("onnx", {"opset": 21}, 4, 16, False), ("onnx", {"opset": 20}, 8, 8, False),
        ("onnx", {"opset": 20}, 4, 8, True), ("onnx", {"opset": 20}, 8, 16, True), ("onnx", {"opset": 22}, 4, 8, False),
        ("coreml", {"minimum_os": "iOS17"}, 8, 16, False), ("coreml", {"minimum_os": "iOS17"}, 4, 8, True),
        ("coreml", {"minimum_os": "macOS14"}, 4, 8, True), ("coreml", {"minimum_os": "iOS18"}, 4, 8, False),
        ("coreml", {"minimum_os": "macOS15"}, 4, 16, False),
    ],
)  # fmt: skip
def test_runtimes_refuse_bits_that_they_have_no_operators_for(
    target: str, changed: dict[str, object], weights: int, activations: int, refused: bool
) -> None:
    asked = BitPlan(layers={"stages.0.0.pwconv2": LayerEntry(weights=weights, activations=activations)})
    asking = load_target(target).model_copy(update=changed)
    bits = asked_bits(NETWORK, asking, asked)
    assert bits["stages.0.0.pwconv2"] == (weights, activations)
    if refused:
        with pytest.raises(QuantizationError, match=r"stages\.0\.0\.pwconv2 asks for"):
            check_bits(asking, bits)
    else:
        check_bits(asking, bits)
        assert resolve_precision(NETWORK, asking, asked)["stages.0.0.pwconv2"].weights == weights


@pytest.mark.parametrize("entry", [{"weights": 4}, {"activations": 8}, {"weights": 8, "activations": 16}])
def test_a_float_layer_takes_no_bits(entry: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="float = true leaves the layer unquantised"):
        LayerEntry(float=True, **entry)


def test_layers_that_the_network_does_not_have_are_refused() -> None:
    with pytest.raises(QuantizationError, match=r"The plan names stages\.9\.0\.pwconv1"):
        resolve_precision(NETWORK, load_target("onnx"), BitPlan(layers={"stages.9.0.pwconv1": LayerEntry(weights=8)}))
    with pytest.raises(QuantizationError, match=r"keeps stages\.9\.0\.pwconv1 float"):
        resolve_precision(NETWORK, target_with("onnx", float_layers=["stages.9.0.pwconv1"]), BitPlan())
