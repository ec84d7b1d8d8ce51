"""What onnxruntime runs: every operator's time, and quantised layers that it computes in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quantized_graphs import alternating_weights, conv_file, linear_file
from rich.console import Console

from edgeconvnext.backends.onnxruntime.profile import profile_onnx
from edgeconvnext.commands.bench import bench_artifact, render_bench
from edgeconvnext.errors import ExportError

LINEAR = alternating_weights(64, 32, 8)
CONV = alternating_weights(64, 32, 8).T.reshape(8, 8, 2, 2)
IMAGES = np.linspace(-2, 2, 8 * 16 * 16, dtype=np.float32).reshape(1, 8, 16, 16)


def test_a_linear_that_multiplies_codes_did_not_fall_back(tmp_path: Path) -> None:
    profile = profile_onnx(linear_file(tmp_path / "linear.onnx", LINEAR), IMAGES.reshape(-1, 32), threads=1, runs=3)
    assert profile.fell_back == ()
    assert [node.operator for node in profile.nodes if node.kind == "linears"] == ["MatMulIntegerToFloat"]
    assert all(node.median_ms >= 0 for node in profile.nodes)


@pytest.mark.parametrize("quantized_output", [True, False])
def test_a_conv_without_a_quantised_output_falls_back(quantized_output: bool, tmp_path: Path) -> None:
    """The reason why quantised patch convs are written as linears."""
    path = conv_file(tmp_path / "conv.onnx", CONV, quantized_output=quantized_output)
    profile = profile_onnx(path, IMAGES, threads=1, runs=3)
    operators = [node.operator for node in profile.nodes if node.kind == "convs"]
    assert operators == (["QLinearConv"] if quantized_output else ["Conv"])
    assert profile.fell_back == (() if quantized_output else ("conv",))


def test_a_file_that_does_not_take_the_images_is_refused(tmp_path: Path) -> None:
    path = conv_file(tmp_path / "conv.onnx", CONV)
    with pytest.raises(ExportError, match=r"conv\.onnx"):
        profile_onnx(path, IMAGES[:, :3], threads=1)


def test_bench_lays_profiles_side_by_side_and_names_what_fell_back(tmp_path: Path) -> None:
    for quantized_output in (True, False):
        path = conv_file(tmp_path / f"{quantized_output}.onnx", CONV, quantized_output=quantized_output)
        sized(path)
    result = bench_artifact(tmp_path / "False.onnx", tmp_path / "True.onnx", seconds=0.01, profile=True)
    assert list(result.profiles) == ["True.onnx", "False.onnx"]
    console = Console(width=100, record=True)
    console.print(render_bench(result))
    text = console.export_text()
    assert "1 QLinearConv" not in text and "1 Conv" in text  # nodes are the artifact's
    assert "False.onnx: quantised, but run in float after a DequantizeLinear: conv" in text


def sized(path: Path) -> None:
    """Fix all sides of a file's input but the batch, as an exported network has them."""
    import onnx

    model = onnx.load(path)
    for dim, side in zip(model.graph.input[0].type.tensor_type.shape.dim[1:], IMAGES.shape[1:], strict=True):
        dim.dim_value = side
    onnx.save(model, path)
