"""4-bit weights in a Core ML program: coremltools' torch frontend stores every code in a byte, iOS 18 can store two."""

from __future__ import annotations

from typing import Any

import numpy as np

FOUR_BITS = 7
"""Codes of 4-bit weights are -7..7; 8-bit weights reach beyond it in every channel."""


def pack_four_bits(program: Any) -> int:
    """Store weights whose codes fit four bits as int4, in place; return how many were.

    program: coremltools' MIL program for iOS 18 or later. A weight with one scale per channel becomes
    constexpr_blockwise_shift_scale with int4 data and the same scales, so that every value stays what it was.
    """
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    packed = 0
    for function in program.functions.values():
        for op in list(function.operations):
            found = _codes(op)
            if found is None:
                continue
            codes, scale = found
            with function:
                weight = mb.constexpr_blockwise_shift_scale(
                    data=codes.astype(types.np_int4_dtype), scale=scale, before_op=op, name=f"{op.name}_int4"
                )
            # Every operator has to say which line of the traced network it comes from; these come from the same one.
            for made in (weight.op, weight.op.data.op, weight.op.scale.op):
                made.scopes = op.scopes
            function.replace_uses_of_var_after_op(
                anchor_op=op, old_var=op.outputs[0], new_var=weight, no_check_var_types=True, force_replace=True
            )
            function.remove_ops([op])
            packed += 1
    return packed


def _codes(op: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return codes and scales, (out, 1, ...), of a per-channel weight that fits four bits, or None."""
    if op.op_type == "constexpr_blockwise_shift_scale":
        codes, scale = op.data.val, op.scale.val
        symmetric = op.offset is None
    elif op.op_type == "constexpr_affine_dequantize":
        codes, scale = op.quantized_data.val, op.scale.val
        symmetric = not np.any(op.zero_point.val)
        if np.ndim(scale) == 1:
            shape = [1] * codes.ndim
            shape[int(op.axis.val)] = -1
            scale = scale.reshape(shape)
    else:
        return None
    fits = symmetric and codes.dtype == np.int8 and codes.size and np.abs(codes.astype(int)).max() <= FOUR_BITS
    return (codes, scale) if fits and np.ndim(scale) == codes.ndim else None
