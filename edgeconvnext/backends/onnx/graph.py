"""Graph passes between torch's exporter and the ONNX file: readable names, weights stored as the kernels want them.

Every pass changes the graph in place and keeps its function. QuantizeLinear and DequantizeLinear nodes are never
folded: a folded weight would be a float weight.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import onnx_ir as ir

from edgeconvnext.backends.onnx.edit import array_of, is_stored, store
from edgeconvnext.model.enclosed import WHOLE

# "p.inner.stages.0.1.pwconv1.bias": the part that names the layer starts at one of ConvNeXt's own children.
_LAYER_PATH = re.compile(r"(?:^|\.)((?:downsample_layers|stages)\.\d+\..+|(?:norm|head)\.(?:weight|bias))$")
# A larger module's paths are its own, and begin behind the wrapper's attribute.
_PATH_IN_WHOLE = re.compile(rf"(?:^|\.){WHOLE}\.(.+)$")
_FREE_AXIS = re.compile(r"(?:(\d+)\*)?(\w+)")
_PARAMETER_TYPES = {"Conv", "MatMul", "Gemm", "LayerNormalization"}


def fold_constant_casts(graph: ir.Graph) -> None:
    """Replace Cast(initializer) by an initializer of that type: scales, zero points and nothing else reach here."""
    for node in list(graph):
        if node.op_type == "Cast" and is_stored(node.inputs[0]):
            dtype = ir.DataType(node.attributes["to"].as_int())
            _replace_by_array(graph, node, array_of(node.inputs[0]).astype(dtype.numpy()))


def block_dequantize(graph: ir.Graph) -> None:
    """Turn DequantizeLinear of (out * blocks, block) and Reshape to (out, in) into one blocked DequantizeLinear.

    ONNX has block_size from opset 21 on; scales become (out, blocks) and the channel axis 1, along which blocks lie.
    """
    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "Reshape" and node.inputs[0] is not None else None
        if source is None or source.op_type != "DequantizeLinear" or not is_stored(source.inputs[0]):
            continue
        out, columns = (int(side) for side in array_of(node.inputs[1]))
        block = array_of(source.inputs[0]).shape[1]
        for value, shape in zip(
            source.inputs, ((out, columns), (out, columns // block), (out, columns // block)), strict=True
        ):
            store(value, array_of(value).reshape(shape))
        source.attributes["axis"] = ir.AttrInt64("axis", 1)
        source.attributes["block_size"] = ir.AttrInt64("block_size", block)
        source.outputs[0].shape = ir.Shape((out, columns))
        node.outputs[0].replace_all_uses_with(source.outputs[0])
        graph.remove(node, safe=True)


def store_linear_weights_transposed(graph: ir.Graph) -> None:
    """Turn x @ transpose(W) into x @ W' with W' stored as (in, out).

    torch.nn.Linear holds (out, in). A Transpose behind the weight's DequantizeLinear keeps runtimes from seeing a
    quantised weight, so the int8 codes are transposed instead and the channel axis becomes 1.
    """
    for node in list(graph):
        if node.op_type != "Transpose" or list(node.attributes["perm"].as_ints()) != [1, 0]:
            continue
        source = node.inputs[0]
        if source is None:
            continue
        dequantize = source.producer()
        if is_stored(source):
            _replace_by_array(graph, node, np.ascontiguousarray(array_of(source).T))
        elif dequantize is not None and dequantize.op_type == "DequantizeLinear" and is_stored(dequantize.inputs[0]):
            _transpose_dequantized(graph, dequantize)
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node, safe=True)


def name_after_layers(graph: ir.Graph) -> None:
    """Name weighted nodes, their weights and scales by module path, "stages.0.1.pwconv1", and the free axes.

    The path is read from the bias, which keeps its parameter's name through quantization. A layer that is called several times,
    as a detector's head is for each level, is "head.conv" and then "head.conv_2".
    """
    calls: Counter[str] = Counter()
    for value in list(graph.initializers.values()):
        name = value.name or ""
        if match := _PATH_IN_WHOLE.search(name) or _LAYER_PATH.search(name):
            value.name = match[1]
    for node in graph:
        path = _layer_path(node)
        if path is None:
            continue
        calls[path] += 1
        shared = f"{path}.weight_dequantize"
        path = path if calls[path] == 1 else f"{path}_{calls[path]}"
        node.name = path
        weight = node.inputs[1]
        dequantize = weight.producer() if weight is not None else None
        if dequantize is not None and dequantize.op_type == "DequantizeLinear" and dequantize.name != shared:
            dequantize.name = f"{path}.weight_dequantize"
            for source, part in zip(dequantize.inputs, ("weight", "weight_scale", "weight_zero_point"), strict=True):
                _name_own(source, {dequantize}, f"{path}.{part}")
        _name_input_pair(node, path)
    _name_free_axes(graph)


def drop_origins(model: ir.Model) -> None:
    """Remove what the exporter notes on nodes and values: stack traces with file paths, and class names."""
    graph = model.graph
    for holder in (model, graph, *graph, *graph.inputs, *graph.initializers.values()):
        holder.metadata_props.clear()
        holder.doc_string = None
    for node in graph:
        for output in node.outputs:
            output.metadata_props.clear()
            output.doc_string = None


def _layer_path(node: ir.Node) -> str | None:
    """Module path of a weighted node: from its own bias, or from the bias added behind a MatMul."""
    if node.op_type not in _PARAMETER_TYPES:
        return None
    biases = list(node.inputs[2:])
    if node.op_type == "MatMul":
        biases = [value for user, _ in node.outputs[0].uses() if user.op_type == "Add" for value in user.inputs]
    for bias in biases:
        if bias is not None and is_stored(bias) and (bias.name or "").endswith(".bias"):
            return str(bias.name).removesuffix(".bias")
    return None


def _name_input_pair(node: ir.Node, path: str) -> None:
    """Name the Q/DQ pair in front of a weighted node."""
    source = node.inputs[0]
    dequantize = source.producer() if source is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return
    quantize = dequantize.inputs[0].producer() if dequantize.inputs[0] is not None else None
    for pair_node, side in ((quantize, "input_quantize"), (dequantize, "input_dequantize")):
        if pair_node is not None:
            pair_node.name = f"{path}.{side}"
            for stored, part in zip(pair_node.inputs[1:], ("scale", "zero_point"), strict=True):
                _name_own(stored, {pair_node}, f"{path}.{side}_{part}")


def _name_own(value: ir.Value | None, owners: set[ir.Node], name: str) -> None:
    """Name a stored tensor that only `owners` use; the exporter shares equal zero points between layers."""
    if value is not None and is_stored(value) and {user for user, _ in value.uses()} <= owners:
        value.name = name


def _name_free_axes(graph: ir.Graph) -> None:
    """Call the image's free axes batch, height and width, and a feature map's by their share: "height/8"."""
    names: dict[str, str] = {}
    image = graph.inputs[0].shape or ()
    for dim, name in zip(image, ("batch", "channels", "height", "width"), strict=False):
        found = _FREE_AXIS.fullmatch(str(dim.value)) if isinstance(dim, ir.SymbolicDim) else None
        if found is not None:  # "32*s5": steps of 32 pixels, so that "4*s5" is an eighth of them
            stride, symbol = int(found[1] or 1), found[2]
            shares = ((stride // divisor, divisor) for divisor in range(1, stride + 1) if stride % divisor == 0)
            for factor, divisor in shares:
                named = name if divisor == 1 else f"{name}/{divisor}"
                names[symbol if factor == 1 else f"{factor}*{symbol}"] = named
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            dims = [
                ir.SymbolicDim(names.get(str(d.value))) if isinstance(d, ir.SymbolicDim) else d for d in value.shape
            ]
            value.shape = ir.Shape(dims)


def _transpose_dequantized(graph: ir.Graph, dequantize: ir.Node) -> None:
    """Transpose the two-dimensional codes of a weight's DequantizeLinear and its channel axis."""
    codes = dequantize.inputs[0]
    if codes is None or len(codes.uses()) != 1 or len(dequantize.outputs[0].uses()) != 1:
        raise AssertionError(f"{dequantize.name} shares its weight; every linear of a ConvNeXt has its own")
    array = np.ascontiguousarray(array_of(codes).T)
    store(codes, array)
    if "block_size" in dequantize.attributes:
        for value in dequantize.inputs[1:]:
            store(value, np.ascontiguousarray(array_of(value).T))
    dequantize.outputs[0].shape = ir.Shape(array.shape)
    dequantize.attributes["axis"] = ir.AttrInt64("axis", 1 - dequantize.attributes["axis"].as_int())


def _replace_by_array(graph: ir.Graph, node: ir.Node, array: np.ndarray) -> None:
    result = node.outputs[0]
    name = f"{node.inputs[0].name}_{node.op_type.lower()}"  # type: ignore[union-attr]
    constant = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    if name not in graph.initializers:
        graph.register_initializer(constant)
    result.replace_all_uses_with(graph.initializers[name])
    graph.remove(node, safe=True)
