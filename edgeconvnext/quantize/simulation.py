"""Running a quantised graph on a CPU: the same numbers as the exported program, in fewer passes over memory.

An exported Q/DQ pair is seven elementwise operators, and CPUs have no fast float16 convolution. Run as exported, the
simulation spends most of its time there; the rewrites below only exist in the module that runs and are never exported.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

import edgeconvnext.quantize.program  # noqa: F401  registers the Q/DQ operators

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_DEQUANTIZE_WEIGHT = torch.ops.quantized_decomposed.dequantize_per_channel.default
_WEIGHTED = {torch.ops.aten.conv2d.default, torch.ops.aten.linear.default}
_TO = torch.ops.aten.to.dtype


def simulation_module(program: ExportedProgram) -> GraphModule:
    """Return `program` as a module for fast evaluation on a CPU: logits (N, classes) from images (N, C, H, W).

    Takes float32 programs and those of `to_float16`, with or without Q/DQ. Q/DQ pairs become one fused operator with the
    same rounding, weights are dequantised once. Float16 convolutions and linears get float32 copies of their float16
    inputs, keep sums in float32 as GPUs do, and round the result once to float16.
    """
    module = program.module(check_guards=False)
    if not isinstance(module, GraphModule):
        raise AssertionError("an exported program unlifts to a graph module")
    for node in list(module.graph.nodes):
        if node.target == _DEQUANTIZE and isinstance(node.args[0], Node) and node.args[0].target == _QUANTIZE:
            _fuse_pair(module, node.args[0], node)
        elif node.target == _DEQUANTIZE_WEIGHT:
            _dequantize_now(module, node)
    for node in list(module.graph.nodes):
        if node.target in _WEIGHTED and node.meta["val"].dtype == torch.float16:
            _compute_in_float32(module, node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def _fuse_pair(module: GraphModule, quantize: Node, dequantize: Node) -> None:
    source, scale, zero_point, low, high, _ = quantize.args
    graph = module.graph
    with graph.inserting_before(dequantize):
        if isinstance(source, Node) and source.meta["val"].dtype != torch.float32:
            source = graph.call_function(_TO, (source, torch.float32))
        fused = graph.call_function(
            torch.ops.aten.fake_quantize_per_tensor_affine.default, (source, scale, zero_point, low, high)
        )
        if dequantize.meta["val"].dtype != torch.float32:
            fused = graph.call_function(_TO, (fused, dequantize.meta["val"].dtype))
    dequantize.replace_all_uses_with(fused)


def _dequantize_now(module: GraphModule, node: Node) -> None:
    tensors = [_stored(module, str(argument.target)) for argument in node.all_input_nodes]
    weight = _DEQUANTIZE_WEIGHT(*tensors, *node.args[3:], **node.kwargs)
    name = f"{node.name}_value"
    module.register_buffer(name, weight)
    with module.graph.inserting_before(node):
        stored = module.graph.get_attr(name)
    stored.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(stored)


def _stored(module: GraphModule, name: str) -> torch.Tensor:
    path, _, attribute = name.rpartition(".")
    tensor: torch.Tensor = getattr(module.get_submodule(path), attribute)
    return tensor


def _compute_in_float32(module: GraphModule, node: Node) -> None:
    graph = module.graph
    for tensor in node.all_input_nodes:
        with graph.inserting_before(node):
            node.replace_input_with(tensor, graph.call_function(_TO, (tensor, torch.float32)))
    with graph.inserting_after(node):
        half = graph.call_function(_TO, (node, torch.float16))
    node.replace_all_uses_with(half, delete_user_cb=lambda user: user is not half)
