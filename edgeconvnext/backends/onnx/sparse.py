"""Which linears of an ONNX file are 2:4 sparse: read from the file itself, behind every fold, rounding and export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network
from edgeconvnext.model.two_of_four import is_two_of_four, zero_mask
from edgeconvnext.schema.report import ExportCheck

LINEARS = (".pwconv1.weight", ".pwconv2.weight")


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
        if not tensor.name.endswith(LINEARS):
            continue
        values = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
        weight = torch.from_numpy(values.reshape(values.shape[0], -1)).T
        found[tensor.name.removesuffix(".weight")] = is_two_of_four(weight) and zero_mask(weight) is not None
    return found


def sparse_layers(network: Network) -> tuple[str, ...]:
    """Return the linears of a network's blocks whose weights are 2:4 sparse, by path."""
    names = [name for name in weighted_layers(network) if f"{name}.weight".endswith(LINEARS)]
    weights = {name: cast(torch.Tensor, network.get_submodule(name).weight) for name in names}
    return tuple(name for name, weight in weights.items() if zero_mask(weight.detach()) is not None)


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
