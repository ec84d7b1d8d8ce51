"""Saturation of int8 products on x86 without VNNI: planted, found on any machine, and impossible with 7-bit weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_graphs import alternating_weights, conv_file, linear_file

from edgeconvnext.backends.onnxruntime.runner import onnx_session
from edgeconvnext.backends.onnxruntime.saturation import products_saturate, saturated_product, saturation
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation.accuracy import fidelity_db

INPUT = np.random.default_rng(0).uniform(-2.5, 2.5, (40, 64)).astype(np.float32)
IMAGE = np.random.default_rng(0).uniform(-2.5, 2.5, (2, 8, 8, 8)).astype(np.float32)


def vpmaddubsw_product(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Multiply as the instruction does, one output at a time: the plain form that the fast one is held against."""
    result = np.zeros((len(codes), weights.shape[1]), np.int64)
    for row in range(len(codes)):
        for column in range(weights.shape[1]):
            products = codes[row].astype(np.int64) * weights[:, column].astype(np.int64)
            for k in range(0, len(products), 2):
                result[row, column] += min(32767, max(-32768, int(products[k : k + 2].sum())))
    return result


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 255), st.integers(0, 10_000))
def test_saturated_product_is_what_the_instruction_computes(
    rows: int, reduced: int, columns: int, zero_point: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.choice(np.array([0, 128, 250, 255], np.int32), (rows, reduced))
    weights = rng.choice(np.array([-128, -127, -64, 3, 127], np.int8), (reduced, columns))
    scales = rng.uniform(0.5, 2, columns)
    pairs, saturating, error, signal = saturated_product(codes, weights, scales, zero_point)
    exact = codes.astype(np.int64) @ weights.astype(np.int64)
    lost = vpmaddubsw_product(codes, weights) - exact
    assert pairs == rows * -(-reduced // 2) * columns
    assert (saturating > 0) == bool((vpmaddubsw_pairs_out_of_range(codes, weights)).any())
    assert saturating == vpmaddubsw_pairs_out_of_range(codes, weights).sum()
    assert error == pytest.approx(np.square(lost * scales).sum())
    offset = exact - zero_point * weights.astype(np.int64).sum(0)
    assert signal == pytest.approx(np.square(offset * scales).sum())


def vpmaddubsw_pairs_out_of_range(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    products = codes.astype(np.int64)[:, :, None] * weights.astype(np.int64)[None]
    sums = np.add.reduceat(products, range(0, codes.shape[1], 2), axis=1)
    return (sums > 32767) | (sums < -32768)


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("activation", [np.uint8, np.int8])
def test_planted_full_range_weights_saturate(tmp_path: Path, gemm: bool, activation: type) -> None:
    path = linear_file(tmp_path / "model.onnx", alternating_weights(127, 64, 24), activation, gemm)
    (layer,) = saturation(path, INPUT)
    assert (layer.layer, layer.operator) == ("head", "Gemm" if gemm else "MatMul")
    assert layer.pairs == 40 * 32 * 24
    # Codes are uniform over 0..255 and the two weights equal: a pair overflows from a sum of codes of 259 on, 49 %.
    assert layer.saturating / layer.pairs == pytest.approx(0.49, abs=0.03)
    assert layer.relative_error > 0.5


@pytest.mark.parametrize("activation", [np.uint8, np.int8])
def test_seven_bit_weights_never_saturate(tmp_path: Path, activation: type) -> None:
    path = linear_file(tmp_path / "model.onnx", alternating_weights(64, 64, 24), activation)
    (layer,) = saturation(path, np.full_like(INPUT, 100.0))
    assert (layer.saturating, layer.relative_error) == (0, 0.0)


@pytest.mark.parametrize("limit", [127, 64])
def test_the_runtime_on_this_machine_errs_as_emulated(tmp_path: Path, limit: int) -> None:
    path = linear_file(tmp_path / "model.onnx", alternating_weights(limit, 64, 24), np.uint8)
    (layer,) = saturation(path, INPUT)
    weights = alternating_weights(limit, 64, 24).astype(np.float64)
    codes = np.clip(np.rint(INPUT / np.float32(0.02)), -128, 127).astype(np.float64)
    exact = codes @ weights * 0.02 * np.linspace(0.01, 0.02, 24, dtype=np.float32)
    (measured,) = onnx_session(path, threads=1).run(None, {"x": INPUT})
    relative_error = np.linalg.norm(measured - exact) / np.linalg.norm(exact)
    expected = layer.relative_error if products_saturate() else 0.0
    # 1e-5: the runtime multiplies by float32 scales.
    assert relative_error == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_conv_with_quantised_output_saturates_along_its_channels(tmp_path: Path, groups: int) -> None:
    weights = np.random.default_rng(0).choice(np.array([-127, 127], np.int8), (16, 8 // groups, 2, 2))
    weights[:, 1::2] = weights[:, 0::2]
    path = conv_file(tmp_path / "model.onnx", weights, groups=groups)
    (layer,) = saturation(path, IMAGE)
    # 2 images x 4 x 4 positions, 16 outputs, 4 * channels / 2 pairs
    assert layer.pairs == 2 * 16 * 16 * (4 * 8 // groups) // 2
    assert layer.saturating / layer.pairs == pytest.approx(0.49, abs=0.05)


def test_convs_that_run_in_float_or_exactly_are_left_out(tmp_path: Path) -> None:
    full = np.full((8, 8, 2, 2), 127, np.int8)
    assert saturation(conv_file(tmp_path / "float.onnx", full, quantized_output=False), IMAGE) == []
    assert saturation(conv_file(tmp_path / "depthwise.onnx", full[:, :1], groups=8), IMAGE) == []


def test_which_processors_saturate() -> None:
    assert products_saturate({"sse2", "avx2"})
    assert not products_saturate({"sse2", "avx2", "avx_vnni"})
    assert not products_saturate({"sse2", "avx512_f", "avx512_vnni"})
    assert not products_saturate({"neon", "neon_dot"})


def test_fidelity_is_measured_against_the_simulation() -> None:
    simulated = np.random.default_rng(0).standard_normal((10, 4))
    assert fidelity_db(simulated * 1.01, simulated) == pytest.approx(40.0, abs=1e-6)


def test_a_file_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="cannot be read as an ONNX file"):
        saturation(tmp_path / "model.onnx", IMAGE)
    path = linear_file(tmp_path / "linear.onnx", alternating_weights(64, 64, 24))
    with pytest.raises(ExportError, match="does not run on images of shape"):
        saturation(path, INPUT[:, :10])
