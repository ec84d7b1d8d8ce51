"""Engines: TensorRT-RTX builds them here without a GPU; TensorRT says what it misses."""

from __future__ import annotations

import builtins
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from quantized_programs import METADATA, VARIANTS, Variant, layers_of, onnx_bytes, program_for, typed_onnx_bytes

from edgeconvnext.backends import backend, load_target
from edgeconvnext.backends.tensorrt import engine as tensorrt
from edgeconvnext.errors import ExportError, RuntimeMissingError
from edgeconvnext.targets import with_ends
from tests.in_process import run_command


@pytest.fixture
def needs_rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'edgeconvnext[rtx]'")


@pytest.fixture
def typed_onnx(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(typed_onnx_bytes("jetson"))
    return path


@pytest.mark.usefixtures("needs_rtx")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_parser_sees_every_weighted_layer_as_int8(variant: Variant, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(typed_onnx_bytes("jetson", variant))
    network = tensorrt.build_rtx_engine(path, tmp_path / "model.engine").network
    assert {layer.name for layer in network.weighted() if layer.quantized} == set(layers_of(variant))
    # Float operators are float16 throughout: strongly typed networks take the file at its word.
    assert {kind for layer in network.weighted() for kind in layer.input_types + layer.output_types} == {"HALF"}
    assert network.kinds()["NORMALIZATION"] == 6
    assert network.runtime.startswith("TensorRT-RTX ")


@pytest.mark.usefixtures("needs_rtx")
def test_the_float_network_has_no_int8_layers(tmp_path: Path) -> None:
    path = tmp_path / "model_fp16.onnx"
    path.write_bytes(typed_onnx_bytes(None))
    network = tensorrt.build_rtx_engine(path, tmp_path / "model.engine").network
    assert len(network.weighted()) == len(layers_of())
    assert not [layer.name for layer in network.weighted() if layer.quantized]


def typed_file(folder: Path, *, ends: bool) -> Path:
    """The typed ONNX of a quantised network; with ends, it takes uint8 and gives probabilities, too."""
    target = with_ends(load_target("rtx"), "uint8", probabilities=True) if ends else load_target("rtx")
    folder.mkdir()
    return backend("tensorrt-rtx").write(target, program_for("jetson"), folder / "model.onnx", METADATA)


def test_a_file_with_ends_computes_what_the_plain_one_does(tmp_path: Path) -> None:
    plain, ends = (
        onnxruntime.InferenceSession(
            typed_file(tmp_path / name, ends=name == "ends"), providers=["CPUExecutionProvider"]
        )
        for name in ("plain", "ends")
    )
    pixels = np.random.default_rng(0).integers(0, 4, (8, 3, 32, 32), np.uint8)
    assert [(value.name, value.type) for value in ends.get_inputs()] == [("image", "tensor(uint8)")]
    logits, shares = ends.run(["logits", "probabilities"], {"image": pixels})
    np.testing.assert_array_equal(logits, plain.run(["logits"], {"image": pixels.astype(np.float32)})[0])
    exact = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    # Some exponentials and a sum in float32: a few units of 2**-24 each.
    np.testing.assert_allclose(shares, exact / exact.sum(1, keepdims=True), rtol=2e-6, atol=1e-9)


@pytest.mark.usefixtures("needs_rtx")
def test_the_builder_takes_pixels_and_probabilities(tmp_path: Path) -> None:
    network = tensorrt.build_rtx_engine(typed_file(tmp_path / "ends", ends=True), tmp_path / "model.engine").network
    assert {layer.name for layer in network.weighted() if layer.quantized} == set(layers_of())
    casts = [layer.output_types for layer in network.layers if layer.input_types == ("UINT8",)]
    softmax = [layer.output_types for layer in network.layers if layer.kind == "SOFTMAX"]
    assert (casts, softmax) == ([("FLOAT",)], [("FLOAT",)])


@pytest.mark.exhaustive
@pytest.mark.usefixtures("needs_rtx")
def test_a_run_with_ends_builds_its_engine_and_says_that_it_did_not_run(micro: str, tmp_path: Path) -> None:
    images = ("--calib", "digits", "--eval", "digits_test", "--num-images", "60", "--effort", "quick", "--no-latency")
    ends = ("--input", "uint8", "--probabilities", "--output", tmp_path / "run")
    done = run_command("export", "--target", "rtx", "--model", micro, *images, *ends)
    assert done.returncode in (0, 3), done.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["probabilities"] is True and report["model"]["preprocess"]["input_type"] == "uint8"
    assert all(check["passed"] for check in report["checks"]) and (tmp_path / "run/model.engine").is_file()
    assert report["accuracy"]["artifact"] is None and "RTX GPU" in report["not_measured"]["accuracy.artifact"]
    card = (tmp_path / "run/MODEL_CARD.md").read_text()
    assert "np.uint8" in card and "for name in ['logits', 'probabilities']" in card and "np.exp" not in card
    assert "np.ascontiguousarray(x)" in card, "the engine reads channels first, whatever the strides of an array are"


@pytest.mark.usefixtures("needs_rtx")
def test_an_engine_is_built_without_a_gpu(typed_onnx: Path) -> None:
    built = tensorrt.build_rtx_engine(typed_onnx, typed_onnx.with_suffix(".engine"), batch=(1, 4, 16))
    assert built.path.stat().st_size == built.size_bytes > 10_000
    assert built.batch == (1, 4, 16)
    assert built.seconds > 0
    assert sorted(path.name for path in typed_onnx.parent.iterdir()) == ["model.engine", "model.onnx"]


@pytest.mark.usefixtures("needs_rtx")
@pytest.mark.parametrize("content", [b"", b"not a network", None])
def test_files_the_parser_does_not_read_are_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"broken\.onnx"):
        tensorrt.build_rtx_engine(path, tmp_path / "model.engine")
    assert not (tmp_path / "model.engine").exists()


@pytest.mark.usefixtures("needs_rtx")
def test_the_parsers_own_words_reach_the_user(tmp_path: Path) -> None:
    """Affine uint8 activations are beyond TensorRT."""
    path = tmp_path / "affine.onnx"
    path.write_bytes(onnx_bytes("onnx"))
    with pytest.raises(ExportError, match=r"does not read .*affine\.onnx: \w+"):
        tensorrt.build_rtx_engine(path, tmp_path / "model.engine")


def test_a_missing_runtime_names_the_extra(typed_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_rtx(name: str, package: str | None = None) -> Any:
        if name == "tensorrt_rtx":
            raise ModuleNotFoundError("No module named 'tensorrt_rtx'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_rtx)
    with pytest.raises(RuntimeMissingError, match=r"edgeconvnext\[rtx\]") as caught:
        tensorrt.build_rtx_engine(typed_onnx, typed_onnx.with_suffix(".engine"))
    assert caught.value.exit_code == 4


def test_the_gpu_target_says_what_is_missing_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str, *_: Any) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(tensorrt.ctypes, "CDLL", no_driver)
    with pytest.raises(RuntimeMissingError, match=r"there is no NVIDIA driver \(libcuda\)"):
        # The file does not exist: the runtime is asked for first.
        tensorrt.build_gpu_engine(tmp_path / "absent.onnx", tmp_path / "model.engine")


def test_importing_the_module_loads_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def guarded(name: str, *arguments: Any) -> Any:
        assert not name.startswith("tensorrt"), f"{name} is imported with the module"
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", guarded)
    importlib.reload(tensorrt)
