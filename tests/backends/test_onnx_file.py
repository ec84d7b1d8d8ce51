"""ONNX files and their metadata from anybody: no file outside of their folder is read, and what does not hold is one error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnx.file import require_own_files
from edgeconvnext.backends.onnx.write import read_metadata
from edgeconvnext.backends.onnxruntime.runner import OnnxRunner, onnx_session
from edgeconvnext.backends.onnxruntime.saturation import saturation
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import ExportError

IMAGE = np.zeros((1, 3, 1, 1), np.float32)


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 1, 1], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def write(path: Path, tensor: TensorProto, place: str = "initializer", **metadata: str) -> Path:
    """An ONNX file that adds `tensor` to its image, or holds it in another place."""
    value = helper.make_tensor("w", TensorProto.FLOAT, [3, 1, 1], [0.0] * 3) if place != "initializer" else tensor
    nodes = [helper.make_node("Add", ["image", "w"], ["logits"])]
    if place == "attribute":
        nodes.append(helper.make_node("Constant", [], ["c"], value=tensor))
    if place == "subgraph":
        branch = helper.make_graph([helper.make_node("Constant", [], ["d"], value=tensor)], "b", [], [])
        nodes.append(helper.make_node("If", ["image"], [], then_branch=branch, else_branch=branch))
    shape = [1, 3, 1, 1]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [value],
    )
    functions = []
    if place == "function":
        node = helper.make_node("Constant", [], ["y"], value=tensor)
        functions = [helper.make_function("f", "f", [], ["y"], [node], [helper.make_opsetid("", 17)])]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, functions=functions)
    for key, text in metadata.items():
        model.metadata_props.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights = np.arange(3, dtype="<f4").tobytes()
    inside = tmp_path / "inside"
    (inside / "deeper").mkdir(parents=True)
    for path in (tmp_path / "secret.bin", inside / "w.bin", inside / "deeper" / "w.bin"):
        path.write_bytes(weights)
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    os.mkfifo(inside / "pipe")
    return inside


def test_weights_beside_the_file_are_read(folder: Path) -> None:
    for location in ("w.bin", "deeper/w.bin"):
        session = onnx_session(write(folder / "m.onnx", external(location)))
        assert session.run(None, {"image": IMAGE})[0].ravel().tolist() == [0, 1, 2]


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "function"])
@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "link.bin", "deeper/../../secret.bin", ".", "a\0b"]
)
def test_weights_outside_of_the_folder_are_refused_before_a_runtime_sees_them(
    location: str, place: str, folder: Path
) -> None:
    path = write(folder / "m.onnx", external(location), place)
    for read in (require_own_files, onnx_session, lambda path: saturation(path, IMAGE)):
        with pytest.raises(ExportError, match=r"outside of its own folder|cannot be read") as caught:
            read(path)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("location", ["pipe", "deeper", "missing.bin"])
def test_weights_that_are_no_regular_file_are_not_waited_for(location: str, folder: Path) -> None:
    with pytest.raises(ExportError, match=r"a named pipe|a folder|cannot be read"):
        onnx_session(write(folder / "m.onnx", external(location)))


def test_a_name_of_control_characters_is_shown_as_escapes(folder: Path) -> None:
    with pytest.raises(ExportError, match=r"in \.\./\\x1b\[2J\\n, outside"):
        require_own_files(write(folder / "m.onnx", external("../\x1b[2J\n")))


@pytest.mark.parametrize("read", [onnx_session, read_metadata, require_own_files, lambda path: saturation(path, IMAGE)])
def test_only_regular_files_are_opened(read: Callable[[Path], Any], folder: Path) -> None:
    for path in (folder / "pipe", Path("/dev/zero"), folder / "missing.onnx"):
        with pytest.raises(ExportError):
            read(path)


# ------------------------------------------------------------------------------------------------------------ Metadata


def properties(**changes: str) -> dict[str, str]:
    metadata = ArtifactMetadata(
        "small", ("a", "b"), Preprocess(input_size=(1, 1)), "normalized", "0.1", notes={"n": "1"}
    )
    return metadata.properties() | changes


def preprocess(**changes: Any) -> str:
    return json.dumps(json.loads(properties()["preprocess"]) | changes)


def test_metadata_come_back_as_they_were_written() -> None:
    read = ArtifactMetadata.from_properties(properties())
    assert read.preprocess == Preprocess(input_size=(1, 1)) and read.labels == ("a", "b") and read.notes == {"n": "1"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preprocess": "{"}, "preprocess, in the artifact's metadata, cannot be read"),
        ({"preprocess": "[" * 100_000}, "nested too deeply"),
        ({"preprocess": '{"crop_pct": ' + "9" * 5000 + "}"}, "too many digits"),
        ({"preprocess": "[]"}, "preprocess"),
        ({"preprocess": "null"}, "preprocess"),
        ({"preprocess": preprocess(input_size=[0, 1])}, r"preprocess\.input_size"),
        ({"preprocess": preprocess(input_size=[2**20, 1])}, r"preprocess\.input_size"),
        ({"preprocess": preprocess(input_size=["1", 1])}, r"preprocess\.input_size"),
        ({"preprocess": preprocess(input_size=[1, 1, 1])}, r"preprocess\.input_size"),
        ({"preprocess": preprocess(input_size=1)}, r"preprocess\.input_size"),
        ({"preprocess": preprocess(crop_pct="1")}, r"preprocess\.crop_pct"),
        ({"preprocess": preprocess(crop_pct=-1)}, r"preprocess: crop_pct is the share"),
        ({"preprocess": preprocess(crop_mode="none")}, r"preprocess\.crop_mode"),
        ({"preprocess": preprocess(interpolation="\x1b[2J")}, r"preprocess\.interpolation"),
        ({"preprocess": preprocess(mean=["a"])}, r"preprocess\.mean"),
        ({"preprocess": preprocess(mean=[float("nan")] * 3)}, r"preprocess\.mean"),
        ({"preprocess": preprocess(std=[0, 0, 0])}, "preprocess: mean"),
        ({"preprocess": preprocess(mean=[0.5] * 2)}, "preprocess: mean"),
        ({"preprocess": preprocess(mean=[0.5] * 2000)}, r"preprocess\.mean"),
        ({"preprocess": preprocess(**{"\x1b[2J": 1})}, r"preprocess\.\\x1b\[2J"),
        ({"value_range": "0..7"}, "value_range"),
        ({"labels": '{"a": 1}'}, "labels"),
        ({"labels": "[1, 2]"}, "labels"),
        ({"labels": "[" * 100_000}, "nested too deeply"),
    ],
)
def test_metadata_that_do_not_hold_are_one_error(changes: dict[str, str], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", helper.make_tensor("w", 1, [3, 1, 1], [0.0] * 3), **properties(**changes))
    for read in (read_metadata, OnnxRunner):
        with pytest.raises(ExportError, match=words) as caught:
            read(path)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["model_name", "preprocess", "value_range", "edgeconvnext_version"])
def test_metadata_without_one_of_its_keys_are_one_error(key: str) -> None:
    with pytest.raises(ExportError, match=f"{key} is missing"):
        ArtifactMetadata.from_properties({name: text for name, text in properties().items() if name != key})


def test_metadata_without_end_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeconvnext.backends.metadata.MOST_TEXT_BYTES", 1000)
    with pytest.raises(ExportError, match="labels has 1,002 characters"):
        ArtifactMetadata.from_properties(properties(labels=" " * 1000 + "[]"))


def test_a_file_of_another_tool_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", helper.make_tensor("w", 1, [3, 1, 1], [0.0] * 3))
    with pytest.raises(ExportError, match="is not an ONNX file written by edgeconvnext"):
        read_metadata(path)
    (tmp_path / "junk.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ExportError, match="is not an ONNX file written by edgeconvnext"):
        read_metadata(tmp_path / "junk.onnx")
    assert onnx.load(path).graph.name == "g"
