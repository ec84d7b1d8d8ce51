"""Ready an exported program for Core ML: one image in, channels first, and nothing that float16 cannot hold.

Core ML computes in float16, with 5 bits of exponent: above 65504 a value is infinite, below 2^-14 = 6.1e-5 it loses
digits, and hardware may take it for zero. All that changes here are multiplications by a power of two and its inverse,
which floating point does without rounding.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgeconvnext.backends.constants import tensor_of
from edgeconvnext.errors import ExportError

HALF_LARGEST = 65504.0
HALF_SMALLEST_NORMAL = 2.0**-14

_WEIGHTED = {torch.ops.aten.conv2d.default, torch.ops.aten.linear.default}
# Compared as text, because these operators exist only once torchao was imported, which a float program does not need.
_DEQUANTIZE_TENSOR = "quantized_decomposed.dequantize_per_tensor.default"
_DEQUANTIZE_CHANNEL = "quantized_decomposed.dequantize_per_channel.default"


@dataclass(frozen=True)
class LayerWeight:
    """Weight and bias of one conv or linear as the simulation multiplies them, in forward order.

    weight: int8 codes where `scale` is there, else float32; (out, ...). bias: float32, (out,).
    scale: one per output channel, times the scale of the layer's quantised input: what an int8 product is worth.
    """

    name: str
    weight: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor


class _ImageNetwork(nn.Module):
    """The network with its input named "image", and class probabilities in front of the logits where asked for."""

    def __init__(self, network: nn.Module, probabilities: bool) -> None:
        super().__init__()
        self.network = network
        self.probabilities = probabilities

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.network(image)
        if self.probabilities:
            return found.softmax(dim=-1), found
        return found if isinstance(found, tuple) else (found,)


def single_image_program(
    program: ExportedProgram, *, probabilities: bool, outputs: tuple[str, ...] = ("logits",)
) -> ExportedProgram:
    """Return `program` for one image, channels first and safe in float16: `outputs`, behind "probabilities" if asked for.

    program: float32, with or without Q/DQ, one input (N, C, H, W). It is left as it was.
    Raises ExportError where a weight does not fit float16, or an operator is none of a ConvNeXt's.
    """
    from edgeconvnext.backends.coreml.layout import channels_first

    module = graph_module(program)
    refuse_overflow(module)
    lift_small_scales(module)
    scale_sums_of_squares(module)
    channels_first(module)
    example = program.example_inputs[0][0]  # type: ignore[index]
    image = torch.zeros(1, *example.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        single = torch.export.export(_ImageNetwork(module, probabilities), (image,), strict=False).run_decompositions(
            {}
        )
    names = ("probabilities", *outputs) if probabilities else outputs
    (output,) = (node for node in single.graph.nodes if node.op == "output")
    for node, name in zip(output.args[0], names, strict=True):
        former, node.name = node.name, name
        single.graph_signature.replace_all_uses(former, name)
    return single


def graph_module(program: ExportedProgram) -> GraphModule:
    """Return the program's graph with its tensors as attributes. They are shared: replace, never write into them."""
    module = program.module(check_guards=False)
    if not isinstance(module, GraphModule):
        raise AssertionError("an exported program unlifts to a graph module")
    return module


def layer_weights(module: GraphModule) -> list[LayerWeight]:
    """Return what each conv and linear of an exported graph multiplies and adds, in forward order."""
    layers = []
    for node in weighted_nodes(module):
        source, weight, bias = _inputs(node)[:3]
        name = str(bias.target).removesuffix(".bias")
        if str(weight.target) == _DEQUANTIZE_CHANNEL:
            codes, channel_scale = _inputs(weight)[:2]
            input_scale = float(_inputs(source)[1]) if str(source.target) == _DEQUANTIZE_TENSOR else 1.0
            scale = tensor_of(module, channel_scale) * input_scale
            layers.append(LayerWeight(name, tensor_of(module, codes), scale, tensor_of(module, bias)))
        else:
            layers.append(LayerWeight(name, tensor_of(module, weight), None, tensor_of(module, bias)))
    return layers


