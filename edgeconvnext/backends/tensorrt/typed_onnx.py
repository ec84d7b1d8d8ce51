"""Typed ONNX for TensorRT 10.3 and later: the file's own types, FP16 and INT8 Q/DQ, decide every precision.

TensorRT builds such a file as a strongly typed network, on 10.x by a flag and on 11.x always. What it needs is checked
here, before a board is involved: FP16 scales (opset 19 is the first to have them), no Cast between DequantizeLinear and
the operator it feeds, symmetric INT8, LayerNormalization as one node (taken apart, its squares overflow FP16), and
operators that TensorRT's parser knows.

The input stays float32: images come as float32, and the one Cast behind it can join the reformatting that TensorRT does
to its input anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnx.file_ends import FileEnds, add_ends
from edgeconvnext.backends.onnx.write import build_onnx, save_onnx
from edgeconvnext.errors import ExportError, TargetError

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.export import ExportedProgram

LOWEST_OPSET = 19

# The operators a ConvNeXt or ResNet exports to at opset 19, each marked "Y" with FP16 (Q/DQ: INT8, zero point 0) in the parser's
# published lists on both sides of 10.3: docs/operators.md of github.com/onnx/onnx-tensorrt for TensorRT 9.2 (opset 19)
# and for 10.15 (opset 24); the changelog between them withdraws none. Only the second has Gelu, so opset 20 stays out.
# TensorRT fuses x * (1 + erf(x / sqrt 2)) / 2 into one GELU by itself (its developer guide, "types of fusions").
TENSORRT_OPERATORS = frozenset(
    {
        "Add",
        "Cast",
        "Conv",
        "DequantizeLinear",
        "Div",
        "Erf",
        "Gemm",
        "LayerNormalization",
        "MatMul",
        "MaxPool",
        "Mul",
        "Pow",
        "QuantizeLinear",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Sqrt",
        "Transpose",
    }
)
# What necks and heads around a ConvNeXt add, each marked "Y" with FP16 in these lists from TensorRT 8.4 on.
NECK_OPERATORS = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Clip",
        "Concat",
        "ConvTranspose",
        "Exp",
        "Expand",
        "Flatten",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Pad",
        "Reshape",
        "Resize",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Sub",
        "Tanh",
        "Unsqueeze",
    }
)
_WEIGHTED = {"Conv", "MatMul", "Gemm"}


def export_typed_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    opset: int,
    metadata: ArtifactMetadata,
    ends: FileEnds = FileEnds(),  # noqa: B008  (frozen)
) -> Path:
    """Write a float16 program (`quantize.float16.to_float16`) as typed ONNX for TensorRT, with `ends`.

    Works with Q/DQ and, for the FP16 engine it is compared with, without.
    Raises TargetError for an opset without FP16 scales and ExportError for what TensorRT 10.3 would refuse.
    """
    if opset < LOWEST_OPSET:
        raise TargetError(
            f"opset {opset} has no FP16 scales for QuantizeLinear, which a typed ONNX needs; "
            f"set opset = {LOWEST_OPSET} in the target file."
        )
    model = build_onnx(program, opset=opset, outputs=metadata.outputs)
    add_ends(model, ends)
    check_typed(model)
    return save_onnx(model, path, metadata=metadata)


def check_typed(model: ir.Model) -> None:
    """Raise ExportError, naming the nodes, unless TensorRT 10.3 takes `model` as a strongly typed network."""
    problems = _unknown_operators(model)
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            problems += _quantization_problems(node)
        elif node.op_type in _WEIGHTED | {"LayerNormalization"}:
            kinds = [value.dtype.name for value in node.inputs if value is not None and value.dtype is not None]
            if set(kinds) != {"FLOAT16"}:
                problems.append(f"{node.name} ({node.op_type}) takes {', '.join(kinds)} instead of FLOAT16")
    if problems:
        raise ExportError(
            f"TensorRT 10.3 would refuse this network: {'; '.join(problems[:8])}"
            f"{f'; and {len(problems) - 8} more' if len(problems) > 8 else ''}. "
            f"A typed ONNX comes from opset {LOWEST_OPSET}, float_type float16 and symmetric int8 activations."
        )


def _unknown_operators(model: ir.Model) -> list[str]:
    unknown: dict[str, list[str]] = {}
    for node in model.graph:
        if node.domain not in ("", "ai.onnx") or node.op_type not in TENSORRT_OPERATORS | NECK_OPERATORS:
            unknown.setdefault(node.op_type, []).append(node.name or "unnamed")
    return [
        f"operator {operator} is not in its list (at {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for operator, names in unknown.items()
    ]


def _quantization_problems(node: ir.Node) -> list[str]:
    problems = []
    scale, zero_point = node.inputs[1], node.inputs[2]
    if scale is None or scale.dtype is None or scale.dtype.name != "FLOAT16":
        problems.append(f"{node.name} has a scale that is not FLOAT16")
    if zero_point is not None and (
        zero_point.dtype is None
        or zero_point.dtype.name != "INT8"
        or zero_point.const_value is None
        or np.any(zero_point.const_value.numpy())
    ):
        problems.append(f"{node.name} is not symmetric int8 (its zero point is not 0)")
    casts = [user for user, _ in node.outputs[0].uses() if user.op_type == "Cast"]
    if node.op_type == "DequantizeLinear" and casts:
        problems.append(f"{node.name} is followed by a Cast")
    return problems
