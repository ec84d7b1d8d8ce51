"""Does the artifact compute what was simulated? Fidelity in dB, and where x86 int8 products would saturate."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeconvnext.backends.onnx.file import require_own_files
from edgeconvnext.backends.onnxruntime.quantized_layers import IntegerLayer, im2col, integer_layers, layer_inputs
from edgeconvnext.errors import ExportError
from edgeconvnext.machine import instruction_sets

INT16_MIN, INT16_MAX = -32768, 32767
CHUNK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class LayerSaturation:
    """What int16 partial sums do to one layer on x86 without VNNI.

    pairs: sums of two products that were formed; saturating: how many of them leave int16; relative_error: RMS of the
    change of the layer's output (before bias), relative to the RMS of that output.
    """

    layer: str
    operator: str
    pairs: int
    saturating: int
    relative_error: float


def products_saturate(available: Set[str] | None = None) -> bool:
    """Return whether onnxruntime's int8 products may saturate with these instruction sets (default: this machine's).

    x86 without VNNI multiplies unsigned by signed bytes with vpmaddubsw, which adds two products in int16.
    """
    sets = instruction_sets() if available is None else available
    return "sse2" in sets and not sets & {"avx512_vnni", "avx_vnni"}


def saturation(path: Path, images: np.ndarray) -> list[LayerSaturation]:
    """Return, for each int8 layer of a Q/DQ ONNX, how x86 without VNNI would saturate on these images.

    images: what the file takes, (N, C, H, W), in whole batches where its batch is fixed. The processor at hand plays no
    part: activations are taken from a run without any fusion, their integer codes are multiplied with the weights' in
    pairs along the reduction axis, (0, 1), (2, 3)..., as onnxruntime's kernels pack them, and each sum is held against
    int16. 255 * 127 * 2 = 64770 leaves it, 255 * 64 * 2 = 32640 cannot. Signed activations count like unsigned ones:
    onnxruntime adds 128 to them on x86.

    Layers that onnxruntime runs in float or with exact kernels are left out: depthwise convs, convs without a quantised
    output, unsigned weights. Raises ExportError for a file that cannot be read or does not take the images.
    """
    import onnx

    require_own_files(path)
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf, OS and onnx errors share no base class but Exception
        raise ExportError(f"{path} cannot be read as an ONNX file: {error}. Export the model again.") from error
    layers = integer_layers(model)
    if not layers:
        return []
    totals = {layer.name: np.zeros(4) for layer in layers}
    for inputs in layer_inputs(path, layers, images):
        for layer in layers:
            codes, zero_point = layer.activation_codes(inputs[layer.activation])
            totals[layer.name] += _saturation_of(layer, codes, zero_point)
    return [
        LayerSaturation(
            layer=layer.name,
            operator=layer.operator,
            pairs=int(pairs),
            saturating=int(saturating),
            relative_error=float(np.sqrt(error / signal)) if signal else 0.0,
        )
        for layer in layers
        for pairs, saturating, error, signal in [totals[layer.name]]
    ]


def _saturation_of(layer: IntegerLayer, codes: np.ndarray, zero_point: int) -> np.ndarray:
    """Return `saturated_product` of one layer for one batch, summed over its groups."""
    total = np.zeros(4)
    columns = layer.weights.shape[1] // layer.groups
    for group, rows in enumerate(im2col(layer, codes, zero_point)):
        own = slice(group * columns, (group + 1) * columns)
        total += saturated_product(rows, layer.weights[:, own], layer.scales[own], zero_point)
    return total


def saturated_product(codes: np.ndarray, weights: np.ndarray, scales: np.ndarray, zero_point: int) -> np.ndarray:
    """Multiply codes (M, K), 0..255, with int8 weights (K, N) as vpmaddubsw does, and compare with the exact product.

    Returns (pairs, saturating pairs, sum of squared errors, sum of squared exact outputs), outputs times `scales` (N,).
    """
    if codes.shape[1] % 2:
        codes, weights = np.pad(codes, ((0, 0), (0, 1))), np.pad(weights, ((0, 1), (0, 0)))
    first, second = codes[:, 0::2].astype(np.int32), codes[:, 1::2].astype(np.int32)
    upper, lower = weights[0::2].astype(np.int32), weights[1::2].astype(np.int32)

    # Only weights that could leave int16 with the largest codes at hand are multiplied out: few, in a real network.
    top_first, top_second = first.max(0)[:, None], second.max(0)[:, None]
    highest = top_first * np.maximum(upper, 0) + top_second * np.maximum(lower, 0)
    lowest = top_first * np.minimum(upper, 0) + top_second * np.minimum(lower, 0)
    pair, column = np.nonzero((highest > INT16_MAX) | (lowest < INT16_MIN))
    by_column = np.argsort(column, kind="stable")
    pair, column = pair[by_column], column[by_column]

    lost = np.zeros((len(codes), weights.shape[1]))
    saturating = 0
    step = max(1, CHUNK_ELEMENTS // max(1, len(codes)))
    for start in range(0, len(pair), step):
        j, n = pair[start : start + step], column[start : start + step]
        sums = first[:, j] * upper[j, n] + second[:, j] * lower[j, n]
        excess = sums - np.clip(sums, INT16_MIN, INT16_MAX)
        saturating += int(np.count_nonzero(excess))
        columns, starts = np.unique(n, return_index=True)
        lost[:, columns] += np.add.reduceat(excess, starts, axis=1)

    exact = (codes.astype(np.float64) - zero_point) @ weights.astype(np.float64)
    error, signal = np.square(lost * scales).sum(), np.square(exact * scales).sum()
    return np.array([first.size * weights.shape[1], saturating, error, signal])
