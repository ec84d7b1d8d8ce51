"""The layout that suits the Neural Engine: channels second everywhere, linears as 1x1 convs, LayerNorm over the channel axis.

The network's blocks work channels-last between the depthwise conv and the residual add, which takes a transpose on either side.
Apple's advice for the Neural Engine (machinelearning.apple.com/research/neural-engine-transformers) is (N, C, 1, S) data, 1x1
convs in place of linears, and no transposes; coremltools itself writes the LayerNorm of that article as `layer_norm` over axis 1.
Nothing else is computed: the same products, in the same types.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.fx import Graph, GraphModule, Node

from edgeconvnext.backends.coreml.values import tensor_of
from edgeconvnext.errors import ExportError

# What a tensor was in the network's own graph. In the new one it is channels-first: (N, C, H, W), and (N, C, 1, 1) for a vector.
Layout = Literal["first", "last", "vector", "constant"]

_ATEN = torch.ops.aten
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
# Where the axes of a channels-last tensor lie channels-first.
_CHANNELS_FIRST_AXIS = {0: 0, 1: 2, 2: 3, 3: 1, -1: 1, -2: 3, -3: 2}
_ELEMENTWISE = {
    _ATEN.add.Tensor,
    _ATEN.sub.Tensor,
    _ATEN.mul.Tensor,
    _ATEN.div.Tensor,
    _ATEN.gelu.default,
    _ATEN.square.default,
    _ATEN.sqrt.default,
}
# Compared as text: these operators exist only once torchao was imported, which a float program does not need.
_PER_TENSOR = {f"quantized_decomposed.{name}_per_tensor.default" for name in ("quantize", "dequantize")}
_PER_CHANNEL = "quantized_decomposed.dequantize_per_channel.default"


def channels_first(module: GraphModule) -> None:
    """Rewrite an exported ConvNeXt, in place, so that every tensor between image and logits is (N, C, H, W).

    LayerNorms stay as torch has them, between two permutes that `fold_norm_transposes` takes out of the converted program.
    Raises ExportError for an operator that a ConvNeXt does not have.
    """
    module.graph = _Rewriter(module).graph
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


class _Rewriter:
    """Builds the new graph node by node. new: what stands for a node of the old graph; layout: what that node was."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.graph = Graph()
        self.graph.set_codegen(module.graph._codegen)
        self.new: dict[Node, Node] = {}
        self.layout: dict[Node, Layout] = {}
        for node in module.graph.nodes:
            self._rewrite(node)

    def _rewrite(self, node: Node) -> None:
        if node.op == "call_function":
            self.new[node], self.layout[node] = self._call(node)
            return
        self.new[node] = self.graph.node_copy(node, self._flat if node.op == "output" else self.new.__getitem__)
        self.layout[node] = "constant" if node.op == "get_attr" else "first"

    def _call(self, node: Node) -> tuple[Node, Layout]:
        kinds = {self.layout[source] for source in node.all_input_nodes} - {"constant"}
        if not kinds:
            return self.graph.node_copy(node, self.new.__getitem__), "constant"
        if len(kinds) > 1:
            raise ExportError(f"{node.name} mixes tensors of two layouts, which no ConvNeXt does.")
        (kind,) = kinds
        if node.target == _ATEN.permute.default:
            return self._permute(node, kind)
        if node.target in (_ATEN.mean.dim, _ATEN.sum.dim_IntList):
            return self._reduce(node, kind)
        if node.target == _ATEN.layer_norm.default and kind != "first":
            return self._layer_norm(node), kind
        if node.target == _ATEN.linear.default and kind != "first":
            return self._linear(node), kind
        if node.target == _ATEN.conv2d.default and kind == "first":
            return self.graph.node_copy(node, self.new.__getitem__), kind
        if node.target in _ELEMENTWISE or str(node.target) in _PER_TENSOR:
            if kind != "first":
                for source in node.all_input_nodes:
                    self._stand_up(source)
            return self.graph.node_copy(node, self.new.__getitem__), kind
        raise ExportError(
            f"{node.name} is {node.target} of a tensor with channels {kind}, which no ConvNeXt has: its layout for Core ML is not "
            "known. Export a network that edgeconvnext loaded."
        )

    def _permute(self, node: Node, kind: Layout) -> tuple[Node, Layout]:
        """Drop a change of layout: both sides are the same tensor now."""
        source, order = node.args[0], [axis % 4 for axis in node.args[1]]  # type: ignore[union-attr, operator]
        assert isinstance(source, Node)
        if (kind, order) == ("first", _TO_LAST):
            return self.new[source], "last"
        if (kind, order) == ("last", _TO_FIRST):
            return self.new[source], "first"
        raise ExportError(f"{node.name} permutes channels-{kind} data to {order}, which no ConvNeXt does.")

    def _reduce(self, node: Node, kind: Layout) -> tuple[Node, Layout]:
        source, axes, *keep = node.args
        assert isinstance(source, Node)
        over = list(axes)  # type: ignore[arg-type]
        kept = bool(keep and keep[0])
        if kind == "first" and over == [2, 3] and not kept:
            # Pooling: a vector stays a picture of one pixel.
            return self.graph.call_function(node.target, (self.new[source], over, True)), "vector"  # type: ignore[arg-type]
        if kind == "last" and kept:
            moved = [_CHANNELS_FIRST_AXIS[axis] for axis in over]
            return self.graph.call_function(node.target, (self.new[source], moved, True)), "last"  # type: ignore[arg-type]
        raise ExportError(f"{node.name} reduces axes {over} of channels-{kind} data, which no ConvNeXt does.")

    def _layer_norm(self, node: Node) -> Node:
        source, *rest = node.args
        assert isinstance(source, Node)
        last = self.graph.call_function(_ATEN.permute.default, (self.new[source], _TO_LAST))
        arguments = [self.new[argument] if isinstance(argument, Node) else argument for argument in rest]
        normalised = self.graph.call_function(_ATEN.layer_norm.default, (last, *arguments))
        return self.graph.call_function(_ATEN.permute.default, (normalised, _TO_FIRST))

    def _linear(self, node: Node) -> Node:
        source, weight, bias = node.args
        assert isinstance(source, Node) and isinstance(weight, Node) and isinstance(bias, Node)
        stored = weight.args[0] if str(weight.target) == _PER_CHANNEL else weight
        if not isinstance(stored, Node) or stored.op != "get_attr":
            raise ExportError(
                f"{node.name} has a weight that is computed by {weight.target}; Core ML takes stored ones."
            )
        self._store(stored, tensor_of(self.module, stored)[:, :, None, None])
        return self.graph.call_function(
            _ATEN.conv2d.default, (self.new[source], self.new[weight], self.new[bias], [1, 1])
        )

    def _stand_up(self, source: Node) -> None:
        """Give a constant of one number per channel the shape (C, 1, 1)."""
        if source.op == "get_attr":
            value = tensor_of(self.module, source)
            if value.dim() and value.shape[-1] == value.numel() > 1:
                self._store(source, value.reshape(-1, 1, 1))

    def _store(self, node: Node, value: torch.Tensor) -> None:
        owner, _, leaf = str(node.target).rpartition(".")
        holder = self.module.get_submodule(owner)
        if leaf in holder._parameters:
            setattr(holder, leaf, torch.nn.Parameter(value, requires_grad=False))
        else:
            holder.register_buffer(leaf, value)

    def _flat(self, node: Node) -> Node:
        """Return what the network gives: a vector without its axes of length 1."""
        if self.layout[node] == "vector":
            return self.graph.call_function(_ATEN.squeeze.dims, (self.new[node], [2, 3]))
        return self.new[node]


