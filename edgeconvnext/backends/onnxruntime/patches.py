"""Quantised convs over patches as linears.

onnxruntime has an integer conv only where the output is quantised too; any other quantised conv runs in float behind a
DequantizeLinear, slower than float alone. ConvNeXt's downsampling convs are linears over 2 x 2 patches that do not overlap, and
the output of a linear may stay float:

    codes (N, H, W, C) -> (N, H/2, 2, W/2, 2C) -> swap the middle axes -> (N, H/2, W/2, 4C), times weights (4C, out)

Where height and width are free, a Reshape can compute one side of its result only, so that columns are joined before rows:

    codes (N, H, W, C) -> (N, H, W/2, 2C) -> swap rows and columns -> (N, W/2, H, 2C) -> (N, W/2, H/2, 4C)
"""

from __future__ import annotations

from collections.abc import Sequence

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


def patch_convs_to_linears(graph: ir.Graph) -> None:
    """Turn quantised convs of patches that do not overlap, and whose output stays float, into MatMul and Add."""
    for conv in [node for node in graph if node.op_type == "Conv"]:
        dequantize, weight = maker(conv.inputs[0], "DequantizeLinear"), maker(conv.inputs[1], "DequantizeLinear")
        quantize = maker(dequantize.inputs[0], "QuantizeLinear") if dequantize is not None else None
        if dequantize is None or quantize is None or weight is None or not is_stored(weight.inputs[0]):
            continue
        source, shape = quantize.inputs[0], conv.inputs[0].shape  # type: ignore[union-attr]
        alone = only_user(quantize.outputs[0]) and only_user(dequantize.outputs[0])
        if not alone or shape is None or not _takes_patches(conv) or _feeds_quantizer(conv):
            continue
        codes, path = array_of(weight.inputs[0]), conv.name or ""
        batch, channels, height, width = shape[0], int(shape[1]), shape[2], shape[3]  # type: ignore[arg-type]
        out, _, rows, columns = codes.shape
        free = not (isinstance(height, int) and isinstance(width, int))
        if not free and (height % rows or width % columns):  # type: ignore[operator]
            continue

        quantize.replace_input_with(0, transposed(graph, quantize, source, (0, 2, 3, 1), f"{path}.input_channels_last"))
        quantize.outputs[0].shape = ir.Shape((batch, height, width, channels))
        if free:
            high, wide, back = None, None, (0, 3, 2, 1)
            joined = _joined_from_any_size(graph, dequantize, quantize.outputs[0], channels, rows, columns, path)
        else:
            high, wide, back = height // rows, width // columns, (0, 3, 1, 2)  # type: ignore[operator]
            apart = (high, rows, wide, columns * channels)
            cut = reshaped(graph, dequantize, quantize.outputs[0], apart, f"{path}.cut")
            patches = transposed(graph, dequantize, cut, (0, 1, 3, 2, 4), f"{path}.patches")
            joined = reshaped(graph, dequantize, patches, (high, wide, rows * columns * channels), f"{path}.joined")
        dequantize.replace_input_with(0, joined)
        dequantize.outputs[0].shape = joined.shape

        store(weight.inputs[0], np.ascontiguousarray(codes.transpose(2, 3, 1, 0).reshape(-1, out)))
        weight.attributes["axis"] = ir.AttrInt64("axis", 1)
        weight.outputs[0].shape = weight.inputs[0].shape  # type: ignore[union-attr]
        result = insert(graph, conv, "MatMul", [dequantize.outputs[0], weight.outputs[0]], path)
        result.shape = ir.Shape((batch, high, wide, out))
        if len(conv.inputs) > 2:
            result = insert(graph, conv, "Add", [result, conv.inputs[2]], f"{path}.bias_add")
            result.shape = ir.Shape((batch, high, wide, out))
        bypass(graph, conv, transposed(graph, conv, result, back, f"{path}.channels_first"))


def _joined_from_any_size(
    graph: ir.Graph, before: ir.Node, source: ir.Value, channels: int, rows: int, columns: int, path: str
) -> ir.Value:
    """Return patches (N, W / columns, H / rows, rows * columns * channels) of `source`, (N, H, W, channels)."""
    beside = _last_axes_joined(graph, before, source, columns * channels, f"{path}.cut")
    turned = transposed(graph, before, beside, (0, 2, 1, 3), f"{path}.patches")
    return _last_axes_joined(graph, before, turned, rows * columns * channels, f"{path}.joined")


def _last_axes_joined(graph: ir.Graph, before: ir.Node, source: ir.Value, length: int, name: str) -> ir.Value:
    """Return (N, A, B, C) as (N, A, B * C / length, length). A 0 in a Reshape's target keeps that axis."""
    target = stored(graph, f"{name}_shape", np.array((0, 0, -1, length), np.int64))
    result = insert(graph, before, "Reshape", [source, target], name)
    result.shape = ir.Shape((None, None, None, length))
    return result


def _takes_patches(conv: ir.Node) -> bool:
    """Whether every pixel is in exactly one patch of several: strides as long as the kernel's sides, no border, one group."""

    def numbers(name: str, default: Sequence[int]) -> list[int]:
        return list(conv.attributes[name].as_ints()) if name in conv.attributes else list(default)

    kernel = [int(side) for side in conv.inputs[1].shape[2:]]  # type: ignore[union-attr,index,arg-type]
    group = conv.attributes["group"].as_int() if "group" in conv.attributes else 1
    return (
        numbers("strides", (1, 1)) == kernel != [1, 1]
        and not any(numbers("pads", (0, 0, 0, 0)))
        and numbers("dilations", (1, 1)) == [1, 1]
        and group == 1
    )


def _feeds_quantizer(conv: ir.Node) -> bool:
    """Whether a ReLU or nothing stands between a conv and a quantizer: then onnxruntime has an integer conv for it."""
    user = only_user(conv.outputs[0])
    if user is not None and user.op_type == "Relu":
        user = only_user(user.outputs[0])
    return user is not None and user.op_type == "QuantizeLinear"
