"""A quantised network's file: every number comes back as it was, and weights are codes times scales."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import small_network
from safetensors import safe_open

from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.layers import weight_of
from edgeconvnext.quantization.plan import ActivationPlan, LayerDecision, QParams, QuantPlan
from edgeconvnext.quantization.plan_storage import load_plan, save_plan
from edgeconvnext.rewrite.channel_scaling import ChannelScaling, ScaleShift

few = settings(max_examples=30, derandomize=True, deadline=None, database=None)
NETWORK = small_network()
DEPTHWISE, POINTWISE, HEAD = "stages.0.0.dwconv", "stages.0.0.pwconv2", "head"


def grid(scale: torch.Tensor, limit: int, *, axis: int | None = 0) -> QParams:
    return QParams(scale, torch.zeros(scale.shape, dtype=torch.int32), -limit, limit, axis=axis)


WEIGHTS = {
    DEPTHWISE: grid(torch.linspace(0.01, 0.03, 16), 127),
    POINTWISE: grid(torch.linspace(0.05, 0.15, 64).view(16, 4), 7),
    HEAD: replace(grid(torch.linspace(0.002, 0.009, 7), 127), levels=torch.tensor([-100.0, -31.0, 0.0, 17.0])),
}


def same_grid(a: QParams, b: QParams) -> bool:
    tensors = [(a.scale, b.scale), (a.zero_point, b.zero_point)]
    tensors += [] if a.levels is None or b.levels is None else [(a.levels, b.levels)]
    return (a.quant_min, a.quant_max, a.axis, a.levels is None) == (
        b.quant_min,
        b.quant_max,
        b.axis,
        b.levels is None,
    ) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in tensors)


def stored(plan: QuantPlan, module: ConvNeXt) -> tuple[QuantPlan, ConvNeXt]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plan.safetensors"
        save_plan(plan, module, path)
        return load_plan(path, NETWORK)


numbers = st.floats(1e-6, 1e6)
grids = st.builds(
    lambda scale, zero_point, bounds: QParams(
        torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32).clamp(*bounds), *bounds
    ),
    st.floats(2.0**-20, 1024.0, width=32), st.integers(-128, 65535), st.sampled_from([(-127, 127), (0, 255), (0, 65535)]),
)  # fmt: skip
activation_plans = st.dictionaries(
    st.sampled_from(["head:input", "stages.0.0.pwconv1:input", "stages.0.0.dwconv:output"]),
    st.tuples(grids, st.sampled_from(["mse", "minmax"]), numbers, numbers, st.dictionaries(st.text(), numbers)),
)


@given(values=activation_plans)
@few
def test_activations_come_back_as_they_were(
    values: dict[str, tuple[QParams, str, float, float, dict[str, float]]],
) -> None:
    plan = QuantPlan({name: ActivationPlan(name, *value) for name, value in values.items()}, {})
    loaded, _ = stored(plan, NETWORK)
    assert list(loaded.activations) == list(plan.activations)
    for name, expected in plan.activations.items():
        actual = loaded.activations[name]
        assert same_grid(actual.qparams, expected.qparams)
        assert replace(actual, qparams=expected.qparams) == expected
    assert (loaded.weights, loaded.decisions) == ({}, {})


def test_weights_come_back_as_their_nearest_codes_times_scales_and_the_rest_as_it_was() -> None:
    before = copy.deepcopy(NETWORK.state_dict())
    module = copy.deepcopy(NETWORK)
    module.get_submodule(HEAD).bias.data += 1.5
    loaded, network = stored(QuantPlan({}, WEIGHTS), module)
    assert all(same_grid(loaded.weights[layer], WEIGHTS[layer]) for layer in WEIGHTS)
    levels = WEIGHTS[HEAD].levels
    for layer, weight_grid in WEIGHTS.items():
        weight = weight_of(module, layer).double()
        scale = weight_grid.scale.double().view(len(weight), -1)
        # Blocks of 16 inputs for pwconv2, one scale for each row elsewhere.
        scale = scale.repeat_interleave(weight.flatten(1).shape[1] // scale.shape[1], dim=1).view_as(weight)
        codes = (weight / scale).round().clamp(weight_grid.quant_min, weight_grid.quant_max)
        if layer == HEAD:
            codes = levels[((weight / scale)[..., None] - levels).abs().argmin(dim=-1)].double()
        torch.testing.assert_close(weight_of(network, layer).double(), codes * scale, rtol=1e-6, atol=0)
        assert torch.equal(network.get_submodule(layer).bias, module.get_submodule(layer).bias)
    quantised = {f"{layer}.{part}" for layer in WEIGHTS for part in ("weight", "bias")}
    for name, value in network.state_dict().items():
        assert name in quantised or torch.equal(value, before[name])
    assert all(torch.equal(value, before[name]) for name, value in NETWORK.state_dict().items())
    assert not network.training


def test_codes_are_stored_in_a_byte_each(tmp_path: Path) -> None:
    save_plan(QuantPlan({}, WEIGHTS), NETWORK, tmp_path / "plan.safetensors")
    with safe_open(str(tmp_path / "plan.safetensors"), framework="pt") as file:
        codes = {layer: file.get_tensor(f"{layer}|codes") for layer in WEIGHTS}
    assert {value.dtype for value in codes.values()} == {torch.int8}
    assert set(codes[HEAD].flatten().tolist()) <= {-100, -31, 0, 17}
    assert int(codes[POINTWISE].abs().max()) == 7
    assert codes[DEPTHWISE].shape == weight_of(NETWORK, DEPTHWISE).shape


def test_a_stored_network_stored_again_is_the_same(tmp_path: Path) -> None:
    first, network = stored(QuantPlan({}, WEIGHTS), NETWORK)
    _, again = stored(first, network)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["scale^1", "none"])
def test_decisions_come_back_and_their_affines_stand_in_front_of_their_layers(name: str) -> None:
    channels = weight_of(NETWORK, POINTWISE).shape[1]
    scaling = ChannelScaling.identity(channels)
    if name != "none":
        scaling = ChannelScaling(torch.linspace(0.5, 2.0, channels), torch.linspace(-1.0, 1.0, channels), name)
    decision = LayerDecision(scaling, "gptq, adaround", 31.25, 28.5, {"none": 28.5, name: 31.25})
    loaded, network = stored(QuantPlan({}, {POINTWISE: WEIGHTS[POINTWISE]}, {POINTWISE: decision}), NETWORK)
    actual = loaded.decisions[POINTWISE]
    assert replace(actual, scaling=scaling) == decision
    assert actual.scaling.name == name
    assert torch.equal(actual.scaling.scale, scaling.scale)
    assert torch.equal(actual.scaling.shift, scaling.shift)
    inserted = getattr(network.get_submodule(POINTWISE), "channel_scaling", None)
    assert (inserted is None) == (name == "none")
    if isinstance(inserted, ScaleShift):
        x = torch.randn(3, channels)
        assert torch.equal(inserted(x), x * scaling.scale + scaling.shift)
