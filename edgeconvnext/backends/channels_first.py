"""An exported ConvNeXt with channels second everywhere and linears as 1x1 convs, for runtimes that want it so.

The network's blocks work channels-last between the depthwise conv and the residual add, which takes a transpose on either side.
Nothing else is computed in the new form: the same products, in the same types.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch.fx import Graph, GraphModule, Node

from edgeconvnext.backends.constants import tensor_of
from edgeconvnext.errors import ExportError

# What a tensor was in the network's own graph. In the new one it is channels-first: (N, C, H, W), and (N, C, 1, 1) for a vector.
Layout = Literal["first", "last", "vector", "constant"]

ATEN = torch.ops.aten
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
# Where the axes of a channels-last tensor lie channels-first.
_CHANNELS_FIRST_AXIS = {0: 0, 1: 2, 2: 3, 3: 1, -1: 1, -2: 3, -3: 2}
ELEMENTWISE = {
    ATEN.add.Tensor,
    ATEN.sub.Tensor,
    ATEN.mul.Tensor,
    ATEN.div.Tensor,
    ATEN.gelu.default,
    ATEN.square.default,
    ATEN.sqrt.default,
}
# Compared as text: these operators exist only once torchao was imported, which a float program does not need.
_PER_TENSOR = {f"quantized_decomposed.{name}_per_tensor.default" for name in ("quantize", "dequantize")}
_PER_CHANNEL = "quantized_decomposed.dequantize_per_channel.default"


class ChannelsFirst:
    """Builds the new graph node by node.

    new: what stands for a node of the old graph; layout: what that node was. runtime: for errors. elementwise: operators that
    any layout suits. A subclass replaces what its runtime wants in another form. Raises ExportError for an operator that a
    ConvNeXt does not have.
    """

    runtime: ClassVar[str]
    elementwise: ClassVar[frozenset[object]] = frozenset(ELEMENTWISE)

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.graph = Graph()
        self.graph.set_codegen(module.graph._codegen)
        self.new: dict[Node, Node] = {}
        self.layout: dict[Node, Layout] = {}
        for node in module.graph.nodes:
            self._rewrite(node)

    def rewrite(self) -> None:
        """Put the new graph into the module."""
        self.module.graph = self.graph
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.module.recompile()

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
        if node.target == ATEN.permute.default:
            return self._permute(node, kind)
        if node.target in (ATEN.mean.dim, ATEN.sum.dim_IntList):
            return self.reduce(node, kind)
        if node.target == ATEN.layer_norm.default and kind != "first":
            return self.layer_norm(node), kind
        if node.target == ATEN.linear.default and kind != "first":
            return self._linear(node), kind
        if node.target == ATEN.conv2d.default and kind == "first":
            return self.conv(node), kind
        if node.target in self.elementwise or str(node.target) in _PER_TENSOR:
            if kind != "first":
                for source in node.all_input_nodes:
                    self._stand_up(source)
            return self.graph.node_copy(node, self.new.__getitem__), kind
        raise ExportError(
            f"{node.name} is {node.target} of a tensor with channels {kind}, which no ConvNeXt has: its layout for "
            f"{self.runtime} is not known. Export a network that edgeconvnext loaded."
        )

    def _permute(self, node: Node, kind: Layout) -> tuple[Node, Layout]:
        """Drop a change of layout: both sides are the same tensor now."""
        source, order = node.args[0], [axis % 4 for axis in node.args[1]]  # type: ignore[union-attr, operator]
        assert isinstance(source, Node)
        if (kind, order) == ("first", TO_LAST):
            return self.new[source], "last"
        if (kind, order) == ("last", TO_FIRST):
            return self.new[source], "first"
        raise ExportError(f"{node.name} permutes channels-{kind} data to {order}, which no ConvNeXt does.")

    def reduce(self, node: Node, kind: Layout) -> tuple[Node, Layout]:
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

    def layer_norm(self, node: Node) -> Node:
        source, *rest = node.args
        assert isinstance(source, Node)
        last = self.graph.call_function(ATEN.permute.default, (self.new[source], TO_LAST))
        arguments = [self.new[argument] if isinstance(argument, Node) else argument for argument in rest]
        normalised = self.graph.call_function(ATEN.layer_norm.default, (last, *arguments))
        return self.graph.call_function(ATEN.permute.default, (normalised, TO_FIRST))

    def conv(self, node: Node) -> Node:
        """Return what stands for a conv of channels-first data."""
        return self.graph.node_copy(node, self.new.__getitem__)

    def _linear(self, node: Node) -> Node:
        source, weight, bias = node.args
        assert isinstance(source, Node) and isinstance(weight, Node) and isinstance(bias, Node)
        stored = weight.args[0] if str(weight.target) == _PER_CHANNEL else weight
        if not isinstance(stored, Node) or stored.op != "get_attr":
            raise ExportError(
                f"{node.name} has a weight that is computed by {weight.target}; {self.runtime} takes stored ones."
            )
        self.store(stored, tensor_of(self.module, stored)[:, :, None, None])
        return self.graph.call_function(
            ATEN.conv2d.default, (self.new[source], self.new[weight], self.new[bias], [1, 1])
        )

    def _stand_up(self, source: Node) -> None:
        """Give a constant of one number per channel the shape (C, 1, 1)."""
        if source.op == "get_attr":
            value = tensor_of(self.module, source)
            if value.dim() and value.shape[-1] == value.numel() > 1:
                self.store(source, value.reshape(-1, 1, 1))

    def store(self, node: Node, value: torch.Tensor) -> None:
        owner, _, leaf = str(node.target).rpartition(".")
        holder = self.module.get_submodule(owner)
        if leaf in holder._parameters:
            setattr(holder, leaf, torch.nn.Parameter(value, requires_grad=False))
        else:
            holder.register_buffer(leaf, value)

    def _flat(self, node: Node) -> Node:
        """Return what the network gives: a vector without its axes of length 1."""
        if self.layout[node] == "vector":
            return self.graph.call_function(ATEN.squeeze.dims, (self.new[node], [2, 3]))
        return self.new[node]
