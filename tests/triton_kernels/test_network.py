"""Whole networks: the codes between the layers are the simulated graph's, whatever the plan leaves to torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import small_network, sqnr_db
from reconstructions import photographs, reconstructed, target_with

pytest.importorskip("triton", reason="the kernels need Triton: pip install 'edgeconvnext[triton]'")

from edgeconvnext.backends.triton.network import TritonNetwork
from edgeconvnext.backends.triton.reference import CodeDifference, network_differences, simulate, unit_differences
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.load import load_model
from edgeconvnext.model.program import export_program
from edgeconvnext.quantization.precision import BitPlan, LayerEntry
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.reconstruct import Reconstructed
from edgeconvnext.quantization.simulate import simulator
from edgeconvnext.rewrite.exact import fold_exact

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plan_of() -> Callable[..., Reconstructed]:
    """Fold and reconstruct a small network, with scales and shifts in front of all quantizers that the target allows."""

    def make(network: ConvNeXt, target: str = "gpu", bits: BitPlan | None = None) -> Reconstructed:
        images = photographs(18)
        folded = fold_exact(network, images[:4]).module
        return reconstructed(folded, target_with(target), images, bits=bits, smoothing="force", rounding="nearest")

    return make


def checked(
    result: Reconstructed, float_type: torch.dtype = torch.float32
) -> tuple[TritonNetwork, list[CodeDifference]]:
    """Check logits of the whole network and the codes of each unit; return the network and the units' differences."""
    images = photographs(3, seed=5)
    network = TritonNetwork(result.module, result.plan, float_type, CPU)
    simulation = simulate(result.module, result.plan, images, float_type)
    seen: dict[str, torch.Tensor] = {}
    logits = network(images, seen)
    # Nearly all codes are the same; one that is not moves the logits by less than a quantization step of the head's input.
    assert sqnr_db(simulation.logits, logits) > 50
    assert set(seen) == set(network.int8_layers)
    differences = unit_differences(network, simulation)
    assert all(difference.is_allowed for difference in differences), differences
    return network, differences


@pytest.mark.parametrize(("version", "stem"), [(1, "patch"), (2, "patch"), (1, "overlap")])
def test_all_units_hand_on_the_simulations_codes(
    version: int, stem: str, plan_of: Callable[..., Reconstructed]
) -> None:
    result = plan_of(small_network(version, stem))
    layers = list(weighted_layers(result.module))
    in_kernels = (
        layers if stem == "patch" else [layer for layer in layers if not layer.startswith("downsample_layers.0")]
    )
    for float_type in (torch.float32, torch.float16):
        network, differences = checked(result, float_type)
        assert list(network.int8_layers) == in_kernels
        assert {difference.layer for difference in differences} == set(in_kernels)


def test_a_plan_with_zero_points_and_float_convs(plan_of: Callable[..., Reconstructed]) -> None:
    result = plan_of(small_network(), target="onnx")
    assert any(int(a.qparams.zero_point) for a in result.plan.activations.values())
    network, _ = checked(result)
    assert {layer.rpartition(".")[2] for layer in network.int8_layers} == {"pwconv1", "pwconv2", "1", "head"}


@pytest.mark.parametrize(
    ("entry", "in_torch"),
    [
        (LayerEntry(weights=4), set()),
        (LayerEntry(activations=16), {"stages.1.0.pwconv1", "stages.1.0.pwconv2"}),
        (LayerEntry(float=True), {"stages.1.0.pwconv1", "stages.1.0.pwconv2"}),
    ],
    ids=["4-bit weights", "16-bit activations", "float"],
)
def test_a_block_that_kernels_do_not_know_runs_in_torch(
    entry: LayerEntry, in_torch: set[str], plan_of: Callable[..., Reconstructed]
) -> None:
    result = plan_of(small_network(), target="onnx", bits=BitPlan(layers={"stages.1.0.pwconv1": entry}))
    network, _ = checked(result)
    planned = {layer for layer in result.plan.weights if f"{layer}:input" in result.plan.activations}
    assert set(network.int8_layers) == planned - in_torch


def test_a_replaced_norm_and_a_head_that_pools_last(plan_of: Callable[..., Reconstructed]) -> None:
    torch.manual_seed(0)
    config = ConvNeXtConfig(
        (1, 1), (16, 32), num_classes=5, head_norm="before_pool", identity_norms=("stages.0.0.norm",), kernel_size=5
    )
    module = ConvNeXt(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if parameter.dim() == 1 else 1))
    network, _ = checked(plan_of(module))
    assert len(network.int8_layers) == 9


def test_the_reference_is_the_simulated_graph(plan_of: Callable[..., Reconstructed]) -> None:
    result, images = plan_of(small_network()), photographs(4, seed=5)
    program = quantize_program(export_program(result.module, images[:2], max_batch=4), result.plan)
    with torch.inference_mode():
        graph = simulator(program)(images)
    # The same arithmetic in another memory layout.
    torch.testing.assert_close(simulate(result.module, result.plan, images, torch.float32).logits, graph)


def test_the_network_that_ships_gives_the_simulations_answers(plan_of: Callable[..., Reconstructed]) -> None:
    digits = load_model("digits")
    generator = torch.Generator().manual_seed(2)
    images = torch.nn.functional.interpolate(torch.randn(18, 3, 8, 8, generator=generator), size=32, mode="bicubic")
    folded = fold_exact(digits.module, images[:4]).module
    result = reconstructed(folded, target_with("gpu"), images, rounding="nearest")
    network = TritonNetwork(result.module, result.plan, torch.float32, CPU)
    seen: dict[str, torch.Tensor] = {}
    logits = network(images[:6], seen)
    simulation = simulate(result.module, result.plan, images[:6], torch.float32)
    differences = network_differences(seen, simulation)
    assert max(difference.largest for difference in differences) <= 1
    elements = sum(difference.elements for difference in differences)
    assert sum(difference.share * difference.elements for difference in differences) <= 1e-3 * elements
    assert torch.equal(logits.argmax(dim=1), simulation.logits.argmax(dim=1))


def test_a_difference_is_allowed_up_to_one_code_in_a_thousand() -> None:
    assert CodeDifference("a", 1000, 1e-3, 1).is_allowed
    assert not CodeDifference("a", 1000, 1.1e-3, 1).is_allowed
    assert not CodeDifference("a", 1000, 1e-6, 2).is_allowed


def test_the_simulation_is_computed_where_the_images_are(
    plan_of: Callable[..., Reconstructed], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No GPU is needed to see that: tensors without content lie on a device of their own, which mixes with no other.
    monkeypatch.setattr("edgeconvnext.quantization.fake.round_activation", lambda x, qparams: x + 0)
    result = plan_of(small_network())
    simulation = simulate(result.module, result.plan, photographs(2).to("meta"), torch.float16)
    found = [simulation.logits, *simulation.codes.values(), *simulation.inputs.values()]
    assert len(found) > 10 and {tensor.device.type for tensor in found} == {"meta"}
    assert {parameter.device.type for parameter in result.module.parameters()} == {"cpu"}
