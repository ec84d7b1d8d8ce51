"""Run the quantised graph quickly on a CPU: the same numbers as its Q/DQ nodes give, without doing their work one by one."""

from __future__ import annotations

import itertools
from typing import Any, Literal, cast

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

import edgeconvnext.quantization.program  # noqa: F401  registers the Q/DQ operators
from edgeconvnext.model.program_float16 import half_module

FloatType = Literal["float32", "float16"]
_Q = torch.ops.quantized_decomposed
_MULTIPLIED = {torch.ops.aten.conv2d.default, torch.ops.aten.linear.default}


def simulator(program: ExportedProgram, float_type: FloatType = "float32") -> GraphModule:
    """Return a module that computes what `program` computes: images (N, C, H, W) to logits (N, num_classes).

    program: float32. float_type: what its float side is computed in, as `quantize.float16.to_float16` has it.
    Weights are dequantised once instead of at every call; a quantize node and the dequantize node behind it become one fake
    quantize; convs and linears in float16 multiply in float32 and round their output to float16, as hardware does, because
    a CPU's own float16 products are up to eighty times slower.
    """
    half = float_type == "float16"
    module = half_module(program) if half else cast(GraphModule, program.module(check_guards=False))
    constants = _Constants(module)
    for node in list(module.graph.nodes):
        if node.target == _Q.dequantize_per_channel.default and node.args[0].op == "get_attr":
            constants.replace(node)
        elif node.target == _Q.dequantize_per_tensor.default:
            _fake_quantize(module, node)
    for node in list(module.graph.nodes):
        if half and node.target in _MULTIPLIED:
            _multiply_in_float32(module, node, constants)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


class _Constants:
    """Stored tensors of the module, and new ones computed from them."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self._numbers = itertools.count()

    def value(self, argument: Any) -> Any:
        if not isinstance(argument, Node):
            return argument
        owner: Any = self.module
        for part in str(argument.target).split("."):
            owner = getattr(owner, part)
        return owner.detach()

    def store(self, value: torch.Tensor, before: Node) -> Node:
        name = f"_simulated_constant_{next(self._numbers)}"
        self.module.register_buffer(name, value)
        with self.module.graph.inserting_before(before):
            return self.module.graph.get_attr(name)

    def replace(self, node: Node) -> None:
        """Compute `node`, whose arguments are all stored, now."""
        value = node.target(*map(self.value, node.args), **node.kwargs)  # type: ignore[operator]
        node.replace_all_uses_with(self.store(value, node))
        self.module.graph.erase_node(node)


def _fake_quantize(module: GraphModule, dequantize: Node) -> None:
    """Merge a quantize node with the dequantize node behind it: round to the grid in one operator, in the result's type."""
    quantize = dequantize.args[0]
    assert isinstance(quantize, Node)
    if quantize.target != _Q.quantize_per_tensor.default:
        return
    source, scale, zero_point, low, high, _ = quantize.args
    assert isinstance(source, Node)
    with module.graph.inserting_before(dequantize):
        # Codes are found in float32 also where the tensor is float16, as Q/DQ nodes do.
        single = module.graph.call_function(torch.ops.aten.to.dtype, (source, torch.float32))
        rounded = module.graph.call_function(
            torch.ops.aten.fake_quantize_per_tensor_affine.default, (single, scale, zero_point, low, high)
        )
        if dequantize.kwargs.get("out_dtype") == torch.float16:
            rounded = module.graph.call_function(torch.ops.aten.to.dtype, (rounded, torch.float16))
    dequantize.replace_all_uses_with(rounded)
    module.graph.erase_node(dequantize)


def _multiply_in_float32(module: GraphModule, node: Node, constants: _Constants) -> None:
    """Give a float16 conv or linear float32 arguments and round its output to float16."""
    graph = module.graph
    for argument in node.all_input_nodes:
        if argument.op == "get_attr":
            single = constants.store(constants.value(argument).float(), node)
        else:
            with graph.inserting_before(node):
                single = graph.call_function(torch.ops.aten.to.dtype, (argument, torch.float32))
        node.replace_input_with(argument, single)
    with graph.inserting_after(node):
        half = graph.call_function(torch.ops.aten.to.dtype, (node, torch.float16))
    node.replace_all_uses_with(half, delete_user_cb=lambda user: user is not half)
