"""The CPU boards' script, run as it is on a board: from another folder, in onnxruntime, with honest exit codes."""

from __future__ import annotations

import ast
import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from quantized_programs import CLASSES, images, in_onnxruntime, onnx_bytes, program_for, run, small_convnext, sqnr_db

from edgeconvnext.backends import backend, load_target
from edgeconvnext.backends.kit.write import CheckVectors, KitNetworks, assemble_script, write_device_kit
from edgeconvnext.backends.onnxruntime.layer_outputs import layer_outputs
from edgeconvnext.files import tree_sha256
from edgeconvnext.quantization.simulate import simulator
from edgeconvnext.targets import GateSection

SCRIPT = assemble_script(backend("onnx").kit_script())


def make_kit(root: Path, gates: GateSection, count: int = 6, artifact: bytes | None = None) -> Path:
    batch = images(count, seed=9)
    with torch.inference_mode():
        fp32 = small_convnext()(batch).numpy()
    (root / "model.onnx").write_bytes(onnx_bytes("onnx") if artifact is None else artifact)
    layers = layer_outputs(simulator(program_for("onnx")), root / "model.onnx", batch.numpy())
    simulated = run(program_for("onnx"), batch)
    vectors = CheckVectors(batch.numpy(), fp32, simulated, labels=fp32.argmax(axis=1), layers=tuple(layers))
    (root / "model_fp32.onnx").write_bytes(onnx_bytes(None))
    networks = KitNetworks(root / "model.onnx", root / "model_fp32.onnx", "W8A8", "FP32")
    target = load_target("onnx").model_copy(update={"gates": gates})
    write_device_kit(root / "device", vectors, networks, model_name="small", target=target)
    return root / "device"


def run_script(folder: Path, *arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the kit's script from a folder that is not its own, without this package on the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, *flags, str(folder / "check.py"), "--seconds", "0.05", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=folder.parent.parent, env=environment
    )


def test_the_script_is_python_3_8_and_imports_only_the_standard_library() -> None:
    tree = ast.parse(SCRIPT, feature_version=(3, 8))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported <= sys.stdlib_module_names
    assert "edgeconvnext." not in SCRIPT


def test_a_kit_moved_to_another_folder_measures_and_writes_device_json(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, GateSection(min_fidelity_db=30.0, min_speedup=1e-6))
    moved = Path(shutil.copytree(kit, tmp_path / "else where" / "kit"))
    shutil.rmtree(kit)
    done = run_script(moved, "--batch", "2")
    assert done.returncode == 0, done.stderr
    result = json.loads((moved / "device.json").read_text())
    measured = np.frombuffer(base64.b64decode(result["answers"]), "<f4").reshape(6, CLASSES)
    # Another batch may move a code across a rounding border.
    assert sqnr_db(in_onnxruntime(onnx_bytes("onnx"), images(6, seed=9)), measured) > 60
    assert result["check"]["fidelity_db"] > 40 and result["check"]["score_fp32"] == 100.0
    assert result["kit"] == tree_sha256(moved / "kit.json")
    assert result["latency"]["batch"] == 2 and result["latency"]["artifact"]["runs"] >= 10
    assert result["speedup"]["low"] <= result["speedup"]["value"] <= result["speedup"]["high"]
    blocks = {layer["layer"]: layer["sqnr_db"] for layer in result["layer_fidelity"]}
    assert list(blocks) == ["stages.0.0", "stages.1.0", "stages.1.1"] and min(blocks.values()) > 40
    assert ("power_absent" in result) == (result["power"] is None)
    assert result["passed"] is True and result["saved"] == ["layers.json"]


def test_layers_say_what_ran_in_which_precision(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, GateSection())
    assert run_script(kit).returncode == 0
    layers = json.loads((kit / "layers.json").read_text())
    integer = [layer for layer in layers["artifact"] if layer["precision"] == "int8"]
    # Two linears in each of three blocks, the downsampling conv, and the head.
    assert [layer["kind"] for layer in integer] == ["QGemm"] * 8
    assert {layer["precision"] for layer in layers["baseline"]} == {"float32"}
    assert all(layer["median_ms"] >= 0 for layer in layers["artifact"])


def test_the_block_that_computes_something_else_is_named(tmp_path: Path) -> None:
    model = onnx.load_from_string(onnx_bytes("onnx"))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    bias, step = stored["stages.1.0.pwconv2.bias"], numpy_helper.to_array(stored["stages.1.0.pwconv2.bias_scale"])
    spoilt = numpy_helper.from_array(numpy_helper.to_array(bias) + np.rint(0.5 / step).astype(np.int32), bias.name)
    bias.CopyFrom(spoilt)
    kit = make_kit(tmp_path, GateSection(min_fidelity_db=30.0), artifact=model.SerializeToString())
    assert run_script(kit).returncode == 3
    result = json.loads((kit / "device.json").read_text())
    blocks = {layer["layer"]: layer["sqnr_db"] for layer in result["layer_fidelity"]}
    assert blocks["stages.0.0"] > 40 and blocks["stages.1.0"] < 25


def test_a_missed_gate_ends_with_3(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, GateSection(min_fidelity_db=199.0))
    done = run_script(kit)
    assert done.returncode == 3 and "MISSED min_fidelity_db" in done.stdout
    assert json.loads((kit / "device.json").read_text())["passed"] is False


def test_without_onnxruntime_it_ends_with_4(tmp_path: Path) -> None:
    done = run_script(make_kit(tmp_path, GateSection()), flags=("-I", "-S"))
    assert done.returncode == 4
    assert done.stderr.startswith("Error: Python cannot import onnxruntime") and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["model.onnx", "kit.json", "vectors.bin"])
def test_a_broken_kit_ends_with_1(name: str, tmp_path: Path) -> None:
    kit = make_kit(tmp_path, GateSection())
    (kit / name).unlink()
    (kit / name).write_bytes(b"{}")
    done = run_script(kit, flags=("-I", "-S"))
    assert done.returncode == 1 and name in done.stderr and "Traceback" not in done.stderr


def test_networks_are_not_stored_twice(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, GateSection())
    assert (kit / "model.onnx").samefile(tmp_path / "model.onnx")
    assert len((kit / "README.txt").read_text().splitlines()) == 3
