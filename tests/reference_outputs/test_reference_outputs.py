"""Whatever two recordings compute differently is reported, and what is only named differently is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from . import renamed
from .comparison import compare_recordings
from .coreml_programs import coreml_differences
from .figures import report_differences, toml_differences
from .onnx_graphs import onnx_differences
from .tensors import npz_differences, safetensors_differences

TENSORS: dict[str, np.ndarray] = {
    "head|codes": np.arange(6, dtype=np.int8).reshape(2, 3),
    "head|scale": np.array([0.5, 0.0], np.float32),
}
PLAN = {"weights": {"head": {"axis": 0, "quant_max": 127}}, "rounding": "gptq"}


def _plan(path: Path, tensors: dict[str, np.ndarray] = TENSORS, plan: Any = PLAN) -> Path:
    save_file(tensors, path, metadata={"plan": json.dumps(plan)})
    return path


def test_equal_plans(tmp_path: Path) -> None:
    assert safetensors_differences(_plan(tmp_path / "a"), _plan(tmp_path / "b")) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"head|codes": np.array([[0, 1, 2], [3, 9, 5]], np.int8)}, "head|codes: 1 of 6 values, first [1, 1]: 4 -> 9"),
        ({"head|scale": np.array([0.5, -0.0], np.float32)}, "head|scale: 1 of 2 values, first [1]: 0.0 -> -0.0"),
        ({"head|scale": np.array([0.5, 0.0], np.float64)}, "head|scale: float32 -> float64"),
        ({"head|codes": np.arange(6, dtype=np.int8)}, "head|codes: shape (2, 3) -> (6,)"),
        ({"head|shift": np.zeros(1, np.float32)}, "head|shift only in the second"),
    ],
)
def test_changed_tensor(tmp_path: Path, changes: dict[str, np.ndarray], expected: str) -> None:
    first, second = _plan(tmp_path / "a"), _plan(tmp_path / "b", TENSORS | changes)
    assert safetensors_differences(first, second) == [expected]


def test_missing_tensor(tmp_path: Path) -> None:
    second = _plan(tmp_path / "b", {"head|codes": TENSORS["head|codes"]})
    assert safetensors_differences(_plan(tmp_path / "a"), second) == ["head|scale only in the first"]


def test_renamed_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _plan(tmp_path / "a")
    second = _plan(tmp_path / "b", {name.replace("|", "."): values for name, values in TENSORS.items()})
    assert len(safetensors_differences(first, second)) == 4
    monkeypatch.setitem(renamed.TENSORS, r"(.*)\|(.*)", r"\1.\2")
    assert safetensors_differences(first, second) == []


def test_renamed_keys_of_a_description_do_not_count(tmp_path: Path) -> None:
    first = _plan(tmp_path / "a")
    second = _plan(tmp_path / "b", plan={"grids": {"head": {"channel": 0, "highest": 127}}, "method": "gptq"})
    assert safetensors_differences(first, second) == []


def test_changed_value_of_a_description(tmp_path: Path) -> None:
    first = _plan(tmp_path / "a")
    same_key = _plan(tmp_path / "b", plan=PLAN | {"rounding": "nearest"})
    other_key = _plan(tmp_path / "c", plan={"weights": PLAN["weights"], "method": "nearest"})
    assert safetensors_differences(first, same_key) == ['plan/rounding: "gptq" -> "nearest"']
    assert len(safetensors_differences(first, other_key)) == 2


def test_logits(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", artifact=np.array([[1.0, 2.0]], np.float32))
    np.savez(tmp_path / "b.npz", artifact=np.array([[1.0, np.nextafter(np.float32(2), np.float32(3))]], np.float32))
    assert npz_differences(tmp_path / "a.npz", tmp_path / "a.npz") == []
    assert len(npz_differences(tmp_path / "a.npz", tmp_path / "b.npz")) == 1


REPORT = {
    "accuracy": {"fp32": {"share": 99.5}, "classes": [{"n": 3}, {"n": 4}]},
    "passed": True,
    "stages": [{"seconds": 1.5}],
    "environment": {"torch": "2.13"},
    "size_bytes": {"fp32": 100},
}


def _json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"stages": [{"seconds": 2.5}], "environment": {}, "size_bytes": {"fp32": 101}, "notes": ["new"]}, []),
        ({"passed": False}, ["passed: true -> false"]),
        (
            {"accuracy": {"fp32": {"share": 99.4}, "classes": [{"n": 3}, {"n": 4}]}},
            ["accuracy/fp32/share: 99.5 -> 99.4"],
        ),
        (
            {"accuracy": {"fp32": {"share": 99.5}, "classes": [{"n": 3}]}},
            ["classes/n 4 only in the first"],
        ),
    ],
)
def test_reports(tmp_path: Path, changes: dict[str, Any], expected: list[str]) -> None:
    first, second = _json(tmp_path / "a", REPORT), _json(tmp_path / "b", REPORT | changes)
    assert report_differences(first, second) == expected


def test_figures_that_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _json(tmp_path / "a", {"accuracy": {"fp32": {"share": 99.5}}})
    moved = _json(tmp_path / "b", {"results": {"logits": {"fp32": {"share": 99.5}}}})
    changed = _json(tmp_path / "c", {"results": {"logits": {"fp32": {"share": 99.4}}}})
    other_key = _json(tmp_path / "d", {"accuracy": {"fp32": {"portion": 99.5}}})
    assert report_differences(first, moved) == []
    assert len(report_differences(first, changed)) == 2
    assert len(report_differences(first, other_key)) == 2
    monkeypatch.setitem(renamed.KEYS, "share", "portion")
    assert report_differences(first, other_key) == []


def test_plans_in_toml(tmp_path: Path) -> None:
    for name, text in {"a": "# words\nweights = 4", "b": "weight_bits = 4", "c": "weights = 8"}.items():
        (tmp_path / name).write_text(text)
    assert toml_differences(tmp_path / "a", tmp_path / "b") == []
    assert toml_differences(tmp_path / "a", tmp_path / "c") == ["weights: 4 -> 8"]


SCALE = np.array([0.5, 2.0], np.float32)
SHIFT = np.array([1.0, -1.0], np.float32)


def _model(
    scale: np.ndarray = SCALE,
    shift: np.ndarray = SHIFT,
    first: str = "Mul",
    axis: int = 1,
    inner: str = "",
    swapped: bool = False,
    metadata: str = "",
) -> onnx.ModelProto:
    """x * scale + shift, then softmax. inner: what stands before the names inside. swapped: which one is multiplied."""
    names = [f"{inner}shift", f"{inner}scale"] if swapped else [f"{inner}scale", f"{inner}shift"]
    nodes = [
        helper.make_node(first, ["x", names[0]], [f"{inner}product"], name=f"{inner}scaled"),
        helper.make_node("Add", [f"{inner}product", names[1]], [f"{inner}sum"], doc_string=metadata),
        helper.make_node("Softmax", [f"{inner}sum"], ["y"], axis=axis),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    initializers = [
        numpy_helper.from_array(scale, f"{inner}scale"),
        numpy_helper.from_array(shift, f"{inner}shift"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "graph", ends[:1], ends[1:], initializers))
    helper.set_model_props(model, {"version": metadata})
    return model


def _saved(path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, path)
    return path


def _with_initializers_reversed(model: onnx.ModelProto) -> onnx.ModelProto:
    initializers = list(reversed(model.graph.initializer))
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    return model


@pytest.mark.parametrize(
    "model",
    [_model(), _model(inner="other_"), _model(metadata="2"), _with_initializers_reversed(_model())],
    ids=["same", "renamed", "metadata", "order"],
)
def test_equal_graphs(tmp_path: Path, model: onnx.ModelProto) -> None:
    assert onnx_differences(_saved(tmp_path / "a", _model()), _saved(tmp_path / "b", model)) == []


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (_model(scale=np.array([0.5, 3.0], np.float32)), "initializer scale: 1 of 2 values, first [1]: 2.0 -> 3.0"),
        (_model(first="Div"), "node Mul 'scaled' (x, scale; ) -> product only in the first"),
        (_model(axis=0), "node Softmax '' (sum; axis = 1) -> y only in the first"),
        (_model(swapped=True), "node Mul 'scaled' (x, scale; ) -> product only in the first"),
        (_model(scale=SHIFT, shift=SCALE), "node Mul 'scaled' (x, scale; ) -> product only in the first"),
    ],
    ids=["value", "operator", "attribute", "connection", "values exchanged"],
)
def test_changed_graph(tmp_path: Path, model: onnx.ModelProto, expected: str) -> None:
    assert onnx_differences(_saved(tmp_path / "a", _model()), _saved(tmp_path / "b", model))[0] == expected


def _with_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["unused"], name="added"))


def _with_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(SCALE * 3, "added"))


def _with_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 2]))


def _of_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version -= 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_with_node, "node Relu 'added' (x; ) -> unused only in the second"),
        (_with_initializer, "initializer added only in the second"),
        (_with_output, "outputs: ['y FLOAT [batch, 2]'] -> ['y FLOAT [batch, 2]', 'sum FLOAT [batch, 2]']"),
        (_of_opset, "opsets: "),
    ],
)
def test_added_to_a_graph(tmp_path: Path, change: Callable[[onnx.ModelProto], None], expected: str) -> None:
    model = _model()
    change(model)
    differences = onnx_differences(_saved(tmp_path / "a", _model()), _saved(tmp_path / "b", model))
    assert differences[0].startswith(expected)


def _program(path: Path, operators: tuple[str, ...] = ("conv", "relu"), author: str = "") -> Path:
    from coremltools.proto import Model_pb2

    specification = Model_pb2.Model(specificationVersion=8)
    specification.description.metadata.author = author
    specification.mlProgram.attributes["buildInfo"].docString = author
    block = specification.mlProgram.functions["main"].block_specializations["CoreML7"]
    for operator in operators:
        operation = block.operations.add(type=operator)
        operation.inputs["x"].arguments.add(name="image")
        operation.outputs.add(name=f"{operator}_result")
    path.write_bytes(specification.SerializeToString())
    return path


def test_programs(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    first = _program(tmp_path / "a")
    assert coreml_differences(first, _program(tmp_path / "b", author="somebody")) == []
    assert coreml_differences(first, _program(tmp_path / "c", ("conv", "gelu"))) == [
        "operation 1: relu (x=image) relu_result -> gelu (x=image) gelu_result"
    ]
    assert coreml_differences(first, _program(tmp_path / "d", ("conv",)))[0] == "2 operations -> 1 operations"


def _recording(folder: Path, *, exit_code: int = 0, weights: bytes = b"abc", layers: str = "conv,int8") -> Path:
    run = folder / "case" / "run"
    run.mkdir(parents=True)
    (run / "weight.bin").write_bytes(weights)
    (run / "layers.csv").write_text(f"name,type\n{layers}\n")
    (run / "report.html").write_text(str(folder))
    _json(folder / "case" / "case.json", {"exit_code": exit_code})
    return folder


def _reported(first: Path, second: Path) -> dict[str, str]:
    rows = compare_recordings(first, second, ["case"])
    return {row.what: row.result for row in rows if row.differences}


def test_recordings(tmp_path: Path) -> None:
    first = _recording(tmp_path / "a")
    assert len(compare_recordings(first, _recording(tmp_path / "b"), ["case"])) == 3
    assert _reported(first, tmp_path / "b") == {}
    assert _reported(first, _recording(tmp_path / "c", exit_code=3)) == {"exit code": "0 -> 3"}
    assert _reported(first, _recording(tmp_path / "d", weights=b"abd")) == {"run/weight.bin": "byte 2: 99 -> 100"}
    assert _reported(first, _recording(tmp_path / "e", layers="conv,float16")) == {
        "run/layers.csv": "row 2: ['conv', 'int8'] -> ['conv', 'float16']"
    }


def test_missing_file_and_missing_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _recording(tmp_path / "a"), _recording(tmp_path / "b")
    moved = second / "case" / "weight.bin"
    (second / "case" / "run" / "weight.bin").rename(moved)
    assert _reported(first, second) == {
        "run/weight.bin": "only in the first recording",
        "weight.bin": "only in the second recording",
    }
    monkeypatch.setitem(renamed.FILES, "run/weight.bin", "weight.bin")
    assert _reported(first, second) == {}
    assert _reported(first, tmp_path / "nowhere") == {"case": f"not recorded: {tmp_path / 'nowhere' / 'case'}"}


@pytest.mark.parametrize(
    ("path", "second", "same"),
    [
        ("quantization/layers/[3]/block_sqnr_db", 40.000003, True),
        ("plan/decisions/stages.0.0.pwconv1/none, gptq", 40.000003, True),
        ("quantization/layers/[3]/block_sqnr_db", 40.00001, False),
        ("accuracy/sqnr_db", 40.000003, False),
    ],
)
def test_decibels_of_layers_agree_as_far_as_float32_holds_them(path: str, second: float, same: bool) -> None:
    """2^-23 * 40 is 4.8e-6."""
    assert renamed.is_same_figure(path, "40.0", str(second)) is same
