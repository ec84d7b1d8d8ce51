"""Pixels at an artifact's input and probabilities beside its logits: the same answers as the plain artifact's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeconvnext import load_artifact
from edgeconvnext.backends import load_target
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnx.file_ends import add_ends, ends_of
from edgeconvnext.config_file import parse_toml
from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.preprocess import as_element_type
from edgeconvnext.errors import ConfigFileError
from edgeconvnext.options.commands import Export
from edgeconvnext.pipeline.job import Request, named_target
from edgeconvnext.targets import Target, target_files, with_ends
from tests.in_process import fails, run_command
from tests.micro import micro_model, write_micro

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
COMMON = ("--calib", "digits", "--eval", "digits_test", "--num-images", "60", "--effort", "quick", "--no-latency")


def exported(target: str, folder: Path, *ends: str) -> Path:
    model = write_micro(folder / "micro.safetensors")
    done = run_command("export", "--target", target, "--model", model, *COMMON, *ends, "--output", folder / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


@pytest.fixture(scope="module", params=["onnx", pytest.param("openvino", marks=pytest.mark.exhaustive)])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A target, its plain run, and the same with uint8 and probabilities."""
    pytest.importorskip(RUNTIMES[request.param])
    plain, ends = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("ends")
    options = ("--input", "uint8", "--probabilities")
    return request.param, exported(request.param, plain), exported(request.param, ends, *options)


