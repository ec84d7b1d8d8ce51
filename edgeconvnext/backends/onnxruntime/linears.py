"""Linears of an ONNX graph as Gemm or as 1 x 1 Conv, instead of MatMul and Add.

As a Gemm, onnxruntime runs a quantised linear and its bias as one QGemm. As MatMul and Add, the bias is a pass of its own; and
with a fixed batch onnxruntime itself makes a Gemm of the two, whose float bias then keeps it from becoming an integer one: int8
slower than float. So the bias is stored as int32 codes, in steps of the products; `quantize.program` has put it there already.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgeconvnext.backends.onnx.edit import (
    array_of,
    bypass,
    insert,
    is_stored,
    maker,
    only_user,
    reshaped,
    store,
    stored,
    transposed,
)

# Largest magnitude of a bias in steps of its products: int32 holds it together with a sum of 65,536 products of 255 * 64, or of
# 32,768 of 255 * 127.
_LARGEST_BIAS = 2**31 - 2**16 * 255 * 64 - 1
_BYTES = {ir.DataType.INT8, ir.DataType.UINT8}


def linears_to_gemm(graph: ir.Graph) -> None:
    """Turn x @ W + b into Reshape, Gemm, Reshape, with an int32 bias where both factors are 8-bit codes.

    What torch's exporter wrote as Gemm (the head) gets the int32 bias. Linears whose bias has no such codes stay as they are, and
    so do those over positions of a free height and width, which a Reshape could not give back.
    """
    for product, bias, add in list(_linears(graph)):
        path, source, weight = product.name or "", product.inputs[0], product.inputs[1]
        if source is None or weight is None or source.shape is None or weight.shape is None:
            continue
        places = add.outputs[0].shape
        if places is not None and len(places) != 2 and not all(isinstance(side, int) for side in places[1:]):
            continue
        factors = _byte_factors(product)
        if factors is not None:
            integer = _integer_bias(graph, product, bias, *factors)
            if integer is None:
                continue
            bias = integer
        rows = source
        if len(source.shape) != 2:
            sides = [int(side) for side in weight.shape[:1]]  # type: ignore[arg-type]
            if factors is None:
                rows = reshaped(graph, product, source, sides, f"{path}.rows")
            else:
                codes = factors[0].inputs[0]
                assert codes is not None
                factors[0].replace_input_with(0, reshaped(graph, factors[0], codes, sides, f"{path}.rows"))
                source.shape = ir.Shape((ir.SymbolicDim(None), *sides))
        result = insert(graph, add, "Gemm", [rows, weight, bias], path)
        result.shape = ir.Shape((ir.SymbolicDim(None), weight.shape[1]))
        positions = add.outputs[0].shape
        if positions is not None and len(positions) != 2:
            result = reshaped(graph, add, result, [int(side) for side in positions[1:]], f"{path}.positions")  # type: ignore[arg-type]
            result.shape = positions
        bypass(graph, add, result)
        graph.remove(product, safe=True)
    for gemm in [node for node in graph if node.op_type == "Gemm" and len(node.inputs) > 2]:
        factors = _byte_factors(gemm)
        if factors is not None and is_stored(gemm.inputs[2]):
            integer = _integer_bias(graph, gemm, gemm.inputs[2], *factors)
            if integer is not None:
                gemm.replace_input_with(2, integer)


def join_reshapes(graph: ir.Graph) -> None:
    """Keep rows as rows between two Gemms: Gemm, Reshape, GELU, QuantizeLinear, Reshape loses both Reshapes.

    Of two Reshapes in a row, the first goes.
    """
    for node in list(graph):
        if node.op_type != "Reshape":
            continue
        between: list[ir.Node] = []
        step = maker(node.inputs[0])
        while step is not None and step.op_type in ("Gelu", "Relu", "QuantizeLinear") and only_user(step.outputs[0]):
            between.append(step)
            step = maker(step.inputs[0])
        rows = step.inputs[0] if step is not None and step.op_type == "Reshape" else None
        if rows is not None and not between and len(rows.shape or ()) != 2:
            node.replace_input_with(0, rows)
            continue
        wanted = node.outputs[0].shape
        if rows is None or rows.shape is None or wanted is None or not len(rows.shape) == len(wanted) == 2:
            continue
        if rows.shape[1] != wanted[1]:
            continue
        if between:
            between[-1].replace_input_with(0, rows)
        for moved in between:
            moved.outputs[0].shape = rows.shape
        bypass(graph, node, between[0].outputs[0] if between else rows)


def linears_to_convs(graph: ir.Graph) -> None:
    """Turn x @ W + b over (N, H, W, C) into a 1 x 1 Conv between two transposes."""
    first, last = (0, 3, 1, 2), (0, 2, 3, 1)
    for product, bias, add in list(_linears(graph)):
        path, source, weight = product.name or "", product.inputs[0], product.inputs[1]
        dequantize = maker(weight, "DequantizeLinear")
        kept = weight if dequantize is None else dequantize.inputs[0]
        shape = add.outputs[0].shape
        if source is None or shape is None or len(shape) != 4 or not is_stored(kept):
            continue
        if dequantize is not None and "block_size" in dequantize.attributes:
            continue
        store(kept, np.ascontiguousarray(array_of(kept).T)[:, :, None, None])
        if dequantize is not None:
            dequantize.attributes["axis"] = ir.AttrInt64("axis", 0)
            dequantize.outputs[0].shape = kept.shape  # type: ignore[union-attr]
        pair = maker(source, "DequantizeLinear")
        if pair is None:
            source = transposed(graph, add, source, first, f"{path}.channels_first")
        else:
            codes = transposed(graph, pair, pair.inputs[0], first, f"{path}.channels_first")
            pair.replace_input_with(0, codes)
            source.shape = codes.shape
        conv = insert(graph, add, "Conv", [source, weight, bias], path)
        conv.shape = ir.Shape([shape[axis] for axis in first])
        bypass(graph, add, transposed(graph, add, conv, last, f"{path}.channels_last"))
        graph.remove(product, safe=True)


def _linears(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Value, ir.Node]]:
    """Yield each MatMul whose only user adds a stored bias to it: the MatMul, the bias, the Add."""
    for product in graph:
        add = only_user(product.outputs[0]) if product.op_type == "MatMul" else None
        if add is None or add.op_type != "Add":
            continue
        (bias,) = [value for value in add.inputs if value is not product.outputs[0]]
        if bias is not None and is_stored(bias) and bias.shape is not None and len(bias.shape) == 1:
            yield product, bias, add


def _byte_factors(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Return the DequantizeLinears of a linear's two factors where onnxruntime multiplies their codes."""
    activation, weight = maker(node.inputs[0], "DequantizeLinear"), maker(node.inputs[1], "DequantizeLinear")
    if activation is None or weight is None or "block_size" in weight.attributes:
        return None
    kinds = {None if value is None else value.dtype for value in (activation.inputs[2], weight.inputs[2])}
    return (activation, weight) if kinds <= _BYTES else None


def _integer_bias(
    graph: ir.Graph, node: ir.Node, bias: ir.Value | None, activation: ir.Node, weight: ir.Node
) -> ir.Value | None:
    """Store `bias` as int32 codes in steps of the products and return it dequantised; None where a code would not fit."""
    steps = (array_of(activation.inputs[1]).astype(np.float64) * array_of(weight.inputs[1])).astype(np.float32)
    codes = np.rint(array_of(bias).astype(np.float64) / steps)
    if not np.all(np.abs(codes) <= _LARGEST_BIAS):
        return None
    if bias is None or only_user(bias) is None:  # another call of the same layer reads it, in steps of its own
        bias = stored(graph, f"{node.name}.bias_codes", codes.astype(np.int32))
    else:
        store(bias, codes.astype(np.int32), ir.DataType.INT32)
    scale = stored(graph, f"{node.name}.bias_scale", np.ascontiguousarray(np.broadcast_to(steps, codes.shape)))
    result = insert(graph, node, "DequantizeLinear", [bias, scale], f"{node.name}.bias_dequantize", axis=0)
    result.shape, result.type = scale.shape, scale.type
    return result