def fold_norm_transposes(program: Any) -> int:
    """Replace transpose, layer_norm over the last axis, transpose back by layer_norm over axis 1, in place; return how many were.

    program: coremltools' MIL program, of a graph that `channels_first` made.
    """
    from coremltools.converters.mil.mil import Builder as mb

    folded = 0
    for function in program.functions.values():
        for norm in list(function.operations):
            if norm.op_type != "layer_norm":
                continue
            before, after = norm.x.op, list(norm.outputs[0].child_ops)
            if not (_transposes(before, _TO_LAST) and len(after) == 1 and _transposes(after[0], _TO_FIRST)):
                continue
            back = after[0]
            with function:
                result = mb.layer_norm(
                    x=before.x,
                    axes=[1],
                    gamma=norm.gamma,
                    beta=norm.beta,
                    epsilon=norm.epsilon,
                    before_op=norm,
                    name=f"{norm.name}_channels",
                )
            # Every operator has to say which line of the traced network it comes from; these come from the same one.
            for made in (result.op, result.op.axes.op):
                made.scopes = norm.scopes
            function.replace_uses_of_var_after_op(
                anchor_op=back, old_var=back.outputs[0], new_var=result, no_check_var_types=True
            )
            function.remove_ops([back, norm])
            if not before.outputs[0].child_ops:
                function.remove_ops([before])
            folded += 1
    return folded


def _transposes(op: Any, order: list[int]) -> bool:
    return op is not None and op.op_type == "transpose" and [axis % 4 for axis in op.perm.val] == order
