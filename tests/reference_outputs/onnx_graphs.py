"""Compare ONNX graphs by what they compute with: operators, attributes, connections, initializers; not by inner names.

A value is known by a digest of all that it is computed from. So renamed values are equal, and the first node of a graph that
the other graph has not is where the two part.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from .tensors import array_differences

Digest = str


@dataclass(frozen=True)
class Graph:
    """nodes: in the file's order, with their digests. results: digests of the graph's outputs, in order."""

    initializers: dict[str, np.ndarray]
    initializer_digests: dict[str, Digest]
    nodes: list[tuple[onnx.NodeProto, Digest]]
    results: list[Digest]


def onnx_differences(first: Path, second: Path) -> list[str]:
    """Compare interface, initializers and nodes; metadata, docs and the order of nodes and initializers do not count."""
    models = onnx.load(first), onnx.load(second)
    ours, theirs = _graph(models[0]), _graph(models[1])
    return (
        _interface_differences(*models)
        + _initializer_differences(ours, theirs)
        + _node_differences(ours, theirs)
        + ([] if ours.results == theirs.results else ["the outputs are computed from other values"])
    )


def _interface_differences(first: onnx.ModelProto, second: onnx.ModelProto) -> list[str]:
    ours, theirs = _interface(first), _interface(second)
    return [f"{name}: {ours[name]} -> {theirs[name]}" for name in ours if ours[name] != theirs[name]]


def _interface(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Describe what a graph needs and gives, and the parts that graphs of this package have not."""
    return {
        "opsets": sorted(f"{opset.domain} {opset.version}" for opset in model.opset_import),
        "inputs": _described(model.graph.input),
        "outputs": _described(model.graph.output),
        "functions": [str(function) for function in model.functions],
        "sparse initializers": [str(tensor) for tensor in model.graph.sparse_initializer],
    }


def _described(values: list[onnx.ValueInfoProto]) -> list[str]:
    """Write inputs or outputs as in "logits float32 [batch, 10]"."""
    lines = []
    for value in values:
        tensor = value.type.tensor_type
        sides = [side.dim_param or str(side.dim_value) for side in tensor.shape.dim]
        lines.append(f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type)} [{', '.join(sides)}]")
    return lines


def _initializer_differences(first: Graph, second: Graph) -> list[str]:
    """Compare contents, each as often as it occurs; those without a counterpart are compared by their names."""
    ours, theirs = _unmatched(first, second), _unmatched(second, first)
    return [f"initializer {line}" for line in array_differences(ours, theirs)]


def _unmatched(graph: Graph, other: Graph) -> dict[str, np.ndarray]:
    """Return the initializers of a graph for which the other one has none of the same content left."""
    left = Counter(other.initializer_digests.values())
    unmatched = {}
    for name, digest in graph.initializer_digests.items():
        if left[digest]:
            left[digest] -= 1
        else:
            unmatched[name] = graph.initializers[name]
    return unmatched


def _node_differences(first: Graph, second: Graph) -> list[str]:
    lines = []
    for graph, other, which in ((first, second, "first"), (second, first, "second")):
        left = Counter(digest for _, digest in other.nodes)
        for node, digest in graph.nodes:
            if left[digest]:
                left[digest] -= 1
            else:
                lines.append(f"node {_words(node)} only in the {which}")
    return lines


def _words(node: onnx.NodeProto) -> str:
    attributes = ", ".join(str(onnx.helper.printable_attribute(attribute)) for attribute in _sorted_attributes(node))
    return f"{node.op_type} {node.name!r} ({', '.join(node.input)}; {attributes}) -> {', '.join(node.output)}"


def _graph(model: onnx.ModelProto) -> Graph:
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    digests = {name: _array_digest(array) for name, array in initializers.items()}
    known = dict(digests)
    for position, value in enumerate(model.graph.input):
        known.setdefault(value.name, f"input {position}")
    nodes = []
    for node in model.graph.node:
        digest = _node_digest(node, known)
        nodes.append((node, digest))
        known |= {name: f"{digest} {position}" for position, name in enumerate(node.output) if name}
    return Graph(initializers, digests, nodes, [known[value.name] for value in model.graph.output])


def _array_digest(array: np.ndarray) -> Digest:
    return _digest([str(array.dtype), str(array.shape), np.ascontiguousarray(array).tobytes()])


def _node_digest(node: onnx.NodeProto, known: dict[str, Digest]) -> Digest:
    inputs = ",".join(known[name] if name else "" for name in node.input)
    attributes = [attribute.SerializeToString(deterministic=True) for attribute in _sorted_attributes(node)]
    return _digest([node.domain, node.op_type, inputs, str(len(node.output)), *attributes])


def _sorted_attributes(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    attributes = []
    for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
        plain = onnx.AttributeProto()
        plain.CopyFrom(attribute)
        plain.ClearField("doc_string")
        attributes.append(plain)
    return attributes


def _digest(parts: list[str | bytes]) -> Digest:
    state = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        state.update(len(content).to_bytes(8, "little") + content)
    return state.hexdigest()
