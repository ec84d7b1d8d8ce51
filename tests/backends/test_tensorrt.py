"""Engines: TensorRT-RTX builds them here without a GPU; TensorRT says what it misses."""

from __future__ import annotations

import builtins
import importlib
from pathlib import Path
from typing import Any

import pytest
from quantized_programs import VARIANTS, Variant, layers_of, onnx_bytes, typed_onnx_bytes

from edgeconvnext.backends.tensorrt import engine as tensorrt
from edgeconvnext.errors import ExportError, RuntimeMissingError


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
