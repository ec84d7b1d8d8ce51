"""int16 sums to the last code, and figures of whole files against a loop over single products."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from quantized_graphs import ACTIVATION_SCALE, conv_file, linear_file

from edgeconvnext.backends.onnxruntime import saturation as fidelity
from edgeconvnext.backends.onnxruntime.saturation import (
    LayerSaturation,
    products_saturate,
    saturated_product,
    saturation,
)
from edgeconvnext.evaluation.accuracy import fidelity_db

INT16 = np.iinfo(np.int16)


def emulated(
    codes: np.ndarray, weights: np.ndarray, scales: np.ndarray, zero_point: int
) -> tuple[int, int, float, float]:
    """Return pairs, saturating pairs, error power and signal power, from one product after the other."""
    pairs = saturating = 0
    error = signal = 0.0
    for row in codes.tolist():
        for column, scale in zip(weights.T.tolist(), scales.tolist(), strict=True):
            lost = 0
            for k in range(0, len(row), 2):
                exact = sum(a * w for a, w in zip(row[k : k + 2], column[k : k + 2], strict=True))
                held = int(np.clip(exact, INT16.min, INT16.max))
                pairs, saturating, lost = pairs + 1, saturating + (held != exact), lost + held - exact
            error += (scale * lost) ** 2
            signal += (scale * sum((a - zero_point) * w for a, w in zip(row, column, strict=True))) ** 2
    return pairs, saturating, error, signal


@pytest.mark.parametrize(
    ("codes", "weights", "excess"),
    [
        ((255, 191), (127, 2), 0),  # 32385 + 382 = 32767, the largest int16
        ((128, 172), (127, 96), 1),  # 16256 + 16512 = 32768
        ((128, 128), (-128, -128), 0),  # -32768, the smallest
        ((255, 129), (-128, -1), 1),  # -32640 - 129 = -32769
        ((255, 255), (127, 127), 2 * 255 * 127 - 32767),
        ((255, 255), (-128, -128), 2 * 255 * 128 - 32768),
        ((255, 255), (127, -128), 0),  # the two cancel
        ((255, 0), (127, 127), 0),
        ((255,), (127,), 0),  # the odd one out is added to nothing
    ],
)
def test_a_sum_saturates_from_the_first_code_beyond_int16(
    codes: tuple[int, ...], weights: tuple[int, ...], excess: int
) -> None:
    given = np.array([codes], np.int32), np.array(weights, np.int8)[:, None]
    pairs, saturating, error, signal = saturated_product(*given, np.array([0.5]), 3)
    exact = sum((code - 3) * weight for code, weight in zip(codes, weights, strict=True))
    assert (pairs, saturating) == (1, int(excess > 0))
    assert (error, signal) == ((0.5 * excess) ** 2, (0.5 * exact) ** 2)


@pytest.mark.parametrize("at_once", [1, 6, 21, 4_000_000])
@pytest.mark.parametrize("reduced", [1, 2, 7, 12])
def test_products_are_those_of_a_loop_whatever_is_formed_at_once(
    at_once: int, reduced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small pieces split the pairs of one output over several turns, which must add up."""
    monkeypatch.setattr(fidelity, "CHUNK_ELEMENTS", at_once)
    rng = np.random.default_rng(reduced)
    codes = rng.choice(np.array([0, 1, 127, 250, 255], np.int32), (6, reduced))
    weights = rng.choice(np.array([-128, -127, -100, 1, 100, 127], np.int8), (reduced, 5))
    scales = np.linspace(0.5, 2, 5)
    expected = emulated(codes, weights, scales, zero_point=77)
    assert expected[1] > 0 or reduced == 1
    assert saturated_product(codes, weights, scales, 77) == pytest.approx(expected, rel=1e-12)


def test_no_rows_have_no_power() -> None:
    assert saturated_product(np.zeros((1, 4), np.int32), np.ones((4, 3), np.int8), np.ones(3), 0).tolist() == [
        6,
        0,
        0,
        0,
    ]


def test_memory_is_bounded_by_the_elements_formed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "CHUNK_ELEMENTS", 4000)
    codes = np.full((40, 64), 255, np.int32)
    weights = np.full((64, 300), 127, np.int8)  # 32 * 300 pairs saturate in each of 40 rows: 384,000 sums of 4 bytes
    tracemalloc.start()
    try:
        saturated_product(codes, weights, np.ones(300), 128)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A dozen arrays of outputs, pairs or pieces, 8 bytes an element: 12 * 12,000 * 8. All sums at once take several times 1.5 MB.
    assert peak < 1.2e6