def raw(target: str, run: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Run the file as its user does, without this package: uint8 (N, C, H, W) in, outputs by name."""
    if target == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"image": pixels}), strict=True))
    import openvino

    network = openvino.Core().read_model(run / "model.openvino" / "model.xml")
    network.reshape(list(pixels.shape))
    model = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert model.inputs[0].element_type == openvino.Type.u8
    result = model([pixels])
    return {port.get_any_name(): result[port] for port in model.outputs}


def test_pixels_give_the_same_classes_and_their_probabilities(runs: tuple[str, Path, Path]) -> None:
    target, plain, ends = runs
    digits = digits_set("test").take(96)
    preprocess = micro_model().preprocess
    pixels = np.stack([preprocess.pixels(digits.read(index)) for index in range(96)]).transpose(0, 3, 1, 2)
    outputs = raw(target, ends, np.ascontiguousarray(pixels))
    assert list(outputs) == ["logits", "probabilities"]
    logits, shares = outputs["logits"].astype(np.float64), outputs["probabilities"]
    exact = np.exp(logits - logits.max(1, keepdims=True))
    exact /= exact.sum(1, keepdims=True)
    # Ten exponentials and a sum in float32: a few units of 2**-24 each.
    np.testing.assert_allclose(shares, exact, rtol=2e-6, atol=1e-9)
    suffix = "model.onnx" if target == "onnx" else "model.openvino"
    own = load_artifact(plain / suffix).predict([digits.read(index) for index in range(96)])
    assert isinstance(own, list)
    assert [one.top.index for one in own] == shares.argmax(1).tolist()
    again = load_artifact(ends / suffix).predict([digits.read(index) for index in range(96)])
    assert isinstance(again, list)
    assert [one.top.probability for one in again] == pytest.approx(shares.max(1).tolist(), rel=1e-5)


def test_the_report_measures_logits_and_names_both_ends(runs: tuple[str, Path, Path]) -> None:
    _, plain, ends = runs
    before, after = (json.loads((run / "report.json").read_text()) for run in (plain, ends))
    assert after["probabilities"] is True and before["probabilities"] is False
    assert after["model"]["preprocess"]["input_type"] == "uint8"
    assert after["model"]["preprocess"]["value_range"] == "0..255"
    assert after["accuracy"]["fp32"] == before["accuracy"]["fp32"]
    assert after["fidelity_db"] > 40
    assert np.load(ends / "logits.npz")["artifact"].shape == np.load(plain / "logits.npz")["artifact"].shape
    # The scale of the pixels moves into the stem, which is not quantised: codes move by rounding alone.
    assert after["accuracy"]["sqnr_db"] == pytest.approx(before["accuracy"]["sqnr_db"], abs=1.5)


def test_the_card_shows_how_pixels_go_in(runs: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, _, ends = runs
    card = (ends / "MODEL_CARD.md").read_text(encoding="utf-8")
    code = next(part for part in card.split("```python")[1:] if "probabilities" in part).partition("```")[0]
    assert "np.uint8" in code and "np.exp" not in code
    (ends / "image.jpg").unlink(missing_ok=True)
    digits_set("test").read(0).convert("RGB").save(ends / "image.jpg")
    done = subprocess.run([sys.executable, "-c", code], cwd=ends, capture_output=True, text=True, check=False)
    (ends / "image.jpg").unlink()
    assert done.returncode == 0, done.stderr + code
    assert done.stdout.count("%") == 5


def test_the_kit_feeds_pixels(runs: tuple[str, Path, Path]) -> None:
    _, _, ends = runs
    command = [sys.executable, str(ends / "device" / "check.py"), "--seconds", "0.02"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 3), done.stderr
    result = json.loads((ends / "device" / "device.json").read_text())
    assert result["check"]["fidelity_db"] > 40


def test_formats_without_these_ends_refuse_them(tmp_path: Path) -> None:
    model = write_micro(tmp_path / "micro.safetensors")
    for ends in (("--input", "uint8"), ("--probabilities",)):
        fails(
            run_command("export", "--target", "coreml", "--model", model, *COMMON, *ends),
            1,
            "gives probabilities in any",
        )


def test_features_have_no_probabilities(tmp_path: Path) -> None:
    model = write_micro(tmp_path / "micro.safetensors")
    options = ("--head", "features", "--probabilities")
    fails(run_command("export", "--target", "onnx", "--model", model, *COMMON, *options), 1, "made of logits")


def test_a_target_file_may_ask_for_them(tmp_path: Path) -> None:
    text = target_files()["onnx"].read_text(encoding="utf-8")
    wanted = f'{text}\n[input]\ntype = "uint8"\nvalue_range = "0..255"\n\n[output]\nprobabilities = true\n'
    path = tmp_path / "pixels.toml"
    path.write_text(wanted)
    target = parse_toml(path, Target)
    assert (target.input.type, target.output.probabilities) == ("uint8", True)
    path.write_text(wanted.replace('value_range = "0..255"', ""))
    with pytest.raises(ConfigFileError, match=r'type "uint8" takes pixels'):
        parse_toml(path, Target)


def test_a_target_file_with_probabilities_refuses_features(tmp_path: Path) -> None:
    path = tmp_path / "shares.toml"
    text = target_files()["onnx"].read_text(encoding="utf-8")
    path.write_text(f"{text}\n[output]\nprobabilities = true\n")
    model = write_micro(tmp_path / "micro.safetensors")
    options = ("--head", "features", *COMMON)
    fails(run_command("export", "--target", path, "--model", model, *options), 1, "made of logits")


def test_an_input_type_that_is_given_counts_more_than_the_target_files(tmp_path: Path) -> None:
    path = tmp_path / "pixels.toml"
    text = target_files()["onnx"].read_text(encoding="utf-8")
    path.write_text(f'{text}\n[input]\ntype = "uint8"\nvalue_range = "0..255"\n')
    asked = Request.from_options(Export.of(given={"target": str(path), "input": "float32"}))
    assert named_target(asked).input.type == "float32"
    assert named_target(Request.from_options(Export.of(given={"target": str(path)}))).input.type == "uint8"


@pytest.mark.parametrize(
    ("task", "operator"), [("single-label", "Softmax"), ("binary", "Sigmoid"), ("multi-label", "Sigmoid")]
)
def test_probabilities_are_those_of_the_task(task: str, operator: str) -> None:
    import onnx_ir
    import onnxruntime

    target = with_ends(load_target("onnx"), "float32", probabilities=True)
    metadata = ArtifactMetadata("micro", None, micro_model().preprocess, "normalized", "0.1", notes={"task": task})
    ends = ends_of(target, metadata)
    assert ends.probabilities == operator
    logits = onnx_ir.Value(
        name="logits", shape=onnx_ir.Shape(["batch", 3]), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    )
    image = onnx_ir.Value(name="image", shape=logits.shape, type=logits.type)
    same = onnx_ir.node("Identity", [image], outputs=[logits])
    graph = onnx_ir.Graph([image], [logits], nodes=[same], opset_imports={"": 20}, name="same")
    model = onnx_ir.Model(graph, ir_version=10)
    add_ends(model, ends)
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    values = np.array([[0.5, -2.0, 1.0]], np.float32)
    (shares,) = session.run(["probabilities"], {"image": values})
    exact = np.exp(values.astype(np.float64))
    exact = exact / exact.sum() if operator == "Softmax" else exact / (1 + exact)
    np.testing.assert_allclose(shares, exact, rtol=2e-6)


def test_pixels_are_whole_numbers() -> None:
    values = np.array([-0.2, 0.4, 0.6, 254.7, 255.3, 127.5001])
    assert as_element_type(values, np.uint8).tolist() == [0, 0, 1, 255, 255, 128]
    assert Image.fromarray(as_element_type(np.full((2, 2), 7.0), np.uint8)).getpixel((0, 0)) == 7
