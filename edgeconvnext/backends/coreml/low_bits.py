"""Weights of fewer than eight bits in a Core ML program: coremltools' torch frontend stores a code in a byte, iOS 18 need not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

FOUR_BITS = 7
"""Codes of 4-bit weights are -7..7; 8-bit weights reach beyond it in every channel."""


def pack_four_bits(program: Any) -> int:
    """Store weights whose codes fit four bits as int4, in place; return how many were.

    program: coremltools' MIL program for iOS 18 or later. A weight with one scale per channel becomes
    constexpr_blockwise_shift_scale with int4 data and the same scales, so that every value stays what it was.
    """
    from coremltools.converters.mil.mil import types

    def four_bits(codes: np.ndarray, op: Any) -> Any:
        fits = codes.size and np.abs(codes.astype(int)).max() <= FOUR_BITS
        return codes.astype(types.np_int4_dtype) if fits else None

    return _stored_otherwise(program, four_bits)


def pack_palettes(program: Any, bits: int) -> int:
    """Store weights that use no more than 2^bits codes as indices into them, in place; return how many were.

    program: as above. The data of constexpr_blockwise_shift_scale becomes constexpr_lut_to_dense: an index of `bits` bits for each
    weight, and the codes in use as the layer's palette, filled up with the last one. They are stored as float16, which holds them
    exactly, as coremltools' own palettes with a scale per channel are: runtimes before iOS 26 do not take int8 ones in this order.
    """
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    index_type = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))

    def palette(codes: np.ndarray, op: Any) -> Any:
        used, index = np.unique(codes, return_inverse=True)
        if len(used) > 2**bits:
            return None
        lut = np.concatenate([used, np.repeat(used[-1:], 2**bits - len(used))]).astype(np.float16)
        return mb.constexpr_lut_to_dense(
            indices=index.reshape(codes.shape).astype(index_type),
            lut=lut.reshape(*[1] * codes.ndim, -1, 1),
            before_op=op,
            name=f"{op.name}_palette",
        )

    return _stored_otherwise(program, palette)


def _stored_otherwise(program: Any, data_of: Callable[[np.ndarray, Any], Any]) -> int:
    """Give weights of int8 codes other data where `data_of` returns some, with the same scales; return how many it were.

    data_of: from the codes, (out, ...), and their operation, before which it may insert others.
    """
    from coremltools.converters.mil.mil import Builder as mb

    packed = 0
    for function in program.functions.values():
        for op in list(function.operations):
            found = _codes(op)
            if found is None:
                continue
            codes, scale = found
            with function:
                data = data_of(codes, op)
                if data is None:
                    continue
                weight = mb.constexpr_blockwise_shift_scale(
                    data=data, scale=scale, before_op=op, name=f"{op.name}_packed"
                )
            # Every operator has to say which line of the traced network it comes from; these come from the same one.
            made = [weight.op, weight.op.data.op, weight.op.scale.op]
            made += [variable.op for variable in weight.op.data.op.inputs.values() if variable is not None]
            for each in made:
                each.scopes = op.scopes
            function.replace_uses_of_var_after_op(
                anchor_op=op, old_var=op.outputs[0], new_var=weight, no_check_var_types=True, force_replace=True
            )
            function.remove_ops([op])
            packed += 1
    return packed


def _codes(op: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return int8 codes and their scales, (out, 1, ...), of a weight without zero points, or None."""
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
    fits = symmetric and codes is not None and codes.dtype == np.int8 and np.ndim(scale) == codes.ndim
    return (codes, scale) if fits else None
