"""Which linears of an ONNX file are 2:4 sparse: read from the file itself, behind every fold, rounding and export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from edgeconvnext.model.two_of_four import LINEARS, is_two_of_four, zero_mask
from edgeconvnext.schema.report import ExportCheck


def sparse_linears(onnx_path: Path) -> dict[str, bool]:
    """Return for each linear of the blocks, by layer name, whether its stored weight is 2:4 along its inputs.

    Weights are float, or the codes behind a DequantizeLinear without zero points; they lie as (in, out), as MatMul takes them.
    All-zero weights are not counted as sparse.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(onnx_path).graph
    found = {}
    for tensor in graph.initializer:
        layer = tensor.name.removesuffix(".weight")
        if layer == tensor.name or not layer.endswith(LINEARS):
            continue
        values = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
        weight = torch.from_numpy(values.reshape(values.shape[0], -1)).T
        found[layer] = is_two_of_four(weight) and zero_mask(weight) is not None
    return found


def sparsity_checks(expected: Sequence[str], onnx_path: Path) -> list[ExportCheck]:
    """Read back whether layers that are 2:4 in the folded network are so in the file; nothing where there are none."""
    if not expected:
        return []
    found = sparse_linears(onnx_path)
    filled = [name for name in expected if not found.get(name, False)]
    result = f"{len(expected) - len(filled)} of {len(expected)} layers are 2:4 in the file"
    if filled:
        result += f"; filled: {', '.join(filled[:4])}"
    return [ExportCheck(name="2:4 sparsity", passed=not filled, result=result)]
