"""The simulation in float16: what a target computes that runs float16 around its int8 operators."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.program import free_axes

_HALF_MAX = torch.finfo(torch.float16).max
_HALF_TINY = 2.0**-24
# GRN sums squares over all positions: activations of 13 give 169 * 56 * 56 = 530,000, eight times float16's largest.
_SUMS_OF_SQUARES = {torch.ops.aten.square.default, torch.ops.aten.pow.Tensor_Scalar}


def to_float16(program: ExportedProgram) -> ExportedProgram:
    """Return `program` with its float side in float16; images and outputs stay float32.

    program: float32, with or without Q/DQ, one input image (N, C, H, W). Weights stay int8; scales are rounded to
    float16, because a typed ONNX stores them so. Sums of squares (GRN) stay float32, which float16 could not hold.
    Raises QuantizationError where a parameter does not fit float16.
    """
    module, axes = half_module(program), free_axes(program)
    shapes = (axes,) if axes else None
    return torch.export.export(module, program.example_inputs[0], dynamic_shapes=shapes, strict=False)


def half_module(program: ExportedProgram) -> GraphModule:
    """Return the same as a module to run, at once: its graph is edited and not traced anew, so that nodes lack shapes."""
    module = program.module(check_guards=False)
    if not isinstance(module, GraphModule):
        raise AssertionError("an exported program unlifts to a graph module")
    scales = _per_channel_scales(module)
    _halve_parameters(module, keep=scales)
    for node in list(module.graph.nodes):
        _round_scale(module, node)
    _cast_ends(module)
    _keep_sums_of_squares(module)
    module.graph.lint()
    module.recompile()
    return module


def _per_channel_scales(module: GraphModule) -> set[str]:
    """Names of the stored scales of per-channel weights: they stay float32 tensors that hold float16 values."""
    per_channel = torch.ops.quantized_decomposed.dequantize_per_channel.default
    return {str(node.args[1].target) for node in module.graph.nodes if node.target == per_channel}


def _halve_parameters(module: GraphModule, keep: set[str]) -> None:
    """Replace float parameters by float16 ones; the program's own tensors, which `module` shares, stay untouched."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
        if largest > _HALF_MAX:
            raise QuantizationError(
                f"{name} holds {largest:.3g}, and float16 ends at {_HALF_MAX:.0f}; this model cannot run on a float16 "
                "target. Fold the layer scale first, or use a float32 target such as onnx."
            )
        half = tensor.detach().half()
        if name in keep:
            # The smallest float16 above zero keeps a dead channel's scale legal: runtimes refuse a scale of zero.
            half = half.clamp(min=_HALF_TINY).float()
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(tensor, nn.Parameter):
            setattr(owner, attribute, nn.Parameter(half, requires_grad=False))
        else:
            owner.register_buffer(attribute, half)


def _round_scale(module: GraphModule, node: Node) -> None:
    """Round literal scales to float16 and let dequantize nodes give float16."""
    quantized = torch.ops.quantized_decomposed
    if node.target in (quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default):
        scale = max(float(torch.tensor(node.args[1]).half()), _HALF_TINY)
        node.update_arg(1, scale)
    if node.target in (quantized.dequantize_per_tensor.default, quantized.dequantize_per_channel.default):
        node.kwargs = {**node.kwargs, "out_dtype": torch.float16}


def _cast_ends(module: GraphModule) -> None:
    """Cast the image to float16 at the entrance and the outputs back to float32."""
    graph = module.graph
    image = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(image):
        half = graph.call_function(torch.ops.aten.to.dtype, (image, torch.float16))
    image.replace_all_uses_with(half, delete_user_cb=lambda user: user is not half)
    output = next(node for node in graph.nodes if node.op == "output")
    for result in torch.utils._pytree.tree_leaves(output.args):
        with graph.inserting_before(output):
            single = graph.call_function(torch.ops.aten.to.dtype, (result, torch.float32))
        output.replace_input_with(result, single)


def _keep_sums_of_squares(module: GraphModule) -> None:
    """Run everything that only depends on a square in float32, up to the operator that meets a float16 tensor again."""
    graph = module.graph
    single: set[Node] = set()
    for node in list(graph.nodes):
        tensors = [argument for argument in node.all_input_nodes if argument.op != "get_attr"]
        if node.target in _SUMS_OF_SQUARES:
            with graph.inserting_before(node):
                node.replace_input_with(
                    tensors[0], graph.call_function(torch.ops.aten.to.dtype, (tensors[0], torch.float32))
                )
            single.add(node)
        elif tensors and all(tensor in single for tensor in tensors):
            single.add(node)
    for node in single:
        outside = [user for user in node.users if user not in single]
        if outside:
            with graph.inserting_after(node):
                half = graph.call_function(torch.ops.aten.to.dtype, (node, torch.float16))
            for user in outside:
                user.replace_input_with(node, half)
