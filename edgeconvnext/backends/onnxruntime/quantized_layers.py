"""Read a Q/DQ ONNX graph: which layers multiply integers, their weight codes, and the codes that reach them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeconvnext.backends.onnxruntime.runner import ELEMENT_TYPES
from edgeconvnext.data.preprocess import as_element_type
from edgeconvnext.errors import ExportError

if TYPE_CHECKING:
    import onnx

LAYOUT_OPERATORS = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast"}
"""What may stand between a DequantizeLinear and the layer without changing values."""

IMAGES_AT_ONCE = 4


@dataclass(frozen=True)
class IntegerLayer:
    """A MatMul, Gemm or Conv whose two inputs are dequantised, as one matrix product per group.

    weights: int8 codes (K, N); for a conv, K runs over kernel rows, kernel columns, channels of the group: the order in
    which onnxruntime lays an image's patches out. scales: activation scale times weight scale, (N,).
    activation: name of the float tensor that enters; activation_scale, activation_zero_point: its grid; signed: int8.
    """

    name: str
    operator: str
    weights: np.ndarray
    scales: np.ndarray
    activation: str
    activation_scale: float
    activation_zero_point: int
    signed: bool
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    def activation_codes(self, values: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the unsigned codes of dequantised `values` and their zero point; signed codes are moved up by 128."""
        shift = self.activation_zero_point + (128 if self.signed else 0)
        codes = np.rint(values.astype(np.float64) / self.activation_scale) + shift
        return codes.astype(np.int32), shift


class Graph:
    """An ONNX graph by tensor name: who makes it, who reads it, what it holds where it is constant."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self.nodes = list(model.graph.node)
        self.producer = {output: node for node in self.nodes for output in node.output}
        self.consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)

    def dequantizer(self, tensor: str) -> tuple[Any | None, list[Any]]:
        """Return the DequantizeLinear behind `tensor` and the layout operators between them, first applied first."""
        between: list[Any] = []
        node = self.producer.get(tensor)
        while node is not None and node.op_type in LAYOUT_OPERATORS:
            between.insert(0, node)
            node = self.producer.get(node.input[0])
        return (node, between) if node is not None and node.op_type == "DequantizeLinear" else (None, [])

    def zero_point(self, node: Any) -> np.ndarray:
        """Return the zero point of a DequantizeLinear; one without is uint8 0, or int8 0 where its constant is int8."""
        if len(node.input) > 2 and node.input[2]:
            return self.constants[node.input[2]]
        data = self.constants.get(node.input[0])
        return np.zeros((), dtype=np.uint8 if data is None else data.dtype)


def attributes(node: Any) -> dict[str, Any]:
    """Return a node's attributes by name."""
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def integer_layers(model: onnx.ModelProto) -> list[IntegerLayer]:
    """Return the layers that onnxruntime computes with unsigned by signed byte products on x86, in graph order.

    A Conv does so only where its output is quantised as well; a depthwise one has exact kernels.
    """
    graph = Graph(model)
    layers = (_read_layer(graph, node) for node in graph.nodes if node.op_type in ("MatMul", "Gemm", "Conv"))
    return [layer for layer in layers if layer is not None]


