"""How torch's quantize and dequantize operators become ONNX Q/DQ nodes.

The exporter knows them per tensor only, with float32 scales and a Cast behind each DequantizeLinear whose output is
float16. TensorRT wants the scale in the type of the float side instead, so that nothing stands between the pair and the
operator it feeds; that needs QuantizeLinear and DequantizeLinear of opset 19 (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset19
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401  (registers them)

# onnxscript types its operators for tensors of values; the exporter passes graph values.
op: Any = opset19


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the exporter's table: torch operator to the function that builds its ONNX nodes."""
    quantized = torch.ops.quantized_decomposed
    return {
        quantized.quantize_per_tensor.default: _quantize_per_tensor,
        quantized.dequantize_per_tensor.default: _dequantize_per_tensor,
        quantized.dequantize_per_channel.default: _dequantize_per_channel,
    }


def _quantize_per_tensor(
    values: ir.Value, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int
) -> ir.Value:
    """QuantizeLinear with the scale in the type of `values`."""
    return op.QuantizeLinear(values, _constant(scale, values.dtype), _constant(zero_point, dtype))


def _dequantize_per_tensor(
    codes: ir.Value,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int | None = None,
) -> ir.Value:
    """DequantizeLinear with the scale in the type of the result."""
    return op.DequantizeLinear(codes, _constant(scale, out_dtype), _constant(zero_point, dtype))


def _dequantize_per_channel(
    codes: ir.Value,
    scales: ir.Value,
    zero_points: ir.Value,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int | None = None,
) -> ir.Value:
    """DequantizeLinear along `axis`; codes, scales and zero points are stored tensors, whose casts `onnx_graph` folds.

    Codes of four bits are stored as such: two in a byte.
    """
    if quant_max <= 7:
        codes, dtype = op.Cast(codes, to=ir.DataType.INT4), ir.DataType.INT4
    if out_dtype == ir.DataType.FLOAT16:
        scales = op.Cast(scales, to=out_dtype)
    return op.DequantizeLinear(codes, scales, op.Cast(zero_points, to=dtype), axis=axis)


def _constant(value: float, dtype: int | None) -> ir.Value:
    """A scalar of ONNX type `dtype`, float32 where the exporter passes none (-1 or None)."""
    kind = ir.DataType(dtype) if dtype is not None and dtype > 0 else ir.DataType.FLOAT
    return op.Constant(value=ir.tensor(np.array(value, kind.numpy())))
