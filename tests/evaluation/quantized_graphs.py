"""Small Q/DQ ONNX files with chosen integer weights, as the exporters write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.data.preprocess import Preprocess, ValueRange

ACTIVATION_SCALE = 0.02


def alternating_weights(limit: int, reduced: int, columns: int, seed: int = 0) -> np.ndarray:
    """Codes (reduced, columns) of -limit and limit, rows 2k and 2k + 1 equal: the worst case for their sum."""
    pairs = np.random.default_rng(seed).choice(np.array([-limit, limit], np.int8), (reduced // 2, columns))
    return np.repeat(pairs, 2, axis=0)


def linear_file(path: Path, weights: np.ndarray, activation: type = np.uint8, gemm: bool = False) -> Path:
    """Write y = dequantised x (M, K) @ dequantised weights (K, N); as a Gemm the weights lie transposed."""
    columns = weights.shape[1]
    stored, axis = (weights.T, 0) if gemm else (weights, 1)
    layer = (
        helper.make_node("Gemm", ["x_dq", "w_dq"], ["y"], name="head", transB=1)
        if gemm
        else helper.make_node("MatMul", ["x_dq", "w_dq"], ["y"], name="head")
    )
    return _write(path, [*_pairs(axis), layer], stored, activation, ["M", weights.shape[0]], ["M", columns], columns)


def conv_file(
    path: Path, weights: np.ndarray, activation: type = np.uint8, quantized_output: bool = True, groups: int = 1
) -> Path:
    """Write a 2x2 stride 2 conv of dequantised input and weights (O, C / groups, 2, 2), its output quantised or not."""
    out = len(weights)
    conv = helper.make_node("Conv", ["x_dq", "w_dq"], ["c"], name="conv", strides=[2, 2], group=groups)
    end = [helper.make_node("Identity", ["c"], ["y"])]
    if quantized_output:
        end = [
            helper.make_node("QuantizeLinear", ["c", "y_scale", "x_zero"], ["y_q"]),
            helper.make_node("DequantizeLinear", ["y_q", "y_scale", "x_zero"], ["y"]),
        ]
    channels = weights.shape[1] * groups
    shape = (["N", channels, "H", "W"], ["N", out, "h", "w"])
    return _write(path, [*_pairs(0), conv, *end], weights, activation, *shape, out)


def classifier_file(
    path: Path,
    weights: np.ndarray,
    batch: int | str = "batch",
    dtype: type = np.float32,
    value_range: ValueRange | None = None,
) -> Path:
    """Write logits (N, classes) = mean over pixels of image (N, 3, 4, 4) @ weights (3, classes), in float."""
    element = TensorProto.FLOAT if dtype is np.float32 else TensorProto.FLOAT16
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
    ]
    stored = [
        numpy_helper.from_array(np.array([2, 3]), "axes"),
        numpy_helper.from_array(weights.astype(dtype), "w"),
    ]
    image = helper.make_tensor_value_info("image", element, [batch, 3, 4, 4])
    logits = helper.make_tensor_value_info("logits", element, [batch, weights.shape[1]])
    model = _model(helper.make_graph(nodes, "classifier", [image], [logits], stored))
    if value_range is not None:
        metadata = ArtifactMetadata("tiny", None, Preprocess(input_size=(32, 32)), value_range, "0")
        helper.set_model_props(model, metadata.properties())
    onnx.save(model, path)
    return path


def _pairs(axis: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_dq"], axis=axis),
    ]


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: np.ndarray,
    activation: type,
    shape_in: list[int | str],
    shape_out: list[int | str],
    columns: int,
) -> Path:
    stored = {
        "x_scale": np.float32(ACTIVATION_SCALE),
        "x_zero": activation(128 if activation is np.uint8 else 0),
        "y_scale": np.float32(1.0),
        "w": weights,
        "w_scale": np.linspace(0.01, 0.02, columns, dtype=np.float32),
        "w_zero": np.zeros(columns, np.int8),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items() if name in used],
    )
    onnx.save(_model(graph), path)
    return path


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
