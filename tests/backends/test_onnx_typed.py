"""Typed ONNX: the float16 simulation, and files that TensorRT 10.3 would take."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from quantized_programs import (
    METADATA,
    VARIANTS,
    Variant,
    half_program_for,
    images,
    in_onnxruntime,
    layers_of,
    program_for,
    run,
    small_convnext,
    sqnr_db,
    typed_onnx_bytes,
)
from resnets import narrow, trained_like

from edgeconvnext.backends.onnx.write import build_onnx
from edgeconvnext.backends.tensorrt.typed_onnx import TENSORRT_OPERATORS, check_typed, export_typed_onnx
from edgeconvnext.errors import ExportError, QuantizationError, TargetError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.program import export_program
from edgeconvnext.model.program_float16 import to_float16
from edgeconvnext.model.resnet.roadmap import RESNET50
from edgeconvnext.rewrite.batch_norm import fold_batch_norm


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_float16_simulation_stays_close(variant: Variant) -> None:
    batch = images(8, seed=9)
    for target, floor_db in ((None, 50), ("jetson", 30)):
        program = program_for(target, variant)
        half = run(program, batch, "float16")
        # Float16 keeps 11 bits: 66 dB for one rounding, a little less after thirty. With Q/DQ in between a rounding
        # that crosses a border moves a code by one, an error as large as the quantization's own.
        assert sqnr_db(run(program, batch), half) > floor_db
        assert half.dtype == np.float32


def test_the_fast_simulation_is_the_program() -> None:
    batch = images(8, seed=9)
    for target, floor_db in ((None, 50), ("jetson", 30)):
        half = half_program_for(target)
        with torch.inference_mode():
            native = half.module()(batch).numpy()
        # The same float16 tensors; only sums inside a convolution or linear are kept in more digits.
        assert sqnr_db(native, run(program_for(target), batch, "float16")) > floor_db
    single = program_for("onnx")
    with torch.inference_mode():
        np.testing.assert_array_equal(single.module()(batch).numpy(), run(single, batch))


def test_the_float32_program_is_left_alone() -> None:
    program = program_for("jetson")
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    to_float16(program)
    for name, tensor in program.state_dict.items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name


def test_sums_of_squares_do_not_overflow() -> None:
    """V2's GRN sums squares over all positions: float16 would end at 65504."""
    variant = Variant(version=2)
    module = ConvNeXt(small_convnext(variant).config).eval()
    module.load_state_dict(small_convnext(variant).state_dict())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "pwconv1" in name:
                parameter.mul_(40)
    program = export_program(module, images(2), max_batch=8)
    batch = images(4, seed=9)
    block = module.stages[0][0]
    with torch.inference_mode():
        hidden = block.act(
            block.pwconv1(block.norm(block.dwconv(module.downsample_layers[0](batch)).permute(0, 2, 3, 1)))
        )
        assert float(hidden.square().sum(dim=(1, 2)).max()) > 65504
    assert sqnr_db(run(program, batch), run(program, batch, "float16")) > 40


def test_a_parameter_beyond_float16_is_named() -> None:
    module = ConvNeXt(small_convnext().config).eval()
    module.load_state_dict(small_convnext().state_dict())
    with torch.no_grad():
        module.head.weight[0, 0] = 1e6
    with pytest.raises(QuantizationError, match=r"head\.weight holds 1e\+06"):
        to_float16(export_program(module, images(2), max_batch=8))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_typed_files_run_as_simulated(variant: Variant) -> None:
    batch = images(32, seed=9)
    for target, floor_db in ((None, 50), ("jetson", 30)):
        simulated = run(program_for(target, variant), batch, "float16")
        # 30 dB is the target's own fidelity gate; measured 36 dB and more on these networks.
        assert sqnr_db(simulated, in_onnxruntime(typed_onnx_bytes(target, variant), batch)) > floor_db


def test_everything_is_fp16_or_int8() -> None:
    model = onnx.load_from_string(typed_onnx_bytes("jetson"))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT not in kinds.values()
    for layer in layers_of():
        assert kinds[f"{layer}.weight"] == onnx.TensorProto.INT8
        assert kinds[f"{layer}.weight_scale"] == kinds[f"{layer}.bias"] == onnx.TensorProto.FLOAT16
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["LayerNormalization"] == 6
    # One behind the image, one in front of the logits.
    assert operators["Cast"] == 2
    assert {entry.version for entry in model.opset_import} == {19}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_the_operator_list_is_what_the_networks_need() -> None:
    used = {
        node.op_type
        for variant in VARIANTS
        for target in (None, "jetson")
        for node in onnx.load_from_string(typed_onnx_bytes(target, variant)).graph.node
    }
    resnet = fold_batch_norm(trained_like(narrow(RESNET50)))
    half = to_float16(export_program(resnet, images(2), max_batch=8))
    used |= {node.op_type for node in build_onnx(half, opset=19).graph}
    assert used == TENSORRT_OPERATORS


def test_an_operator_tensorrt_does_not_know_is_named() -> None:
    model = build_onnx(half_program_for(None), opset=20)
    with pytest.raises(ExportError, match=r"operator Gelu is not in its list \(at node_gelu"):
        check_typed(model)


def test_float32_and_affine_graphs_are_refused() -> None:
    with pytest.raises(ExportError, match=r"takes FLOAT.* instead of FLOAT16"):
        check_typed(build_onnx(program_for(None), opset=19))
    with pytest.raises(ExportError, match="not symmetric int8"):
        check_typed(build_onnx(to_float16(program_for("onnx")), opset=19))


def test_an_opset_without_float16_scales_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="opset = 19"):
        export_typed_onnx(program_for(None), tmp_path / "model.onnx", opset=18, metadata=METADATA)
