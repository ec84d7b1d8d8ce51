"""The part of a kit's script that reads the kit: a folder from somebody else names, holds and imports nothing it should not."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit_folders import write_kit

from edgeconvnext.backends import backend, load_target
from edgeconvnext.backends.block_outputs import LayerOutput
from edgeconvnext.backends.device import kit as script
from edgeconvnext.backends.kit.write import CheckVectors, KitNetworks, assemble_script, write_device_kit


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Read the kit of a folder as its script does."""

    def read_kit(folder: Path = tmp_path / "kit", **changes: Any) -> Any:
        monkeypatch.setattr(script, "HERE", write_kit(folder, **changes).resolve())
        return script.Kit()

    return read_kit


def test_a_kit_as_it_was_exported_is_read(read: Callable[..., Any]) -> None:
    kit = read()
    assert kit.images.tolist() == [0, 1, 2, 3, 4, 5]
    assert kit.fp32.tolist() == [6, 7, 8, 9, 10, 11] and kit.simulated.tolist() == [12, 13, 14, 15, 16, 17]
    assert kit.artifact.name == "model.onnx" and kit.checked("added_outputs.pb").is_file()


@pytest.mark.parametrize(
    "name", ["model.onnx", "model_fp32.onnx", "vectors.bin", "layer_values.bin", "added_outputs.pb"]
)
def test_every_file_is_compared_with_its_hash_the_last_one_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_kit(tmp_path / "kit")
    (folder / name).write_bytes((folder / name).read_bytes() + b"\0\0\0\0")
    monkeypatch.setattr(script, "HERE", folder.resolve())
    with pytest.raises(script.InputProblem, match=f"{name} is not the file that was exported"):
        script.Kit()


@pytest.mark.parametrize("name", ["model.onnx", "model_fp32.onnx", "vectors.bin"])
def test_a_file_that_is_used_must_be_listed(name: str, read: Callable[..., Any], tmp_path: Path) -> None:
    files = json.loads((write_kit(tmp_path / "kit") / "kit.json").read_text())["files"]
    with pytest.raises(script.InputProblem, match=f"{name} is not listed"):
        read(files={other: sha256 for other, sha256 in files.items() if other != name})


