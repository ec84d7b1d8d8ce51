"""Each MIL operator of the evaluator, against coremltools' own value inference, or numpy where coremltools infers nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the operators are coremltools': pip install 'edgeconvnext[coreml]'")

import coremltools as ct
from mil_values import as_read, inferred

from edgeconvnext.backends.coreml.mil.operators import OPERATORS
from edgeconvnext.backends.coreml.mil.weights import CONSTEXPR, unpacked

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 6, 4, 5)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.1)
ROWS = RNG.standard_normal((3, 7)).astype(np.float32)
VECTOR = RNG.standard_normal(6).astype(np.float32)
SCALES = np.abs(VECTOR) + np.float32(0.05)
CODES = RNG.integers(-128, 128, (6, 4, 2, 2)).astype(np.int8)

CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"x": ROWS, "weight": ROWS[:2], "bias": VECTOR[:2]}),
    ("matmul", {"x": ROWS, "y": ROWS, "transpose_y": True}),
    ("matmul", {"x": X, "y": X, "transpose_x": True}),
    ("layer_norm", {"x": X, "axes": [1], "gamma": VECTOR, "beta": SCALES, "epsilon": np.float32(1e-6)}),
    ("layer_norm", {"x": X, "axes": [-1], "gamma": VECTOR[:5], "beta": SCALES[:5], "epsilon": np.float32(0.5)}),
    ("layer_norm", {"x": X, "axes": [2, 3]}),
    ("gelu", {"x": X, "mode": "EXACT"}),
    ("gelu", {"x": X, "mode": "TANH_APPROXIMATION"}),
    ("gelu", {"x": X, "mode": "SIGMOID_APPROXIMATION"}),
    ("softmax", {"x": ROWS, "axis": -1}),
    ("clip", {"x": X, "alpha": np.float32(-0.5), "beta": np.float32(0.7)}),
    ("rsqrt", {"x": POSITIVE, "epsilon": np.float32(0.1)}),
    ("inverse", {"x": POSITIVE, "epsilon": np.float32(0.1)}),
    ("log", {"x": POSITIVE, "epsilon": np.float32(0.1)}),
    ("pow", {"x": POSITIVE, "y": np.float32(1.7)}),
    *((kind, {"x": X, "y": VECTOR.reshape(1, 6, 1, 1)}) for kind in ("add", "sub", "mul", "real_div")),
    *((kind, {"x": X, "y": X[::-1].copy()}) for kind in ("maximum", "minimum")),
    *((kind, {"x": X}) for kind in ("abs", "erf", "exp", "relu", "sigmoid", "square", "tanh")),
    ("sqrt", {"x": POSITIVE}),
    *(
        (f"reduce_{kind}", {"x": X, "axes": axes, "keep_dims": keep})
        for kind in ("mean", "sum", "max", "min", "sum_square", "l2_norm")
        for axes, keep in (([2, 3], True), ([-1], False))
    ),
    ("transpose", {"x": X, "perm": [0, 2, 3, 1]}),
    ("reshape", {"x": X, "shape": [4, 3, 20]}),
    ("expand_dims", {"x": ROWS, "axes": [0, 3]}),
    ("squeeze", {"x": ROWS[:, None, :, None], "axes": [1, -1]}),
    ("squeeze", {"x": ROWS[:, None, :, None]}),
    ("identity", {"x": X}),
    ("cast", {"x": X, "dtype": "fp32"}),
    ("quantize", {"input": X, "scale": np.float32(0.017), "output_dtype": "int8"}),
    (
        "quantize",
        {"input": X, "scale": np.float32(0.02), "zero_point": np.uint8(119), "output_dtype": "uint8"},
    ),
    (
        "quantize",
        {"input": X, "scale": SCALES, "zero_point": CODES[:, 0, 0, 0], "axis": np.int32(1), "output_dtype": "int8"},
    ),
    ("dequantize", {"input": CODES, "scale": np.float32(0.017)}),
    ("dequantize", {"input": CODES, "scale": SCALES[:4], "zero_point": CODES[0, :, 0, 0], "axis": np.int32(1)}),
]


@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=[kind for kind, _ in CASES])
def test_operator_computes_what_coremltools_infers(kind: str, arguments: dict[str, Any]) -> None:
    expected = inferred(kind, ct.target.iOS17, **arguments)
    found = OPERATORS[kind](**{name: as_read(value) for name, value in arguments.items()}).numpy()
    assert found.shape == expected.shape
    # coremltools computes in float32 as well, in another order.
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=2e-5, atol=2e-6)


def test_every_operator_has_a_case() -> None:
    assert set(OPERATORS) == {kind for kind, _ in CASES} | {"conv", "batch_norm"}


def test_quantize_rounds_halves_to_even_and_ends_at_the_types_limits() -> None:
    halves = np.array([-1000, -1.5, -0.5, 0.5, 1.5, 2.5, 1000], np.float32)
    found = OPERATORS["quantize"](as_read(halves), as_read(np.float32(1)), "int8")
    assert found.tolist() == [-128, -2, 0, 0, 2, 2, 127]
    np.testing.assert_array_equal(
        found, inferred("quantize", ct.target.iOS17, input=halves, scale=np.float32(1), output_dtype="int8")
    )


@pytest.mark.parametrize(
    ("groups", "strides", "pad_type", "pad", "dilations"),
    [
        (1, [1, 1], "valid", [0, 0, 0, 0], [1, 1]),
        (1, [4, 4], "valid", [0, 0, 0, 0], [1, 1]),
        (6, [1, 1], "custom", [1, 1, 1, 1], [1, 1]),
        (2, [2, 1], "custom", [0, 2, 3, 1], [1, 2]),
        (3, [1, 1], "same", [0, 0, 0, 0], [1, 1]),
        (1, [2, 2], "same_lower", [0, 0, 0, 0], [1, 1]),
    ],
)
def test_conv_is_the_sum_over_its_window(
    groups: int, strides: list[int], pad_type: str, pad: list[int], dilations: list[int]
) -> None:
    x = RNG.standard_normal((2, 6, 9, 8)).astype(np.float32)
    weight = RNG.standard_normal((6, 6 // groups, 3, 3)).astype(np.float32)
    arguments = {"x": x, "weight": weight, "bias": VECTOR, "strides": strides, "pad_type": pad_type, "pad": pad}
    arguments |= {"dilations": dilations, "groups": groups}
    found = OPERATORS["conv"](**{name: as_read(value) for name, value in arguments.items()}).numpy()
    if pad_type.startswith("same"):
        total = [max((-(-n // s) - 1) * s + 3 - n, 0) for n, s in zip(x.shape[2:], strides, strict=True)]
        less = [value // 2 for value in total]
        more = [value - part for value, part in zip(total, less, strict=True)]
        first, last = (more, less) if pad_type == "same_lower" else (less, more)
        pad = [first[0], last[0], first[1], last[1]]
    np.testing.assert_allclose(found, windowed(x, weight, strides, pad, dilations, groups), rtol=1e-5, atol=1e-5)
    # coremltools infers no values of conv, but their shape.
    assert found.shape == conv_shape(arguments)


def windowed(
    x: np.ndarray, weight: np.ndarray, strides: list[int], pad: list[int], dilations: list[int], groups: int
) -> np.ndarray:
    """A conv written out: one dot product of float64 for each output, plus VECTOR as bias."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad[0], pad[1]), (pad[2], pad[3]))).astype(np.float64)
    reach = [(taps - 1) * step + 1 for taps, step in zip(weight.shape[2:], dilations, strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]
    inputs, outputs = weight.shape[1], len(weight) // groups
    result = np.empty((len(x), len(weight), *sizes))
    for channel in range(len(weight)):
        own = padded[:, channel // outputs * inputs :][:, :inputs]
        for row, column in np.ndindex(*sizes):
            top, left = row * strides[0], column * strides[1]
            window = own[:, :, top : top + reach[0] : dilations[0], left : left + reach[1] : dilations[1]]
            result[:, channel, row, column] = (window * weight[channel]).sum(axis=(1, 2, 3)) + VECTOR[channel]
    return result


def conv_shape(arguments: dict[str, Any]) -> tuple[int, ...]:
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function

    with Function({}, opset_version=ct.target.iOS17):
        return tuple(mb.conv(**arguments).shape)


def test_batch_norm_scales_each_channel() -> None:
    arguments = {"mean": VECTOR, "variance": SCALES, "gamma": SCALES[::-1].copy(), "beta": VECTOR[::-1].copy()}
    found = OPERATORS["batch_norm"](as_read(X), **{name: as_read(value) for name, value in arguments.items()}).numpy()
    mean, variance, gamma, beta = (value.astype(np.float64).reshape(1, 6, 1, 1) for value in arguments.values())
    np.testing.assert_allclose(found, gamma * (X - mean) / np.sqrt(variance + 1e-5) + beta, rtol=1e-5, atol=1e-6)


HALF_SCALES = SCALES.astype(np.float16)
PALETTES = RNG.standard_normal((3, 1, 1, 1, 64, 1)).astype(np.float16)
WEIGHTS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "constexpr_affine_dequantize",
        "iOS17",
        {"quantized_data": CODES, "zero_point": CODES[:, 0, 0, 0], "scale": HALF_SCALES, "axis": np.int32(0)},
    ),
    (
        "constexpr_blockwise_shift_scale",
        "iOS18",
        {"data": CODES, "scale": HALF_SCALES.reshape(6, 1, 1, 1), "offset": CODES[:, :1, :1, :1]},
    ),
    (
        "constexpr_blockwise_shift_scale",
        "iOS18",
        {"data": CODES, "scale": RNG.standard_normal((3, 2, 1, 2)).astype(np.float16)},
    ),
    (
        "constexpr_lut_to_dense",
        "iOS17",
        {
            "indices": RNG.integers(0, 256, 18).astype(np.uint8),
            "lut": PALETTES[0].reshape(64),
            "shape": np.array([4, 6], np.uint32),
        },
    ),
]


