"""Which linears of an ONNX file are 2:4 sparse: read from the file itself, behind every fold, rounding and export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgeconvnext.errors import ExportError
from edgeconvnext.rewrite.two_of_four import is_two_of_four, zero_mask

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


def check_sparsity(onnx_path: Path, expected: list[str]) -> None:
    """Raise ExportError where a layer that was 2:4 in the network is not in the file. expected: layer names."""
    found = sparse_linears(onnx_path)
    filled = [layer for layer in expected if not found.get(layer, False)]
    if filled:
        raise ExportError(
            f"{onnx_path.name}: {len(filled)} of {len(expected)} layers lost their 2:4 zeros on the way into the file "
            f"({', '.join(filled[:4])}). Something behind the sparsity filled them; this is a bug worth reporting."
        )