def layer_inputs(path: Path, layers: list[IntegerLayer], images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Yield the tensors that enter `layers`, a few images at a time, from a run in which nothing is fused.

    Raises ExportError where onnxruntime does not take the file or the images.
    """
    import onnx
    import onnxruntime

    probed = onnx.load(path)
    names = sorted({layer.activation for layer in layers})
    known = {output.name for output in probed.graph.output}
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        image = session.get_inputs()[0]
        batch = image.shape[0] if isinstance(image.shape[0], int) else IMAGES_AT_ONCE
        for start in range(0, len(images), batch):
            piece = as_element_type(images[start : start + batch], ELEMENT_TYPES[image.type])
            values = session.run(names, {image.name: piece})
            yield dict(zip(names, values, strict=True))
    except Exception as error:  # onnxruntime's own exceptions share no base class but Exception
        raise ExportError(
            f"{path} does not run on images of shape {images.shape}: {str(error).partition(chr(10))[0]}. Give images "
            f"as the file takes them, in its resolution, and whole batches where its batch is fixed."
        ) from error


def im2col(layer: IntegerLayer, codes: np.ndarray, zero_point: int) -> Iterator[np.ndarray]:
    """Yield the rows that meet the weights, (M, K), group after group. A conv's border holds the zero point.

    codes: (..., K) for MatMul and Gemm, (N, C, H, W) for a conv, whose K runs over kernel rows, columns, channels.
    """
    if layer.operator != "Conv":
        yield codes.reshape(-1, codes.shape[-1])
        return
    top, left, bottom, right = layer.pads
    padded = np.pad(codes, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero_point)
    spans = tuple((k - 1) * d + 1 for k, d in zip(layer.kernel, layer.dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    windows = windows[:, :, :: layer.strides[0], :: layer.strides[1], :: layer.dilations[0], :: layer.dilations[1]]
    for group in np.split(windows, layer.groups, axis=1):
        yield group.transpose(0, 2, 3, 4, 5, 1).reshape(-1, layer.weights.shape[0])


def _read_layer(graph: Graph, node: Any) -> IntegerLayer | None:
    """Return the integer layer that `node` is, or None where onnxruntime computes it in float or exactly.

    It multiplies bytes only: layers with 4-bit weights or 16-bit activations are dequantised first.
    """
    activation, _ = graph.dequantizer(node.input[0])
    weight, moves = graph.dequantizer(node.input[1])
    if activation is None or weight is None or weight.input[0] not in graph.constants:
        return None
    codes, given = graph.constants[weight.input[0]], attributes(node)
    if codes.dtype != np.int8 or graph.zero_point(weight).any() or graph.zero_point(activation).dtype.itemsize > 1:
        return None
    scales = graph.constants[weight.input[1]].astype(np.float64)
    axis = attributes(weight).get("axis", 1) % codes.ndim
    for move in moves:
        if move.op_type == "Transpose":
            order = attributes(move).get("perm", tuple(reversed(range(codes.ndim))))
            codes, axis = codes.transpose(order), list(order).index(axis)
        elif move.op_type not in ("Identity", "Cast"):
            return None
    zero_point, scale = graph.zero_point(activation), graph.constants[activation.input[1]]
    if scale.size != 1 or (node.op_type == "Gemm" and given.get("transA", 0)):
        return None

    conv: dict[str, Any] = {}
    if node.op_type == "Conv":
        groups = given.get("group", 1)
        if codes.ndim != 4 or codes.shape[1] == 1 or not _output_is_quantized(graph, node):
            return None
        conv = {
            "groups": groups,
            "kernel": codes.shape[2:],
            "strides": tuple(given.get("strides", (1, 1))),
            "pads": tuple(given.get("pads", (0, 0, 0, 0))),
            "dilations": tuple(given.get("dilations", (1, 1))),
        }
        matrix, per_column = codes.transpose(2, 3, 1, 0).reshape(-1, codes.shape[0]), axis == 0
    elif codes.ndim != 2:
        return None
    elif given.get("transB", 0):
        matrix, per_column = codes.T, axis == 0
    else:
        matrix, per_column = codes, axis == 1
    if scales.size > 1 and not per_column:
        return None
    return IntegerLayer(
        name=node.name or node.output[0],
        operator=node.op_type,
        weights=matrix,
        scales=np.broadcast_to(scales.reshape(-1) * float(scale.reshape(())), matrix.shape[1:]),
        activation=node.input[0],
        activation_scale=float(scale.reshape(())),
        activation_zero_point=int(zero_point.reshape(())),
        signed=zero_point.dtype == np.int8,
        **conv,
    )


def _output_is_quantized(graph: Graph, node: Any) -> bool:
    """Only then does onnxruntime fuse a conv into an integer one; otherwise it runs in float between the Q/DQ pairs.

    A ReLU in between is fused as well: it is what the codes from zero on stand for.
    """
    readers = graph.consumers.get(node.output[0], [])
    if len(readers) == 1 and readers[0].op_type == "Relu":
        readers = graph.consumers.get(readers[0].output[0], [])
    return len(readers) == 1 and readers[0].op_type == "QuantizeLinear"