@pytest.mark.parametrize(("kind", "opset", "arguments"), WEIGHTS, ids=[f"{kind} {opset}" for kind, opset, _ in WEIGHTS])
def test_weights_expand_as_coremltools_expands_them(kind: str, opset: str, arguments: dict[str, Any]) -> None:
    expected = inferred(kind, getattr(ct.target, opset), **arguments)
    found = CONSTEXPR[kind](**{name: as_read(value) for name, value in arguments.items()}).half().numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("lut", "axis"), [((3, 1, 1, 1, 64, 1), None), ((1, 2, 1, 1, 64, 3), 1), ((2, 1, 1, 1, 64, 2), 0)]
)
def test_palettes_of_blocks_and_vectors_expand_as_coremltools_expands_them(
    lut: tuple[int, ...], axis: int | None
) -> None:
    from coremltools.converters.mil.mil import types

    palettes = RNG.standard_normal(lut).astype(np.float16)
    indices = RNG.integers(0, 64, (6, 4, 2, 2)).astype(np.uint8)
    six_bits = indices.astype(types.nptype_from_builtin(types.uint6))
    extra = {} if axis is None else {"vector_axis": np.int32(axis)}
    expected = inferred("constexpr_lut_to_dense", ct.target.iOS18, indices=six_bits, lut=palettes, **extra)
    found = CONSTEXPR["constexpr_lut_to_dense"](as_read(indices), as_read(palettes), vector_axis=axis).half().numpy()
    np.testing.assert_array_equal(found, expected)


def test_a_cast_constant_keeps_its_values() -> None:
    np.testing.assert_array_equal(CONSTEXPR["constexpr_cast"](as_read(HALF_SCALES), "fp32"), HALF_SCALES)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packed_numbers_come_back(bits: int) -> None:
    """Lowest bit first, over the borders of bytes, as the operator's reference draws it."""
    numbers = RNG.integers(0, 2**bits, 21)
    stream = "".join(f"{number:0{bits}b}"[::-1] for number in numbers)
    stream += "0" * (-len(stream) % 8)
    packed = np.array([int(stream[at : at + 8][::-1], 2) for at in range(0, len(stream), 8)], np.uint8)
    assert unpacked(as_read(packed), bits, 21).tolist() == numbers.tolist()
