"""Networks with BatchNorms and plain or grouped convs through both ways of quantising, to integer convs in onnxruntime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from networks import sqnr_db
from reconstructions import photographs, reconstructed, target_with
from resnets import CONFIGS, narrow, trained_like

from edgeconvnext.backends import load_target
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnxruntime.quantized_layers import integer_layers
from edgeconvnext.backends.onnxruntime.saturation import saturation
from edgeconvnext.backends.onnxruntime.write import export_onnx
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.program import export_program
from edgeconvnext.model.resnet.network import ResNet
from edgeconvnext.quantization.fake import fake_quantized
from edgeconvnext.quantization.plan import QuantPlan
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.statistics import collect_statistics
from edgeconvnext.rewrite.batch_norm import fold_batch_norm

IMAGES, OTHERS = photographs(), photographs(24, seed=9)
TARGET = load_target("onnx")


def quick_plan(module: ResNet) -> QuantPlan:
    statistics = collect_statistics(module, IMAGES[:24].split(8), IMAGES[24:].split(8), TARGET.quantize.outputs)
    return build_plan(module, statistics, TARGET, effort="quick")


def write(module: ResNet, plan: QuantPlan, path: Path) -> Path:
    program = quantize_program(export_program(module, OTHERS[:2], max_batch=32), plan)
    metadata = ArtifactMetadata("m", None, Preprocess((32, 32)), "normalized", "")
    return export_onnx(program, path, opset=21, metadata=metadata)


@pytest.mark.parametrize("name", ["resnext50", "kernel_7"])
def test_the_engine_beats_nearest_codes(name: str) -> None:
    module = fold_batch_norm(trained_like(narrow(CONFIGS[name])))
    target = target_with("onnx", weights={"bits": 4, "range_bits": 8})
    engine = reconstructed(module, target, IMAGES)
    plain = reconstructed(module, target, IMAGES, smoothing="none", rounding="nearest", bias_correction=False)
    found = []
    for result in (engine, plain):
        with torch.inference_mode(), fake_quantized(result.module, result.plan):
            found.append(sqnr_db(module(OTHERS), result.module(OTHERS)))
    assert found[0] > found[1] + 1


@pytest.mark.parametrize(
    "name",
    [
        *("resnet50", "inverted_bottleneck", "layer_norm"),
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("resnext50", "depthwise_first")),
    ],
)
def test_every_kind_of_block_runs_in_int8_as_simulated(name: str, tmp_path: Path) -> None:
    module = fold_batch_norm(trained_like(narrow(CONFIGS[name])))
    plan = quick_plan(module)
    kinds = weighted_layers(module)
    float_kinds = {kind for layer, kind in kinds.items() if layer not in plan.weights}
    assert float_kinds <= {"stem", "depthwise", "downsample"}
    path = write(module, plan, tmp_path / "model.onnx")
    with torch.inference_mode(), fake_quantized(module, plan):
        weights = {layer: module.get_parameter(f"{layer}.weight") for layer in plan.weights}
        kept = {layer: weight.detach().clone() for layer, weight in weights.items()}
        for layer, weight in weights.items():
            weight.copy_(plan.weights[layer].fake_quantize(weight))
        simulated = module(OTHERS)
        for layer, weight in weights.items():
            weight.copy_(kept[layer])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": OTHERS.numpy()})
    # Integer convs round their output once more; codes may differ by one where the float sum lies between two.
    assert sqnr_db(simulated, torch.from_numpy(found)) > 28
    with torch.inference_mode():
        assert sqnr_db(module(OTHERS), torch.from_numpy(found)) > 18


@pytest.mark.parametrize("name", ["resnext50", "depthwise"])
def test_convs_of_resnet_blocks_become_integer_convs(name: str, tmp_path: Path) -> None:
    module = fold_batch_norm(trained_like(narrow(CONFIGS[name])))
    path = write(module, quick_plan(module), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    convs = [layer for layer, kind in weighted_layers(module).items() if kind in ("conv", "projection")]
    assert operators["QLinearConv"] == len(convs)
    assert operators["Conv"] + operators["FusedConv"] == 1  # the stem
    # They are what saturation is looked for in, ReLU or not; depthwise ones have exact kernels.
    exact = {layer for layer in convs if name == "depthwise" and layer.endswith("conv2")}
    listed = {layer.name for layer in integer_layers(onnx.load(path))}
    assert {layer for layer in listed if layer != "head"} == set(convs) - exact
    assert not any(layer.saturating for layer in saturation(path, OTHERS[:2].numpy()))
