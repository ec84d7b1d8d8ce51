"""Statistics, plans and the quantised graph on small networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import small_network, sqnr_db

from edgeconvnext.backends import load_target
from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.program import export_program
from edgeconvnext.quantization.plan import QParams
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.statistics import Statistics, collect_statistics
from edgeconvnext.quantization.weights import weight_qparams
from edgeconvnext.targets import Target


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def network() -> ConvNeXt:
    return small_network()


@pytest.fixture(scope="module")
def statistics(network: ConvNeXt, images: torch.Tensor) -> Statistics:
    return collect_statistics(network, [images[:4], images[4:8]], [images[8:]], outputs_of=["depthwise"])


def test_every_weighted_layer_is_observed(network: ConvNeXt, statistics: Statistics) -> None:
    layers = weighted_layers(network)
    expected = {f"{name}:input" for name in layers} | {
        f"{n}:output" for n, kind in layers.items() if kind == "depthwise"
    }
    assert set(statistics.tensors) == expected
    assert (statistics.fit_images, statistics.held_out_images) == (8, 4)


def test_extremes_are_those_of_the_tensors(network: ConvNeXt, images: torch.Tensor, statistics: Statistics) -> None:
    seen: list[torch.Tensor] = []
    handle = network.get_submodule("stages.1.0.pwconv2").register_forward_pre_hook(
        lambda _m, args: seen.append(args[0])
    )
    with torch.inference_mode():
        network(images)
    handle.remove()
    tensor = statistics.tensors["stages.1.0.pwconv2:input"]
    hidden = seen[0].reshape(-1, seen[0].shape[-1])
    np.testing.assert_allclose(tensor.channel_high, hidden.amax(0).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tensor.channel_low, hidden.amin(0).numpy(), rtol=1e-5, atol=1e-6)
    assert tensor.fit.high == pytest.approx(float(seen[0][:8].max()), rel=1e-5)


def test_what_is_binned_of_large_tensors_does_not_depend_on_the_batch() -> None:
    network = small_network()
    images = torch.randn(3, 3, 388, 388, generator=torch.Generator().manual_seed(5))
    layer = "stages.0.0.pwconv2:input"
    whole, single = (collect_statistics(network, images.split(cut), [images[:1]]).tensors[layer] for cut in (3, 1))
    hidden = network.get_submodule("stages.0.0.pwconv2").in_features
    # 97 positions a side, which no stride divides, and more of them than are binned.
    assert whole.fit.total < 3 * hidden * 97 * 97
    assert whole.fit.total == single.fit.total
    np.testing.assert_array_equal(whole.fit.counts, single.fit.counts)


def test_statistics_survive_saving(statistics: Statistics, tmp_path: Path) -> None:
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = Statistics.load(tmp_path / "statistics.safetensors")
    assert loaded.tensors.keys() == statistics.tensors.keys()
    for name, tensor in statistics.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name].fit.counts, tensor.fit.counts)
        np.testing.assert_array_equal(loaded.tensors[name].channel_low, tensor.channel_low)
        assert loaded.tensors[name].held_out.high == tensor.held_out.high


def test_no_hooks_are_left_behind(network: ConvNeXt, statistics: Statistics) -> None:
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_nan_activations_name_the_tensor(images: torch.Tensor) -> None:
    network = small_network()
    with pytest.raises(QuantizationError, match=r"downsample_layers\.0\.0:input contains NaN"):
        collect_statistics(network, [images[:2] * float("nan")], [images[:1]])


def test_too_few_images_is_an_error(network: ConvNeXt, images: torch.Tensor) -> None:
    with pytest.raises(QuantizationError, match="at least 3 images"):
        collect_statistics(network, [images[:2]], [])


@pytest.mark.parametrize("target_name", ["onnx", "jetson", "coreml"])
@pytest.mark.parametrize(("version", "stem"), [(1, "patch"), (2, "patch"), (1, "overlap_tiered")])
def test_the_graph_holds_the_planned_qdq_and_stays_close(
    target_name: str, version: int, stem: str, images: torch.Tensor
) -> None:
    network = small_network(version, stem)
    target = load_target(target_name)
    statistics = collect_statistics(network, [images[:8]], [images[8:]])
    plan = build_plan(network, statistics, target)
    program = quantize_program(export_program(network, images[:2], max_batch=16), plan)
    quantized = [name for name, kind in weighted_layers(network).items() if kind in target.quantize.operators]
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("quantized_decomposed.quantize_per_tensor.default") == len(quantized)
    assert names.count("quantized_decomposed.dequantize_per_channel.default") == len(quantized)
    assert set(plan.weights) == set(quantized)
    with torch.inference_mode():
        assert program.module()(images[:5]).shape == (5, 7)
        # Random weights without outliers at 8 bits: 25 dB is about 6 % error, far from both a broken graph and luck.
        assert sqnr_db(network(images), program.module()(images)) > 25


def test_planned_outputs_get_a_qdq_pair(network: ConvNeXt, images: torch.Tensor, statistics: Statistics) -> None:
    values = load_target("jetson").model_dump()
    values["quantize"]["outputs"] = ["depthwise"]
    target = Target.model_validate(values)
    plan = build_plan(network, statistics, target)
    program = quantize_program(export_program(network, images[:2], max_batch=None), plan)
    names = [str(node.target) for node in program.graph.nodes]
    depthwise = sum(kind == "depthwise" for kind in weighted_layers(network).values())
    assert names.count("quantized_decomposed.quantize_per_tensor.default") == len(plan.weights) + depthwise


def test_statistics_without_a_planned_tensor_are_refused(network: ConvNeXt, images: torch.Tensor) -> None:
    values = load_target("jetson").model_dump()
    values["quantize"]["outputs"] = ["head"]
    statistics = collect_statistics(network, [images[:2]], [images[2:3]])
    with pytest.raises(QuantizationError, match="head:output"):
        build_plan(network, statistics, Target.model_validate(values))


def test_a_plan_for_another_network_is_refused(images: torch.Tensor, statistics: Statistics, network: ConvNeXt) -> None:
    plan = build_plan(network, statistics, load_target("onnx"))
    other = ConvNeXt(ConvNeXtConfig((1,), (16,), num_classes=7)).eval()
    with pytest.raises(QuantizationError, match=r"stages\.1"):
        quantize_program(export_program(other, images[:2], max_batch=None), plan)


def test_float16_targets_have_scales_that_float16_holds(network: ConvNeXt, statistics: Statistics) -> None:
    plan = build_plan(network, statistics, load_target("jetson"))
    for scale in [a.qparams.scale for a in plan.activations.values()] + [w.scale for w in plan.weights.values()]:
        assert torch.equal(scale.half().float(), scale)


def test_seven_bit_weights_cannot_saturate_int16_pairs() -> None:
    grid = weight_qparams(torch.randn(8, 64), 64, float16_scale=False, search=False)
    codes = (torch.randn(8, 64) * 10 / grid.scale[:, None]).round().clamp(grid.quant_min, grid.quant_max)
    assert 255 * int(codes.abs().max()) * 2 <= 32767


def rounded_db(weight: torch.Tensor, grid: QParams) -> float:
    return sqnr_db(weight, grid.fake_quantize(weight))


def test_weight_search_lowers_the_error_where_a_channel_has_an_outlier() -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(5)) * 0.02
    weight[:, 0] = 0.2
    plain = weight_qparams(weight, 127, float16_scale=False, search=False)
    searched = weight_qparams(weight, 127, float16_scale=False, search=True)
    assert rounded_db(weight, searched) >= rounded_db(weight, plain)
    gaussian = torch.randn(4, 4096, generator=torch.Generator().manual_seed(6))
    gaussian[:, 0] *= 2.5
    plain = weight_qparams(gaussian, 64, float16_scale=False, search=False)
    searched = weight_qparams(gaussian, 64, float16_scale=False, search=True)
    assert rounded_db(gaussian, searched) > rounded_db(gaussian, plain) + 0.3