def codes_of(values: np.ndarray, activation: type) -> tuple[np.ndarray, int]:
    """Unsigned codes of the file's grid and their zero point; signed ones are moved up by 128, as on x86."""
    info = np.iinfo(activation)
    zero_point = 128 if activation is np.uint8 else 0
    codes = np.clip(np.rint(values / np.float32(ACTIVATION_SCALE)) + zero_point, info.min, info.max).astype(int)
    return codes - info.min, zero_point - int(info.min)


@pytest.mark.parametrize("activation", [np.uint8, np.int8])
def test_figures_of_a_linear_layer_are_sums_over_all_images(tmp_path: Path, activation: type) -> None:
    rng = np.random.default_rng(3)
    # Ten rows are more than layer_inputs reads at a time.
    values = rng.uniform(-3, 3, (10, 12)).astype(np.float32)
    weights = rng.integers(-128, 128, (12, 4)).astype(np.int8)
    (layer,) = saturation(linear_file(tmp_path / "model.onnx", weights, activation), values)
    scales = np.linspace(0.01, 0.02, 4, dtype=np.float32).astype(np.float64) * np.float32(ACTIVATION_SCALE)
    pairs, saturating, error, signal = emulated(codes_of(values, activation)[0], weights, scales, 128)
    assert saturating > 0
    assert layer == LayerSaturation(
        "head", "MatMul", pairs, saturating, pytest.approx((error / signal) ** 0.5, rel=1e-9)
    )


def test_figures_of_a_conv_are_sums_over_its_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    values = rng.uniform(-3, 3, (2, 6, 4, 6)).astype(np.float32)
    weights = rng.choice(np.array([-128, -90, 90, 127], np.int8), (6, 3, 2, 2))
    (layer,) = saturation(conv_file(tmp_path / "model.onnx", weights, groups=2), values)
    codes, zero_point = codes_of(values, np.uint8)
    scales = np.linspace(0.01, 0.02, 6, dtype=np.float32).astype(np.float64) * np.float32(ACTIVATION_SCALE)
    total = np.zeros(4)
    for group in range(2):
        own = slice(3 * group, 3 * group + 3)
        # (N, 3, 2, 2, 3, 2): channel, row and its offset, column and its offset; K runs over kernel rows, columns, channels.
        patches = codes[:, own].reshape(2, 3, 2, 2, 3, 2).transpose(0, 2, 4, 3, 5, 1).reshape(-1, 12)
        total += emulated(patches, weights[own].transpose(2, 3, 1, 0).reshape(12, 3), scales[own], zero_point)
    assert total[1] > 0
    expected = LayerSaturation(
        "conv", "Conv", int(total[0]), int(total[1]), pytest.approx((total[2] / total[3]) ** 0.5)
    )
    assert layer == expected


def test_a_layer_without_output_has_no_error(tmp_path: Path) -> None:
    (layer,) = saturation(linear_file(tmp_path / "model.onnx", np.zeros((4, 3), np.int8)), np.ones((2, 4), np.float32))
    assert (layer.pairs, layer.saturating, layer.relative_error) == (2 * 2 * 3, 0, 0.0)


@pytest.mark.parametrize(
    ("available", "saturates"),
    [
        (set(), False),
        ({"sse2"}, True),
        ({"avx_vnni"}, False),
        ({"sse2", "avx_vnni"}, False),
        ({"sse2", "avx512_vnni"}, False),
        ({"sse2", "avx512_vnni", "avx_vnni"}, False),
        ({"sse2", "avx2", "avx512_f"}, True),
        ({"neon"}, False),
    ],
)
def test_products_saturate_on_x86_without_vnni(
    available: set[str], saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert products_saturate(available) is saturates
    monkeypatch.setattr(fidelity, "instruction_sets", lambda: available)
    assert products_saturate() is saturates
    # No set of its own is not the same as an empty one.
    monkeypatch.setattr(fidelity, "instruction_sets", lambda: {"sse2"})
    assert products_saturate(available) is saturates


def test_fidelity_takes_the_simulation_as_the_signal() -> None:
    simulated, artifact = np.array([[3.0, 4.0]]), np.array([[3.0, 3.5]])
    assert fidelity_db(artifact, simulated) == pytest.approx(10 * np.log10(25 / 0.25), rel=1e-12)
