"""The Mac's script: Python 3.8, honest exit codes. Core ML itself is not here: what runs in its place is the simulated graph."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from quantized_programs import CLASSES, images, program_for, run, small_convnext

from edgeconvnext.backends import backend, load_target
from edgeconvnext.backends.kit.write import CheckVectors, KitNetworks, assemble_script, write_device_kit
from edgeconvnext.targets import GateSection

SCRIPT = assemble_script(backend("coreml").kit_script())
COUNT = 4


def pixels() -> np.ndarray:
    """Whole pixel values, (COUNT, 3, 32, 32) float32, as the package takes them."""
    return np.clip(np.rint(images(COUNT, seed=9).numpy() * 40 + 128), 0, 255).astype(np.float32)


def answer(batch: np.ndarray, quantized: bool) -> np.ndarray:
    values = torch.from_numpy(batch / np.float32(64) - 2)
    if quantized:
        return run(program_for("coreml"), values)
    with torch.inference_mode():
        return small_convnext()(values).numpy()


def make_kit(root: Path, gates: GateSection) -> Path:
    for name in ("model", "model_fp16"):
        (root / f"{name}.mlpackage" / "Data").mkdir(parents=True)
        (root / f"{name}.mlpackage" / "Data" / "weight.bin").write_bytes(name.encode())
        (root / f"{name}.mlpackage" / "Manifest.json").write_text("{}")
    fp32 = answer(pixels(), quantized=False)
    vectors = CheckVectors(pixels(), fp32, answer(pixels(), quantized=True), labels=fp32.argmax(axis=1))
    networks = KitNetworks(root / "model.mlpackage", root / "model_fp16.mlpackage", "W8A8", "FP16")
    target = load_target("mac").model_copy(update={"gates": gates})
    write_device_kit(root / "device", vectors, networks, model_name="small", target=target)
    return root / "device"


def test_the_script_is_python_3_8_and_imports_only_the_standard_library() -> None:
    imported = set()
    for node in ast.walk(ast.parse(SCRIPT, feature_version=(3, 8))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported <= sys.stdlib_module_names


def test_the_kit_holds_both_packages_with_every_file_hashed_and_ten_lines_of_swift(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, GateSection())
    assert set(json.loads((kit / "kit.json").read_text())["files"]) == {
        "model.mlpackage/Data/weight.bin",
        "model.mlpackage/Manifest.json",
        "model_fp16.mlpackage/Data/weight.bin",
        "model_fp16.mlpackage/Manifest.json",
        "vectors.bin",
    }
    swift = (kit / "classify.swift").read_text()
    assert len(swift.splitlines()) == 10 and "VNCoreMLRequest" in swift
    assert len((kit / "README.txt").read_text().splitlines()) == 3


@pytest.mark.skipif(sys.platform == "darwin", reason="this machine has Core ML")
def test_away_from_macos_it_ends_with_4(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(make_kit(tmp_path, GateSection()) / "check.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4 and "Core ML is a part of macOS" in done.stderr


def fake_coremltools(predict: Callable[[str, dict[str, Any]], np.ndarray]) -> SimpleNamespace:
    """coremltools with Core ML replaced by `predict`."""

    class MLModel:
        def __init__(self, path: str, compute_units: str) -> None:
            self.path = path
            assert compute_units == "all units"

        def predict(self, feed: dict[str, Any]) -> dict[str, np.ndarray]:
            return {"logits": predict(self.path, feed)}

        def get_compiled_model_path(self) -> str:
            return self.path + "c"

    return SimpleNamespace(
        __version__="9.0", ComputeUnit=SimpleNamespace(ALL="all units"), models=SimpleNamespace(MLModel=MLModel)
    )


def run_on_a_mac(kit: Path, monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> tuple[int, dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("check", kit / "check.py")
    assert spec is not None and spec.loader is not None
    script: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def predict(path: str, feed: dict[str, Any]) -> np.ndarray:
        picture = np.asarray(feed["image"]).transpose(2, 0, 1)[None].astype(np.float32)
        return factor * answer(picture, quantized=not path.endswith("model_fp16.mlpackage"))

    monkeypatch.setattr(script, "load_runtime", lambda: fake_coremltools(predict))
    for name, value in (("WARM_UP_SECONDS", 0.01), ("BLOCK_SECONDS", 0.01)):
        monkeypatch.setattr(script, name, value)
    code = script.main(["--seconds", "0.02"])
    return code, json.loads((kit / "device.json").read_text())


def test_it_checks_times_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = make_kit(tmp_path, GateSection(min_fidelity_db=30.0, min_speedup=1e-6))
    code, result = run_on_a_mac(kit, monkeypatch)
    assert code == 0 and result["passed"] is True
    # Images arrive as they were exported, pixel for pixel: other pixels, or channels in another order, would not give this.
    assert result["check"]["fidelity_db"] > 60 and result["check"]["images"] == COUNT
    assert result["latency"]["artifact"]["runs"] >= 10 and result["latency"]["batch"] == 1
    assert result["machine"]["compute_units"] == "ALL"
    assert result["layers"] == {"artifact": [], "baseline": []}, "no plan without macOS, and none is made up"


def test_wrong_answers_miss_the_fidelity_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = make_kit(tmp_path, GateSection(min_fidelity_db=30.0))
    code, result = run_on_a_mac(kit, monkeypatch, factor=1.1)
    # Answers off by a tenth: 20 log10(10) is 20 dB.
    assert code == 3 and result["check"]["fidelity_db"] == pytest.approx(20.0, abs=0.2)
    assert len(result["answers"]) >= COUNT * CLASSES
