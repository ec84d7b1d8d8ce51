"""Small edits of an ONNX graph in place: what makes a value, a node put in, a node taken out, a tensor stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def maker(value: ir.Value | None, operator: str | None = None) -> ir.Node | None:
    """Return the node that makes `value`; with `operator`, only where it is one of these."""
    node = value.producer() if value is not None else None
    return node if node is not None and operator in (None, node.op_type) else None


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value`, or None where several do or the graph itself puts it out."""
    users = [user for user, _ in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def insert(
    graph: ir.Graph, before: ir.Node, operator: str, inputs: Sequence[ir.Value | None], name: str, **axes: object
) -> ir.Value:
    """Put a node of one output, of the element type of its first input, in front of `before`; return that output."""
    attributes = [
        ir.AttrInt64s(key, value) if isinstance(value, tuple) else ir.AttrInt64(key, value)  # type: ignore[arg-type]
        for key, value in axes.items()
    ]
    node = ir.Node("", operator, inputs, attributes=attributes, num_outputs=1, name=name)
    result = node.outputs[0]
    result.name = name
    if inputs[0] is not None:
        result.type = inputs[0].type
    graph.insert_before(before, node)
    return result


def bypass(graph: ir.Graph, node: ir.Node, instead: ir.Value | None) -> None:
    """Let everything that reads `node` read `instead`, and remove `node`."""
    assert instead is not None
    node.outputs[0].replace_all_uses_with(instead, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def order_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the permutation of the Transpose that makes `value`, if one does."""
    node = maker(value, "Transpose")
    return None if node is None else tuple(node.attributes["perm"].as_ints())


def transposed(
    graph: ir.Graph, before: ir.Node, source: ir.Value | None, order: tuple[int, ...], name: str
) -> ir.Value:
    """Return `source` transposed: what a Transpose in front of it took, where that undoes `order`, else a new one's output."""
    assert source is not None and source.shape is not None
    earlier = order_of(source)
    if earlier is not None and [earlier[axis] for axis in order] == list(range(len(order))):
        opposite = maker(source)
        assert opposite is not None and opposite.inputs[0] is not None
        return opposite.inputs[0]
    result = insert(graph, before, "Transpose", [source], name, perm=order)
    result.shape = ir.Shape([source.shape[axis] for axis in order])
    return result


def reshaped(graph: ir.Graph, before: ir.Node, source: ir.Value, sides: Sequence[int], name: str) -> ir.Value:
    """Return `source` as (free, *sides)."""
    target = stored(graph, f"{name}_shape", np.array((-1, *sides), np.int64))
    result = insert(graph, before, "Reshape", [source, target], name)
    result.shape = ir.Shape((ir.SymbolicDim(None), *sides))
    return result


def stored(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a stored tensor to the graph."""
    value = ir.Value(name=name)
    store(value, array, ir.DataType.from_numpy(array.dtype))
    graph.register_initializer(value)
    return value


def store(value: ir.Value | None, array: np.ndarray, dtype: ir.DataType | None = None) -> None:
    """Replace what a stored tensor holds; without `dtype` in its own element type."""
    assert value is not None
    if dtype is None:
        assert value.const_value is not None
        dtype = value.const_value.dtype
    value.const_value = ir.tensor(array, dtype=dtype, name=value.name)
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(dtype)


def is_stored(value: ir.Value | None) -> bool:
    """Whether `value` is a stored tensor."""
    return value is not None and value.is_initializer() and value.const_value is not None


def array_of(value: ir.Value | None) -> np.ndarray:
    """Return what a stored tensor holds."""
    if value is None or value.const_value is None:
        raise AssertionError("not a stored tensor")
    return np.asarray(value.const_value.numpy())
