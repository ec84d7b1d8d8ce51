"""The forms a network is written in for onnxruntime: same function, and what onnxruntime makes of each."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from quantized_programs import (
    VARIANTS,
    Variant,
    images,
    in_onnxruntime,
    layers_of,
    onnx_bytes,
    program_for,
    run,
    small_convnext,
    sqnr_db,
)
from torch.export import ExportedProgram

from edgeconvnext.backends import check_target, load_target
from edgeconvnext.backends.onnxruntime.write import build_laid_out
from edgeconvnext.choices import Operator
from edgeconvnext.errors import TargetError
from edgeconvnext.model.program import export_program, with_batch
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.statistics import collect_statistics
from edgeconvnext.targets import LayoutSection, Target

LINEARS: tuple[Literal["gemm", "matmul", "conv"], ...] = ("gemm", "matmul", "conv")
RESIDUALS: tuple[Literal["channels_last", "channels_first"], ...] = ("channels_last", "channels_first")


def written(program: ExportedProgram, layout: LayoutSection) -> bytes:
    proto: onnx.ModelProto = ir.to_proto(build_laid_out(program, opset=21, layout=layout))
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def run_operators(model: bytes, folder: Path, batch: int = 1) -> Counter[str]:
    """What onnxruntime runs, after all its optimisations."""
    in_onnxruntime(model, images(batch), optimized=folder / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def quantising(*operators: Operator) -> Target:
    target = load_target("onnx")
    return target.model_copy(
        update={"quantize": target.quantize.model_copy(update={"operators": list(operators), "outputs": []})}
    )


def program_quantising(*operators: Operator) -> ExportedProgram:
    module = small_convnext()
    statistics = collect_statistics(module, [images(48, seed=1)], [images(24, seed=2)])
    plan = build_plan(module, statistics, quantising(*operators), effort="quick")
    return quantize_program(export_program(module, images(2), max_batch=64), plan)


def every_form() -> list[Any]:
    """Each form of a quantised network, and of each other network the default and the one that differs most."""
    forms = []
    for target, variant, residual, linears in product((None, "onnx"), VARIANTS, RESIDUALS, LINEARS):
        usual = (target, variant) == ("onnx", VARIANTS[0]) or (residual, linears) == ("channels_first", "conv")
        default = target == "onnx" and (residual, linears) == ("channels_last", "gemm")
        marks = () if usual or default else pytest.mark.exhaustive
        forms.append(pytest.param(target, variant, residual, linears, marks=marks))
    return forms


@pytest.mark.parametrize(("target", "variant", "residual", "linears"), every_form())
def test_every_form_gives_the_programs_logits(
    target: str | None,
    variant: Variant,
    residual: Literal["channels_last", "channels_first"],
    linears: Literal["gemm", "matmul", "conv"],
) -> None:
    program = program_for(target, variant)
    model = written(program, LayoutSection(linears=linears, residual=residual))
    batch = images(5, seed=9)
    # Only the order of float32 sums differs (measured 130 dB); one code beside a rounding border costs a step.
    assert sqnr_db(run(program, batch), in_onnxruntime(model, batch)) > 60


@pytest.mark.parametrize("fixed", [None, 1, 2])
def test_all_quantised_linears_are_integer_gemms_with_their_bias(fixed: int | None, tmp_path: Path) -> None:
    program = program_for("onnx") if fixed is None else with_batch(program_for("onnx"), fixed)
    operators = run_operators(written(program, LayoutSection()), tmp_path, fixed or 1)
    assert operators["QGemm"] == 8  # six in the blocks, the downsampling conv, the head
    assert not operators["Gemm"] and not operators["DequantizeLinear"]
    assert operators["Transpose"] == 1  # of codes, that cuts patches
    assert operators["Add"] == 3  # the residual ones


def test_with_a_fixed_batch_matmul_and_add_would_be_no_integer_product(tmp_path: Path) -> None:
    """Why "gemm" is the default: should onnxruntime learn this, the comment in `onnx_linears` is out of date."""
    operators = run_operators(written(with_batch(program_for("onnx"), 1), LayoutSection(linears="matmul")), tmp_path)
    assert operators["Gemm"] and not operators["MatMulIntegerToFloat"]


def test_matmul_form_runs_in_int8_where_the_batch_is_free(tmp_path: Path) -> None:
    operators = run_operators(written(program_for("onnx"), LayoutSection(linears="matmul")), tmp_path)
    assert operators["MatMulIntegerToFloat"] == 7


def test_rows_stay_rows_between_the_linears_of_a_block() -> None:
    operators = Counter(node.op_type for node in onnx.load_from_string(onnx_bytes("onnx")).graph.node)
    # One in front of pwconv1 and one behind pwconv2 of three blocks; cutting patches, joining them, and laying out their products.
    assert operators["Reshape"] == 6 + 3


@pytest.mark.parametrize("linears", LINEARS)
def test_a_quantised_downsampling_conv_becomes_a_linear_over_patches(
    linears: Literal["gemm", "matmul", "conv"], tmp_path: Path
) -> None:
    program = program_quantising("stem", "downsample", "pointwise1", "pointwise2", "head")
    model = written(program, LayoutSection(linears=linears))
    batch = images(5, seed=9)
    assert sqnr_db(run(program, batch), in_onnxruntime(model, batch)) > 60
    if linears == "gemm":
        operators = run_operators(model, tmp_path)
        assert operators["QGemm"] == 9
        assert operators["Conv"] == 3  # the depthwise ones
        names = {node.name for node in onnx.load_from_string(model).graph.node}
        assert set(layers_of()) <= names


def test_weights_of_patches_are_the_simulations_codes() -> None:
    program = program_quantising("downsample")
    codes = next(t for t in program.state_dict.values() if str(t.dtype) == "torch.int8" and t.dim() == 4)
    stored = {t.name: t for t in onnx.load_from_string(written(program, LayoutSection())).graph.initializer}
    found = numpy_helper.to_array(stored["downsample_layers.1.1.weight"])
    assert np.array_equal(found, codes.permute(2, 3, 1, 0).reshape(-1, len(codes)).numpy())


def test_a_bias_beyond_int32_stays_float() -> None:
    program = program_for("onnx")
    original = program.state_dict["stages.0.0.pwconv1.bias"]
    huge = torch.nn.Parameter(torch.full_like(original, 3e38))
    program.state_dict["stages.0.0.pwconv1.bias"] = huge
    try:
        graph = build_laid_out(program, opset=21, layout=LayoutSection()).graph
    finally:
        program.state_dict["stages.0.0.pwconv1.bias"] = original
    assert {node.name: node.op_type for node in graph}["stages.0.0.pwconv1"] == "MatMul"


def test_biases_of_the_simulation_are_the_files_codes() -> None:
    stored = {t.name: t for t in onnx.load_from_string(onnx_bytes("onnx")).graph.initializer}
    codes = numpy_helper.to_array(stored["stages.1.1.pwconv2.bias"])
    scale = numpy_helper.to_array(stored["stages.1.1.pwconv2.bias_scale"])
    assert codes.dtype == np.int32
    simulated = program_for("onnx").state_dict["stages.1.1.pwconv2.bias"].detach().numpy()
    assert np.array_equal(codes.astype(np.float32) * scale, simulated)


def test_other_exporters_have_no_layout() -> None:
    jetson = load_target("jetson")
    values = jetson.model_dump() | {"layout": {"linears": "matmul"}}
    with pytest.raises(TargetError, match=r"\[layout\] is about files for onnxruntime"):
        check_target(Target.model_validate(values))
