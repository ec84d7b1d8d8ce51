"""ONNX with 4-bit weights, one scale a channel or blocked, and with 16-bit activations, run in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import small_network, sqnr_db
from quantized_programs import METADATA
from reconstructions import photographs, reconstructed, target_with

from edgeconvnext.backends.onnxruntime.runner import OnnxRunner
from edgeconvnext.backends.onnxruntime.saturation import saturation
from edgeconvnext.backends.onnxruntime.write import export_onnx
from edgeconvnext.model.program import export_program
from edgeconvnext.quantization.precision import BitPlan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.simulate import simulator
from edgeconvnext.rewrite.exact import fold_norm_affine

IMAGES = photographs(24)


@pytest.fixture(scope="module", params=["per channel", "blocked", "int16"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, torch.nn.Module]:
    module = fold_norm_affine(small_network())
    weights = {"bits": 4, "block_size": 16} if request.param == "blocked" else {}
    target = target_with("onnx", operators=["stem", "depthwise", "pointwise1", "pointwise2", "head"], weights=weights)
    bits = BitPlan(activations=16) if request.param == "int16" else BitPlan(weights=4)
    result = reconstructed(module, target, IMAGES, bits=bits)
    program = quantize_program(export_program(result.module, IMAGES[:2], max_batch=32), result.plan)
    path = export_onnx(program, tmp_path_factory.mktemp("low") / "model.onnx", opset=21, metadata=METADATA)
    return request.param, path, simulator(program)


def test_onnxruntime_computes_what_is_simulated(exported: tuple[str, Path, torch.nn.Module]) -> None:
    _, path, simulated = exported
    with torch.inference_mode():
        expected = simulated(IMAGES)
    assert sqnr_db(expected, torch.from_numpy(OnnxRunner(path)(IMAGES.numpy()))) > 40


def test_codes_have_the_type_of_their_bits(exported: tuple[str, Path, torch.nn.Module]) -> None:
    kind, path, _ = exported
    model = onnx.load(path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [
        name for name in types if name.endswith(".weight") and "norm" not in name and "downsample_layers.1" not in name
    ]
    four_bits = {name for name in weights if types[name] == onnx.TensorProto.INT4}
    if kind == "int16":
        assert not four_bits
        grids = {types[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
        assert grids == {onnx.TensorProto.UINT16}
        return
    assert {f"stages.1.0.pwconv{i}.weight" for i in (1, 2)} <= four_bits
    blocks = {
        onnx.helper.get_attribute_value(attribute)
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "block_size"
    }
    assert blocks - {0} == ({16} if kind == "blocked" else set())


def test_what_is_dequantised_first_does_not_count_as_saturating(exported: tuple[str, Path, torch.nn.Module]) -> None:
    _, path, _ = exported
    assert all(layer.pairs == 0 or layer.saturating == 0 for layer in saturation(path, np.asarray(IMAGES[:2])))
