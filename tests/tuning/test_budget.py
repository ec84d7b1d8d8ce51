"""--max-drop: which layers are given back, how many, and what is said when it cannot be met."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from networks import small_network
from reconstructions import photographs, reconstructed, target_with

from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.quantization.precision import BitPlan
from edgeconvnext.quantization.reconstruct import Reconstructed
from edgeconvnext.rewrite.exact import fold_norm_affine
from edgeconvnext.tuning import budget as search
from edgeconvnext.tuning.budget import within_budget
from edgeconvnext.tuning.sensitivity import quantized_layer, sensitivities

IMAGES, HELD_OUT = photographs(), photographs(48, seed=5).split(16)
OTHERS = photographs(4, seed=11)
COSTLY = "stages.1.0.pwconv2"


@pytest.fixture(scope="module")
def network() -> ConvNeXt:
    """One layer is hard to quantise without smoothing: a channel it hardly weighs is 200 times larger than the rest."""
    module = fold_norm_affine(small_network())
    block = module.get_submodule("stages.1.0")
    with torch.no_grad():
        block.pwconv1.weight[0] *= 400
        block.pwconv1.bias[0] = block.pwconv1.bias[0].abs() * 400
        block.pwconv2.weight[:, 0] /= 400
        # Centred logits, so that different images get different classes.
        module.head.bias -= torch.cat([module(batch) for batch in HELD_OUT]).mean(dim=0)
    return module


@pytest.fixture(scope="module")
def labels(network: ConvNeXt) -> np.ndarray:
    """The float network's own answers, so that it is right everywhere."""
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in HELD_OUT]).argmax(1).numpy()


def quantizer(network: ConvNeXt, asked: list[BitPlan]):
    def with_bits(bits: BitPlan) -> Reconstructed:
        asked.append(bits)
        return reconstructed(
            network, target_with("onnx"), IMAGES, bits=bits, smoothing="none", rounding="nearest", calibrator="minmax"
        )

    return with_bits


def test_the_costliest_layer_is_found_alone_and_as_a_jump(network: ConvNeXt) -> None:
    result = quantizer(network, [])(BitPlan())
    found = sensitivities(network, result.module, result.plan, HELD_OUT)
    assert [entry.layer for entry in found] == list(result.plan.weights)
    assert max(found, key=lambda entry: entry.kl_alone).layer == COSTLY
    jumps = {after.layer: after.kl_cumulative - before.kl_cumulative for before, after in pairwise(found)}
    assert max(jumps, key=jumps.get) == COSTLY
    # All layers on: what the whole quantised network loses.
    assert found[-1].kl_cumulative >= found[0].kl_alone


def test_a_layer_quantised_for_a_while_is_float_again_and_the_same_module(network: ConvNeXt) -> None:
    target = target_with("jetson", smoothing={"hidden": "channel", "depthwise": True})
    result = reconstructed(network, target, IMAGES, smoothing="force", rounding="nearest")
    inside = copy.deepcopy(network)
    before = {name: value.clone() for name, value in inside.state_dict().items()}
    for layer in ("stages.0.0.dwconv", "stages.0.0.pwconv1", "stages.0.0.pwconv2", "head"):
        float_module = inside.get_submodule(layer)
        with torch.no_grad(), quantized_layer(inside, result.module, result.plan, layer):
            name = f"{layer}.weight"
            assert torch.equal(inside.get_parameter(name), result.module.get_parameter(name))
            assert not torch.equal(inside(OTHERS), network(OTHERS))
        assert inside.get_submodule(layer) is float_module
        assert list(inside.state_dict()) == list(before)
        assert all(torch.equal(before[name], value) for name, value in inside.state_dict().items())
        with torch.no_grad():
            assert torch.equal(inside(OTHERS), network(OTHERS))


def test_measuring_leaves_both_networks_as_they_were(network: ConvNeXt) -> None:
    result = quantizer(network, [])(BitPlan())
    states = [
        {name: value.clone() for name, value in module.state_dict().items()} for module in (network, result.module)
    ]
    sensitivities(network, result.module, result.plan, HELD_OUT)
    for module, state in zip((network, result.module), states, strict=True):
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_layers_are_given_back_until_the_budget_holds(network: ConvNeXt, labels: np.ndarray) -> None:
    asked: list[BitPlan] = []
    outcome = within_budget(
        network, BitPlan(), quantizer(network, asked), HELD_OUT, labels, max_drop=5.0, input_size=(32, 32)
    )
    assert outcome.before.loss_pp > 5.0
    assert outcome.after.loss_pp <= 5.0
    assert outcome.moves[0].layer == COSTLY
    assert outcome.moves[0].to == "float"
    assert len(outcome.moves) < len(outcome.result.plan.weights), "most layers stay quantised"
    assert COSTLY not in outcome.result.plan.weights
    assert asked[0] == BitPlan() and asked[-1] == outcome.bits
    assert 0 < outcome.moves[0].macs_share < 1


def test_a_budget_that_holds_from_the_start_costs_nothing(network: ConvNeXt, labels: np.ndarray) -> None:
    asked: list[BitPlan] = []
    outcome = within_budget(
        network, BitPlan(), quantizer(network, asked), HELD_OUT, labels, max_drop=100.0, input_size=(32, 32)
    )
    assert (outcome.moves, len(asked)) == ((), 1)


def test_without_labels_agreement_and_divergence_are_judged(network: ConvNeXt) -> None:
    outcome = within_budget(
        network, BitPlan(), quantizer(network, []), HELD_OUT, None, max_drop=5.0, input_size=(32, 32)
    )
    assert outcome.judged_by == "agreement"
    assert outcome.after.loss_pp <= 5.0
    assert outcome.after.kl <= search.LARGEST_KL
    record = outcome.record()
    assert record["judged_by"] == "agreement"
    assert BitPlan.model_validate(record["bits"]) == outcome.bits


def test_four_bit_layers_get_eight_bits_first(network: ConvNeXt, labels: np.ndarray) -> None:
    outcome = within_budget(
        network, BitPlan(weights=4), quantizer(network, []), HELD_OUT, labels, max_drop=5.0, input_size=(32, 32)
    )
    assert {move.to for move in outcome.moves} >= {"8-bit weights"}
    first = {move.layer: move.to for move in reversed(outcome.moves)}
    assert set(first.values()) == {"8-bit weights"}


def test_a_budget_out_of_reach_is_refused_by_name(
    network: ConvNeXt, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "ROUNDS", 0)
    with pytest.raises(QuantizationError, match=r"--max-drop 0\.01 was not reached.*Allow a larger drop"):
        within_budget(network, BitPlan(), quantizer(network, []), HELD_OUT, labels, max_drop=0.01, input_size=(32, 32))
