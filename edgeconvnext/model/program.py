"""Networks as torch.export programs: exported, with a fixed batch, and their free axes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from edgeconvnext.model.input_size import SizeRange


def export_program(
    module: torch.nn.Module, example: torch.Tensor, *, max_batch: int | None, sizes: SizeRange | None = None
) -> ExportedProgram:
    """Export `module` to a graph with input "image" and the network's outputs.

    example: (N, C, H, W), the size the graph is fixed to. max_batch: None fixes the batch to the example's, else it is dynamic.
    sizes: heights and widths that are free in the graph.
    """
    axes: dict[int, Any] = {}
    shape = list(example.shape)
    # Export specialises a dynamic axis whose example is 0 or 1 long, so it is traced with two images, and two strides.
    if max_batch is not None:
        axes[0], shape[0] = Dim("batch", min=1, max=max(max_batch, 2)), 2
    if sizes is not None:
        for axis, low, high in zip((2, 3), sizes.smallest, sizes.largest, strict=True):
            shape[axis] = low
            if low != high:
                # One or two steps would be read as always two.
                steps = Dim(f"steps{axis}", min=low // sizes.stride, max=max(high // sizes.stride, 4))
                axes[axis], shape[axis] = sizes.stride * steps, max(low, 2 * sizes.stride)
    example = torch.zeros(shape, dtype=example.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)
        return torch.export.export(module, (example,), dynamic_shapes=(axes,) if axes else None)


def with_batch(program: ExportedProgram, batch: int) -> ExportedProgram:
    """Return an exported graph of dynamic batch with a batch axis of exactly `batch`."""
    image = program.example_inputs[0][0]  # type: ignore[index]
    example = image[:1].expand(batch, -1, -1, -1).contiguous()
    axes = {axis: dim for axis, dim in free_axes(program).items() if axis}
    shapes = (axes,) if axes else None
    return torch.export.export(program.module(check_guards=False), (example,), dynamic_shapes=shapes, strict=False)


def free_axes(program: ExportedProgram) -> dict[int, Any]:
    """Return the dynamic axes of an exported graph's image, batch, height or width, to export it again with the same ones."""
    image = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    axes: dict[int, Any] = {}
    for axis, side in enumerate(image.meta["val"].shape):
        if isinstance(side, torch.SymInt):
            expression = side.node.expr
            (symbol,) = expression.free_symbols
            steps = Dim(f"axis{axis}", min=1, max=int(program.range_constraints[symbol].upper))
            stride = int(expression / symbol)
            axes[axis] = stride * steps if stride > 1 else steps
    return axes
