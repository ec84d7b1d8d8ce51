"""An exported ConvNeXt in the operators that XNNPACK computes, so that one delegate takes the whole network.

XNNPACK's partitioner (executorch 1.5.1) has no LayerNorm, takes means over height and width only, and has fast depthwise kernels
up to 25 taps. So a LayerNorm's mean and variance are 1x1 convs to one channel, and a depthwise conv of more taps is a sum of convs
with some of its rows each, over one padded input. Both are exact but for the order of sums.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.export import ExportedProgram, export
from torch.fx import GraphModule, Node

from edgeconvnext.backends.channels_first import ATEN, ELEMENTWISE, ChannelsFirst, Layout
from edgeconvnext.backends.constants import tensor_of
from edgeconvnext.errors import ExportError

MOST_TAPS = 25
"""Kernels above it take XNNPACK's slow way: 49 taps in one conv were half of a network's time."""


def in_xnnpack_forms(program: ExportedProgram) -> ExportedProgram:
    """Return a graph of a fixed batch that computes what `program` does, for XNNPACK.

    Raises ExportError for an operator that a ConvNeXt does not have.
    """
    image = program.example_inputs[0][0]  # type: ignore[index]
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    _XnnpackForms(module).rewrite()
    with torch.no_grad():
        return export(module, (torch.zeros_like(image),), strict=False)


class _XnnpackForms(ChannelsFirst):
    """Replaces norms, reductions and large depthwise convs while the graph is made channels-first."""

    runtime = "XNNPACK"
    elementwise: ClassVar[frozenset[object]] = frozenset(ELEMENTWISE)

    def layer_norm(self, node: Node) -> Node:
        """Return (x - mean) * rsqrt(mean of squares + eps) * weight + bias, its means over the channels as 1x1 convs."""
        source, weight, bias, eps = node.args[0], *node.args[2:5]
        assert isinstance(source, Node) and isinstance(eps, float)
        x, channels = self.new[source], _channels(source)
        centred = self._make(ATEN.sub.Tensor, x, self._mean_of_channels(node, x, channels))
        variance = self._mean_of_channels(node, self._make(ATEN.mul.Tensor, centred, centred), channels)
        scale = self._make(ATEN.rsqrt.default, self._make(ATEN.add.Tensor, variance, eps))
        result = self._make(ATEN.mul.Tensor, centred, scale)
        for operator, constant, neutral in ((ATEN.mul.Tensor, weight, 1.0), (ATEN.add.Tensor, bias, 0.0)):
            if isinstance(constant, Node):
                value = tensor_of(self.module, constant)
                if not bool((value == neutral).all()):
                    self._stand_up(constant)
                    result = self._make(operator, result, self.new[constant])
        return result

    def reduce(self, node: Node, kind: Layout) -> tuple[Node, Layout]:
        """Return a reduction that XNNPACK has: sums as means, means over channels as 1x1 convs."""
        source, axes, *keep = node.args
        assert isinstance(source, Node) and isinstance(axes, list | tuple)
        over = sorted(axis % 4 for axis in axes if isinstance(axis, int))
        if kind != "last" or not (keep and keep[0]):
            return super().reduce(node, kind)
        x = self.new[source]
        if over == [3] and node.target == ATEN.mean.dim:
            return self._mean_of_channels(node, x, _channels(source)), "last"
        if over == [1, 2]:
            mean = self._make(ATEN.mean.dim, x, [2, 3], True)
            shape = source.meta["val"].shape
            count = float(shape[1] * shape[2])
            return (mean if node.target == ATEN.mean.dim else self._make(ATEN.mul.Tensor, mean, count)), "last"
        raise ExportError(f"{node.name} reduces axes {over}, which no ConvNeXt does.")

    def conv(self, node: Node) -> Node:
        """Return a conv, or a sum of convs of a few rows where a depthwise kernel has more than MOST_TAPS taps."""
        source, weight, bias, stride, padding, dilation, groups = _conv_arguments(node)
        if weight.op != "get_attr" or groups == 1:
            return super().conv(node)
        kernel = tensor_of(self.module, weight)
        height, width = kernel.shape[2:]
        if height * width <= MOST_TAPS or kernel.shape[1] != 1 or {*stride, *dilation} != {1}:
            return super().conv(node)
        rows, size = max(1, MOST_TAPS // width), source.meta["val"].shape[2]
        x = self._outside_of_quantizers(node, source)
        top, left = padding
        padded = self._make(ATEN.constant_pad_nd.default, x, [left, left, top, top], 0.0)
        out = size + 2 * top - height + 1
        total: Node | None = None
        for first in range(0, height, rows):
            last = min(first + rows, height)
            window = self._make(ATEN.slice.Tensor, padded, 2, first, last - 1 + out)
            piece = self._constant(f"{weight.name}_rows_{first}", kernel[:, :, first:last].clone())
            own_bias = self.new[bias] if bias is not None and total is None else None
            part = self._make(ATEN.conv2d.default, window, piece, own_bias, [1, 1], [0, 0], [1, 1], groups)
            total = part if total is None else self._make(ATEN.add.Tensor, total, part)
        assert total is not None
        return total

    def _outside_of_quantizers(self, node: Node, source: Node) -> Node:
        """Return the input of a padding; XNNPACK takes one after a dequantize operator for a padding of codes, and fails."""
        x = self.new[source]
        if "dequantize" not in str(x.target):
            return x
        return self._make(ATEN.mul.Tensor, x, self._constant(f"{node.name}_ones", torch.ones(1, 1, 1, 1)))

    def _mean_of_channels(self, node: Node, x: Node, channels: int) -> Node:
        name = f"mean_of_{channels}_channels"
        weight = self._constant(name, torch.full((1, channels, 1, 1), 1.0 / channels))
        return self._make(ATEN.conv2d.default, x, weight)

    def _constant(self, name: str, value: torch.Tensor) -> Node:
        """Return a node of a stored tensor; equal names are one tensor."""
        if not hasattr(self.module, name):
            self.module.register_buffer(name, value)
        return self.graph.get_attr(name)

    def _make(self, operator: object, *arguments: object) -> Node:
        return self.graph.call_function(operator, arguments)  # type: ignore[arg-type]


def _channels(node: Node) -> int:
    """Return the channels of a channels-last tensor."""
    return int(node.meta["val"].shape[-1])


def _conv_arguments(node: Node) -> tuple[Node, Node, Node | None, list[int], list[int], list[int], int]:
    """Return the arguments of a conv2d, its defaults filled in."""
    defaults = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
    arguments: list[Any] = [*node.args, *defaults[len(node.args) :]]
    source, weight, bias, stride, padding, dilation, groups = arguments
    return source, weight, bias, stride, padding, dilation, groups