def test_a_package_holds_nothing_that_is_not_listed(tmp_path: Path, read: Callable[..., Any]) -> None:
    folder = write_kit(tmp_path / "kit")
    (folder / "model.mlpackage").mkdir()
    (folder / "model.mlpackage" / "weights.bin").write_bytes(b"w")
    (folder / "model.mlpackage" / ".DS_Store").write_bytes(b"the Finder's")
    files = json.loads((folder / "kit.json").read_text())["files"]
    files |= {"model.mlpackage/weights.bin": hashlib.sha256(b"w").hexdigest()}
    assert read(artifact="model.mlpackage", files=files).artifact.name == "model.mlpackage"
    (folder / "model.mlpackage" / "more.bin").write_bytes(b"m")
    with pytest.raises(script.InputProblem, match=r"model\.mlpackage/more\.bin is not listed"):
        read(artifact="model.mlpackage", files=files)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "link", "folder/../../secret", "a" * 5000, "nul\0", ".", ""]
)
def test_no_name_leads_out_of_the_kits_folder(name: str, read: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_kit(tmp_path / "kit")
    (tmp_path / "secret").write_text("secret")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    sha256 = hashlib.sha256(b"secret").hexdigest()
    with pytest.raises(script.InputProblem, match=r"is missing|is not inside"):
        read(artifact=name, files={name: sha256})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "format 99, not 3"),
        ({"count": 0}, "do not fit together"),
        ({"count": 3}, "not as many labels"),
        ({"count": "2"}, "kit.json does not hold"),
        ({"count": 2, "labels": None, "image_shape": [3, 1, 2]}, r"vectors\.bin has 72 bytes, not 96"),
        ({"batch": [2, 1, 2]}, "do not fit together"),
        ({"batch": [1]}, "kit.json does not hold"),
        ({"classes": 5}, "not as many logits"),
        ({"outputs": [{"name": "logits", "size": 3, "samples": 4}]}, "more samples than values"),
        ({"outputs": [{"name": 7, "size": 3, "samples": 3}]}, "no name"),
        ({"outputs": []}, "does not hold|do not fit"),
        ({"gates": {"min_speedup": "fast"}}, "kit.json does not hold"),
        ({"gates": None}, "kit.json does not hold"),
        ({"layer_images": 3}, "out of range"),
        ({"sizes": [[1, 1]]}, "kit.json does not hold"),
        ({"artifact": None}, "no text"),
        ({"files": 5}, "kit.json does not hold"),
        ({"minimum": 1}, "no text"),
    ],
)
def test_a_description_that_does_not_hold_is_one_sentence(
    changes: dict[str, Any], words: str, read: Callable[..., Any]
) -> None:
    with pytest.raises(script.InputProblem, match=words):
        read(**changes)


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5000, '{"format": ', "[]", "\xff", "null"])
def test_a_kit_json_that_is_none_is_one_sentence(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_kit(tmp_path / "kit")
    (folder / "kit.json").write_bytes(content.encode("latin-1"))
    monkeypatch.setattr(script, "HERE", folder.resolve())
    with pytest.raises(script.InputProblem, match=r"kit\.json does not hold"):
        script.Kit()


def test_a_kit_json_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_kit(tmp_path / "kit")
    os.truncate(folder / "kit.json", script.MOST_KIT_BYTES + 1)
    monkeypatch.setattr(script, "HERE", folder.resolve())
    with pytest.raises(script.InputProblem, match="more than"):
        script.Kit()


@pytest.mark.parametrize("name", ["onnx", "tensorrt", "coreml"])
def test_modules_that_lie_in_the_kits_folder_are_not_imported(name: str, tmp_path: Path) -> None:
    folder = write_kit(tmp_path / "kit")
    (folder / "check.py").write_text(assemble_script(backend(name).kit_script()))
    planted = {
        alias.name.partition(".")[0]
        for node in ast.walk(ast.parse((folder / "check.py").read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    } - {"sys"}  # built in
    for name in (*planted, "onnxruntime", "numpy", "tensorrt", "coremltools", "PIL"):
        (folder / f"{name}.py").write_text("import sys\nsys.stderr.write('planted code ran')\nraise SystemExit(9)\n")
    done = subprocess.run(
        [sys.executable, str(folder / "check.py"), "--seconds", "0.01"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "planted code ran" not in done.stderr and done.returncode in (1, 4), done.stderr


def test_device_json_holds_no_text_or_list_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "HERE", tmp_path)
    layer = {"name": "n" * 9000, "kind": "Conv", "precision": "int8", "median_ms": None}
    result = {
        "forms": {},
        "answers": "A" * 9000,
        "messages": ["m" * 9000] * 300,
        "layers": {"artifact": [dict(layer)] * 6000, "baseline": []},
        "machine": {"name": "b" * 9000},
    }
    assert script.finish(result, []) == 0
    written = json.loads((tmp_path / "device.json").read_text())
    assert [len(text) for text in written["messages"]] == [4000] * 200
    assert len(written["layers"]["artifact"]) == 5000 and len(written["layers"]["artifact"][0]["name"]) == 4000
    assert len(written["machine"]["name"]) == 4000 and len(written["answers"]) == 9000


def test_a_failed_gate_fails_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "HERE", tmp_path)
    met, missed = ({"name": "a", "limit": 1, "measured": 1, "passed": passed} for passed in (True, False))
    assert script.finish({"forms": {}}, [met, missed]) == 3
    assert json.loads((tmp_path / "device.json").read_text())["passed"] is False
    assert script.finish({"forms": {}}, [met]) == 0
    assert json.loads((tmp_path / "device.json").read_text())["passed"] is True


def exported(folder: Path, target: str, *names: str, layers: bool = False) -> dict[str, Any]:
    """Write a kit of the given network files; return its kit.json."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    networks = KitNetworks(*sorted({folder / name.partition("/")[0] for name in names}), "W8A8", "FP32")
    values = LayerOutput("stages.0", "stages.0_out", 4, np.ones((2, 4), np.float32))
    vectors = CheckVectors(
        np.ones((2, 3, 1, 1), np.float32),
        np.ones((2, 3)),
        np.ones((2, 3)),
        layers=(values,) if layers else (),
        task="multi-label",
    )
    write_device_kit(folder / "device", vectors, networks, model_name="small", target=load_target(target))
    return json.loads((folder / "device" / "kit.json").read_text())


@pytest.mark.parametrize(
    ("target", "names", "layers"),
    [
        ("onnx", ("a.onnx", "b.onnx"), True),
        ("onnx", ("a.onnx", "b.onnx"), False),
        ("jetson", ("a.onnx", "b.onnx"), False),
        ("coreml", ("a.mlpackage/x", "a.mlpackage/y/z", "b.mlpackage/x"), False),
    ],
)
def test_kit_json_lists_every_file_that_the_script_reads(
    target: str, names: tuple[str, ...], layers: bool, tmp_path: Path
) -> None:
    about, folder = exported(tmp_path, target, *names, layers=layers), tmp_path / "device"
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name in (about["script"], "kit.json", "README.txt", "classify.swift"):
        files.pop(name, None)
    assert about["task"] == "multi-label"
    assert about["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert set(about["files"]) >= {*names, "vectors.bin"}
    assert {"added_outputs.pb", "layer_values.bin"} <= set(about["files"]) or not layers
