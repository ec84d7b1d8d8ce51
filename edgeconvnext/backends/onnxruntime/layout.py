"""The forms in which onnxruntime's CPU kernels take a network best: same function, other nodes.

torch's exporter writes what the module says: images with channels first, a transpose in front of every LayerNorm and back behind
every block, linears as MatMul and Add. Here that becomes what onnxruntime fuses.

  residual sums  channels last: no transpose is left around a block, the depthwise conv's own reordering does that work
  linears        Gemm with its bias (`onnx_linears`)
  patch convs    in int8 a linear over patches (`onnx_patches`)

The passes run on a graph that already has its readable names.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgeconvnext.backends.onnx.edit import (
    array_of,
    bypass,
    insert,
    is_stored,
    maker,
    order_of,
    stored,
    transposed,
)
from edgeconvnext.backends.onnxruntime.linears import join_reshapes, linears_to_convs, linears_to_gemm
from edgeconvnext.backends.onnxruntime.patches import patch_convs_to_linears
from edgeconvnext.targets import LayoutSection

TO_FIRST, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
CHANNELS_LAST = "_channels_last"
"""End of the names of residual sums that lie as (N, H, W, C)."""


def lay_out(model: ir.Model, layout: LayoutSection) -> None:
    """Rewrite `model` in place as `layout` says."""
    graph = model.graph
    patch_convs_to_linears(graph)
    if layout.residual == "channels_last":
        keep_residuals_channels_last(graph)
    if layout.linears == "gemm":
        linears_to_gemm(graph)
        join_reshapes(graph)
    elif layout.linears == "conv":
        linears_to_convs(graph)
    cancel_transposes(graph)
    passes.RemoveUnusedNodesPass()(model)


def keep_residuals_channels_last(graph: ir.Graph) -> None:
    """Move the transposes behind the blocks through the sums and what follows, to where they meet their own opposites."""
    for node in list(graph):
        if node.op_type == "Add" and any(order_of(value) == TO_FIRST for value in node.inputs):
            name = str(node.outputs[0].name)
            if any(value is None or is_stored(value) or value.shape is None for value in node.inputs):
                continue
            terms = [transposed(graph, node, value, TO_LAST, f"{value.name}_moved") for value in node.inputs if value]
            total = insert(graph, node, "Add", terms, f"{name}{CHANNELS_LAST}")
            total.shape = terms[0].shape
            bypass(graph, node, transposed(graph, node, total, TO_FIRST, f"{name}_channels_first"))
        elif node.op_type == "ReduceMean" and order_of(node.inputs[0]) == TO_FIRST and _is_pooling(node):
            source = maker(node.inputs[0])
            assert source is not None
            node.replace_input_with(0, source.inputs[0])
            node.replace_input_with(1, stored(graph, f"{node.outputs[0].name}_axes", np.array([1, 2])))
        elif node.op_type == "Transpose":
            _cancel(graph, node)


def cancel_transposes(graph: ir.Graph) -> None:
    """Remove transposes that undo the one in front of them, and keep one of those that do the same to the same tensor."""
    seen: dict[tuple[ir.Value | None, tuple[int, ...] | None], ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Transpose" and not _cancel(graph, node):
            first = seen.setdefault((node.inputs[0], order_of(node.outputs[0])), node.outputs[0])
            if first is not node.outputs[0]:
                bypass(graph, node, first)


def _cancel(graph: ir.Graph, node: ir.Node) -> bool:
    """Remove a Transpose that undoes the one in front of it."""
    before, order = order_of(node.inputs[0]), order_of(node.outputs[0])
    if before is None or order is None or [before[axis] for axis in order] != list(range(len(order))):
        return False
    opposite = maker(node.inputs[0])
    assert opposite is not None
    bypass(graph, node, opposite.inputs[0])
    return True


def _is_pooling(node: ir.Node) -> bool:
    """Whether a ReduceMean takes rows and columns away."""
    return (
        len(node.inputs) > 1
        and is_stored(node.inputs[1])
        and sorted(int(axis) % 4 for axis in array_of(node.inputs[1])) == [2, 3]
        and "keepdims" in node.attributes
        and not node.attributes["keepdims"].as_int()
    )
