"""The fast simulation gives the numbers of the Q/DQ graph it stands for."""

import pytest
import torch
from networks import small_network, sqnr_db

from edgeconvnext.backends import load_target
from edgeconvnext.model.program import export_program
from edgeconvnext.model.program_float16 import to_float16
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.simulate import simulator
from edgeconvnext.quantization.statistics import collect_statistics


@pytest.mark.parametrize(("version", "stem"), [(1, "patch"), (2, "patch"), (1, "overlap")])
@pytest.mark.parametrize("target_name", ["onnx", "jetson"])
def test_float32_simulation_is_bit_identical(target_name: str, version: int, stem: str) -> None:
    images = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network = small_network(version, stem)
    statistics = collect_statistics(network, [images[:6]], [images[6:]])
    plan = build_plan(network, statistics, load_target(target_name))
    program = quantize_program(export_program(network, images[:2], max_batch=16), plan)
    with torch.inference_mode():
        assert torch.equal(simulator(program)(images), program.module()(images))


def test_float16_simulation_differs_by_the_rounding_of_products_only() -> None:
    images = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network = small_network()
    statistics = collect_statistics(network, [images[:6]], [images[6:]])
    plan = build_plan(network, statistics, load_target("jetson"))
    quantized = quantize_program(export_program(network, images[:2], max_batch=16), plan)
    half = to_float16(quantized)
    with torch.inference_mode():
        ours, torchs, exact = simulator(quantized, "float16")(images), half.module()(images), quantized.module()(images)
    assert ours.dtype == torch.float32
    # Both round every tensor to float16 (relative 5e-4); a code that falls the other way costs a quantization step.
    assert sqnr_db(torchs, ours) > 38
    assert sqnr_db(exact, ours) > 30


def test_the_simulation_leaves_no_qdq_nodes_and_does_not_change_the_program() -> None:
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network = small_network()
    statistics = collect_statistics(network, [images[:4]], [images[4:]])
    program = quantize_program(
        export_program(network, images[:2], max_batch=None), build_plan(network, statistics, load_target("jetson"))
    )
    before = [str(node.target) for node in program.graph.nodes]
    fast = simulator(program)
    assert not any("quantized_decomposed" in str(node.target) for node in fast.graph.nodes)
    assert [str(node.target) for node in program.graph.nodes] == before
