"""Exported ONNX files: what is in them, and that onnxruntime computes what the program computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantized_programs import (
    CLASSES,
    EACH_VARIANT,
    METADATA,
    Variant,
    images,
    in_onnxruntime,
    layers_of,
    onnx_bytes,
    program_for,
    run,
    sqnr_db,
)

from edgeconvnext.backends import load_target
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnx.write import read_metadata
from edgeconvnext.backends.onnxruntime.write import export_onnx
from edgeconvnext.errors import ExportError, RunDirectoryError


@EACH_VARIANT
@pytest.mark.parametrize("target", [None, "onnx"])
def test_onnxruntime_gives_the_programs_logits(target: str | None, variant: Variant) -> None:
    model = onnx_bytes(target, variant)
    batch = images(5, seed=9)
    # Same codes, same scales; only the order of float32 sums differs (measured 130 dB and more). A code that falls on
    # the other side of a rounding border costs one step, which 60 dB allows for.
    assert sqnr_db(run(program_for(target, variant), batch), in_onnxruntime(model, batch)) > 60
    assert in_onnxruntime(model, batch[:1]).shape == (1, CLASSES)


def test_quantized_layers_keep_int8_weights_under_their_own_names() -> None:
    graph = onnx.load_from_string(onnx_bytes("onnx")).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    wanted = [name for name, kind in layers_of().items() if kind in load_target("onnx").quantize.operators]
    for layer in wanted:
        assert stored[f"{layer}.weight"].data_type == onnx.TensorProto.INT8, layer
        assert stored[f"{layer}.weight_scale"].data_type == onnx.TensorProto.FLOAT
    operators = Counter(node.op_type for node in graph.node)
    assert operators["QuantizeLinear"] == len(wanted)
    # Of the input, the weight and the bias.
    assert operators["DequantizeLinear"] == 3 * len(wanted)
    by_name = {node.name: node for node in graph.node}
    assert set(layers_of()) <= set(by_name)
    assert not [node.name for node in graph.node if node.op_type == "Cast"]


def test_stored_weights_are_those_of_the_simulation() -> None:
    program = program_for("onnx")
    codes = [t for t in (*program.state_dict.values(), *program.constants.values()) if str(t.dtype) == "torch.int8"]
    expected = Counter(tuple(np.sort(tensor.numpy(), axis=None)) for tensor in codes if tensor.dim() > 1)
    stored = [numpy_helper.to_array(t) for t in onnx.load_from_string(onnx_bytes("onnx")).graph.initializer]
    found = Counter(tuple(np.sort(array, axis=None)) for array in stored if array.dtype == np.int8 and array.ndim > 1)
    assert found == expected


def test_norm_and_gelu_are_single_nodes() -> None:
    operators = Counter(node.op_type for node in onnx.load_from_string(onnx_bytes("onnx")).graph.node)
    # Stem, downsample, head and one norm for each of three blocks.
    assert operators["LayerNormalization"] == 6
    assert operators["Gelu"] == 3
    # In front of and behind convs only. The first depthwise conv of a stage takes the one in front of it as it is.
    assert operators["Transpose"] == 8


def test_the_batch_is_free_and_named() -> None:
    model = onnx.load_from_string(onnx_bytes("onnx"))
    image, logits = model.graph.input[0], model.graph.output[0]
    assert (image.name, logits.name) == ("image", "logits")
    assert image.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert logits.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [dim.dim_value for dim in image.type.tensor_type.shape.dim][1:] == [3, 32, 32]


def test_metadata_survives_and_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    written = onnx_bytes("onnx")
    (tmp_path / "model.onnx").write_bytes(written)
    assert read_metadata(tmp_path / "model.onnx") == METADATA
    assert b".py" not in written and b"site-packages" not in written


def test_metadata_without_labels_round_trips() -> None:
    bare = ArtifactMetadata("bare", None, METADATA.preprocess, "0..255", "0.1.0")
    assert ArtifactMetadata.from_properties(bare.properties()) == bare


def test_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    again = export_onnx(program_for("onnx"), tmp_path / "model.onnx", opset=21, metadata=METADATA)
    assert again.read_bytes() == onnx_bytes("onnx")


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(RunDirectoryError, match="disk is full"):
        export_onnx(program_for(None), tmp_path / "model.onnx", opset=21, metadata=METADATA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_foreign_files_have_no_metadata(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx"):
        read_metadata(path)