def refuse_overflow(module: GraphModule) -> None:
    """Raise ExportError, naming the tensor, where a parameter is beyond float16's largest number or not a number."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        largest = float(tensor.detach().abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0
        if not largest <= HALF_LARGEST:
            raise ExportError(
                f"{name} holds {largest:.6g}, and float16, in which Core ML computes, ends at {HALF_LARGEST:.0f}. "
                f"Check the checkpoint: a trained ConvNeXt has no weights of this size."
            )


def lift_small_scales(module: GraphModule) -> None:
    """Move a power of two from a layer's input scale to its weight scales where float16 would lose digits of those.

    Folded layer scale and input normalisation make weights small. Example: a channel with weights up to 0.001 has the
    scale 7.9e-6, which float16 rounds to 132 * 2^-24, 0.1 % off. Times 8 it is a normal number; an input scale of
    0.05 becomes 0.00625, and every product stays what it was. The input scale itself stays a normal number.
    """
    for node in weighted_nodes(module):
        source, weight = _inputs(node)[:2]
        quantised = str(weight.target) == _DEQUANTIZE_CHANNEL and str(source.target) == _DEQUANTIZE_TENSOR
        if not quantised or len(source.users) > 1:
            continue
        codes, scale = (tensor_of(module, stored) for stored in _inputs(weight)[:2])
        input_scale = float(_inputs(source)[1])
        used = scale[codes.flatten(1).ne(0).any(dim=1)]
        if not len(used):
            continue
        wanted = math.ceil(math.log2(HALF_SMALLEST_NORMAL / float(used.min())))
        available = math.floor(math.log2(input_scale / HALF_SMALLEST_NORMAL))
        exponent = min(wanted, available)
        if exponent > 0:
            owner, _, leaf = str(_inputs(weight)[1].target).rpartition(".")
            module.get_submodule(owner).register_buffer(leaf, scale * 2.0**exponent)
            source.args = (source.args[0], input_scale * 2.0**-exponent, *source.args[2:])


def scale_sums_of_squares(module: GraphModule) -> None:
    """Keep the L2 norms of GRN within float16: sqrt(sum(x^2)) becomes 2^k * sqrt(sum((x / 2^k)^2)).

    At 56 x 56 positions a root mean square of 4.6 already sums to more than 65504. 2^k is about a quarter of the square
    root of the number of positions (16 at 56 x 56), so that the sum holds up to a root mean square of about 64, and the
    squares of small activations do not vanish.
    """
    squares = [node for node in module.graph.nodes if node.target == torch.ops.aten.square.default]
    for square in squares:
        (total,) = square.users
        (root,) = total.users
        if total.target != torch.ops.aten.sum.dim_IntList or root.target != torch.ops.aten.sqrt.default:
            continue
        positions = math.prod(int(square.meta["val"].shape[axis]) for axis in _inputs(total)[1])
        factor = 2.0 ** max(round(math.log2(positions) / 2) - 2, 0)
        if factor > 1:
            with module.graph.inserting_before(square):
                smaller = module.graph.call_function(torch.ops.aten.mul.Tensor, (square.args[0], 1 / factor))
            square.args = (smaller,)
            with module.graph.inserting_after(root):
                restored = module.graph.call_function(torch.ops.aten.mul.Tensor, (root, factor))
            root.replace_all_uses_with(restored, delete_user_cb=lambda user, kept=restored: user is not kept)


def weighted_nodes(module: GraphModule) -> list[Node]:
    """Return the convs and linears of an exported graph, in forward order."""
    return [node for node in module.graph.nodes if node.target in _WEIGHTED]


def _inputs(node: Node) -> tuple[Any, ...]:
    return node.args
