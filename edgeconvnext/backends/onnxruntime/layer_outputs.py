"""Outputs of single blocks, so that a device can say where it begins to compute something else than was simulated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgeconvnext.backends.onnxruntime.layout import CHANNELS_LAST

COMPARED_IMAGES = 4
COMPARED_VALUES = 512
"""Values compared of each block and image, evenly spread: enough for a ratio in dB, and little to carry."""


@dataclass(frozen=True)
class LayerOutput:
    """The output of one block. tensor: its name in the ONNX file; size: values of an image; values: (images, samples) float32.

    Sample i of n is the value at position i * size // n of the flattened tensor, in the file's order of axes.
    """

    name: str
    tensor: str
    size: int
    values: np.ndarray


def layer_outputs(simulation: GraphModule, model: Path, images: np.ndarray) -> list[LayerOutput]:
    """Return what each block of the simulated graph puts out for a few images, with the name it has in the ONNX file.

    simulation: `quantize.simulate.simulator` of the program that `model` was exported from. images: (N, C, H, W), as both take
    them.
    Residual additions are matched in their order; where file and graph do not have the same number, nothing is returned.
    """
    import onnx

    graph_adds = list(_residual_adds(simulation))
    file_adds = list(_file_adds(onnx.load(model, load_external_data=False).graph))
    if len(graph_adds) != len(file_adds):
        return []
    tensors = dict(zip(graph_adds, file_adds, strict=True))
    last_of_block = {block: node for node in graph_adds if (block := _block(node)) is not None}
    kept: dict[str, np.ndarray] = {}
    wanted = {node.name: block for block, node in last_of_block.items()}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n.name in wanted:
                kept[wanted[n.name]] = result.float().numpy()
            return result

    with torch.inference_mode():
        Recorder(simulation).run(torch.from_numpy(np.ascontiguousarray(images[:COMPARED_IMAGES])))
    found = []
    for block, node in last_of_block.items():
        output = kept[block].transpose(0, 2, 3, 1) if tensors[node].endswith(CHANNELS_LAST) else kept[block]
        flat = output.reshape(len(output), -1)
        found.append(LayerOutput(block, tensors[node], flat.shape[1], sample(flat)))
    return found


def sample(flat: np.ndarray, most: int = COMPARED_VALUES) -> np.ndarray:
    """Return `most` evenly spread values of each row, or all where there are fewer. flat: (N, size)."""
    size = flat.shape[1]
    count = min(most, size)
    return flat[:, [index * size // count for index in range(count)]].astype(np.float32)


def added_outputs(outputs: list[LayerOutput], there: frozenset[str] = frozenset()) -> bytes:
    """Return bytes that, put behind an ONNX file's, make these tensors outputs of it. there: outputs that it has already.

    A serialized protobuf message that is appended to another is merged into it: repeated fields, as the outputs of a graph, grow
    (https://protobuf.dev/programming-guides/encoding/#last-one-wins). So a board needs no onnx package for it.
    """
    import onnx

    part = onnx.ModelProto()
    for output in outputs:
        if output.tensor in there:
            continue
        part.graph.output.append(onnx.ValueInfoProto(name=output.tensor))
    return part.SerializeToString()


def _residual_adds(module: GraphModule) -> Iterator[Node]:
    """Additions of two computed tensors: those of residuals, and of a GRN."""
    for node in module.graph.nodes:
        if node.target == torch.ops.aten.add.Tensor:
            terms = [argument for argument in node.args[:2] if isinstance(argument, Node) and argument.op != "get_attr"]
            if len(terms) == 2:
                yield node


def _file_adds(graph: Any) -> Iterator[str]:
    """The same in an ONNX graph: output names of Adds whose terms both depend on the input."""
    constant = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        computed = [name for name in node.input if name and name not in constant]
        if not computed:
            constant |= set(node.output)
        elif node.op_type == "Add" and len(computed) == 2:
            yield node.output[0]


def _block(node: Node) -> str | None:
    """Return the path of the block a node belongs to: "stages.0.1"."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, kind in reversed(list(stack.values())):
        if str(kind).rpartition(".")[2].rstrip("'>") == "Block":
            return str(path)
    return None
