"""Outputs of single blocks, so that a device can say where it begins to compute something else than was simulated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgeconvnext.backends.block_outputs import COMPARED_IMAGES, LayerOutput, sample
from edgeconvnext.backends.onnxruntime.layout import CHANNELS_LAST

# Stages of blocks are what all networks have in common (`model.network`).
_BLOCK = re.compile(r"stages\.\d+\.\d+")


def layer_outputs(simulation: GraphModule, model: Path, images: np.ndarray) -> tuple[LayerOutput, ...]:
    """Return what each block of the simulated graph puts out for a few images, with the name it has in the ONNX file.

    simulation: `quantization.simulate.simulator` of the program that `model` was exported from. images: (N, C, H, W), as both take
    them.
    Residual additions are matched in their order; where file and graph do not have the same number, nothing is returned.
    """
    import onnx

    graph_adds = list(_residual_adds(simulation))
    file_adds = list(_file_adds(onnx.load(model, load_external_data=False).graph))
    if len(graph_adds) != len(file_adds):
        return ()
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
    found: list[LayerOutput] = []
    for block, node in last_of_block.items():
        output = kept[block].transpose(0, 2, 3, 1) if tensors[node].endswith(CHANNELS_LAST) else kept[block]
        flat = output.reshape(len(output), -1)
        found.append(LayerOutput(block, tensors[node], flat.shape[1], sample(flat)))
    return tuple(found)


def added_outputs(outputs: Iterable[LayerOutput], there: frozenset[str] = frozenset()) -> bytes:
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
    paths = (str(path) for path, _ in reversed(list(stack.values())))
    return next((path for path in paths if _BLOCK.fullmatch(path)), None)
