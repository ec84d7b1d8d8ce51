"""Networks without classifier through the whole pipeline: several outputs, no labels, a row for each in every report."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeconvnext.errors import EdgeConvNextError, QuantizationError
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.load import load_model
from edgeconvnext.options.commands import Validate
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.commands import Outcome
from edgeconvnext.pipeline.job import Request

FEATURES = Request(
    model="digits",
    head="features",
    calib="digits",
    eval="digits_test",
    num_images=60,
    latency=False,
)
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def few(micro: str) -> Request:
    """The same of the micro network, which has two stages."""
    return replace(FEATURES, model=micro, num_images=30, effort="quick")


@pytest.fixture(scope="module")
def features(runs: Path) -> Outcome:
    return pipeline.export(replace(FEATURES, output=runs / "features"))


def test_the_file_has_the_stages_as_named_outputs_with_a_free_batch(features: Outcome) -> None:
    graph = onnx.load(features.path / "model.onnx").graph
    assert [output.name for output in graph.output] == STAGES
    shapes = [[dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim] for output in graph.output]
    assert shapes == [["batch", 16, 8, 8], ["batch", 32, 4, 4], ["batch", 64, 2, 2], ["batch", 128, 1, 1]]
    assert not [tensor.name for tensor in graph.initializer if tensor.name.startswith(("head", "norm"))]


def test_every_output_is_measured_and_the_worst_one_is_judged(features: Outcome) -> None:
    report = features.report
    assert [output.name for output in report.outputs] == STAGES
    assert all(output.sqnr_db > 30 and (output.fidelity_db or 0) > 60 for output in report.outputs)
    lowest = min(output.sqnr_db for output in report.outputs)
    gates = {gate.name: gate for gate in report.gates}
    assert set(gates) == {"min_feature_sqnr_db", "min_speedup", "min_fidelity_db"}, "there is no top-1 to lose"
    assert (gates["min_feature_sqnr_db"].measured, gates["min_feature_sqnr_db"].passed) == (lowest, True)
    assert report.accuracy.sqnr_db == lowest and report.accuracy.images == 599 and report.accuracy.fp32 is None
    assert features.exit_code == 0


def test_the_figures_are_those_of_the_file_in_its_runtime(features: Outcome) -> None:
    """Computed here once more from model.onnx and the FP32 network alone."""
    import onnxruntime
    import torch

    from edgeconvnext.data.loader import batches
    from edgeconvnext.data.sets import resolve_image_set

    session = onnxruntime.InferenceSession(features.path / "model.onnx", providers=["CPUExecutionProvider"])
    model = load_model("digits")
    signal, noise = np.zeros(4), np.zeros(4)
    for batch in batches(resolve_image_set("digits_test"), model.preprocess):
        images = batch.images.contiguous()
        with torch.no_grad():
            expected = [stage.numpy().astype(np.float64) for stage in model.module.forward_stages(images)]
        for index, found in enumerate(session.run(STAGES, {"image": images.numpy()})):
            signal[index] += np.square(expected[index]).sum()
            noise[index] += np.square(expected[index] - found).sum()
    measured = [output.sqnr_db for output in features.report.outputs]
    # Another batch size may move a code across a rounding border.
    np.testing.assert_allclose(measured, 10 * np.log10(signal / noise), atol=0.1)


def test_pages_show_a_row_for_each_output_and_nothing_of_answers(features: Outcome) -> None:
    page = (features.path / "report.html").read_text()
    card = (features.path / "MODEL_CARD.md").read_text()
    for text in (page, card):
        assert all(name in text for name in STAGES)
        assert "16x8x8" in text or "16×8×8" in text
        assert "Top-1 drop" not in text and "Agreement" not in text
    assert 'id="flips"' not in page and "argmax" not in card
    assert not (features.path / "labels.txt").exists()


def test_the_card_runs_as_it_stands(features: Outcome, tmp_path: Path) -> None:
    from PIL import Image

    card = (features.path / "MODEL_CARD.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "model.onnx").write_bytes((features.path / "model.onnx").read_bytes())
    Image.new("RGB", (50, 40), (90, 20, 30)).save(tmp_path / "image.jpg")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "stage1 (1, 16, 8, 8)" in done.stdout and "stage4 (1, 128, 1, 1)" in done.stdout


def test_the_kit_checks_every_output_and_its_results_come_back(features: Outcome, tmp_path: Path) -> None:
    import shutil

    kit = Path(shutil.copytree(features.path / "device", tmp_path / "kit"))
    about = json.loads((kit / "kit.json").read_text())
    assert [(output["name"], output["samples"]) for output in about["outputs"]] == [
        ("stage1", 1024), ("stage2", 512), ("stage3", 256), ("stage4", 128),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, kit / "check.py", "--seconds", "0.1"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 3), done.stderr  # a busy machine may miss the speed
    result = json.loads((kit / "device.json").read_text())
    assert [output["name"] for output in result["check"]["outputs"]] == STAGES
    assert {layer["layer"] for layer in result["layer_fidelity"]} >= {"stages.0.0", "stages.3.0"}
    copy = Path(shutil.copytree(features.path, tmp_path / "run"))
    device = pipeline.merge_device(copy, kit / "device.json").report.device
    assert device is not None and [output.name for output in device.outputs] == STAGES
    assert min(output.fidelity_db for output in device.outputs) == device.fidelity_db
    assert device.fidelity_db is not None and device.fidelity_db > 60
    assert "stage3" in (copy / "MODEL_CARD.md").read_text().partition("## On the device")[2]


def test_large_feature_maps_are_compared_in_part() -> None:
    from edgeconvnext.backends.kit.write import COMPARED_VALUES, compared_values

    maps = np.arange(2 * 8 * 64 * 64, dtype=np.float32).reshape(2, 8, 64, 64)
    values, (output,) = compared_values(["stage1"], [maps])
    assert (output.size, output.samples, values.shape) == (8 * 64 * 64, COMPARED_VALUES, (2, COMPARED_VALUES))
    columns = np.unique(values[0].astype(int) % 64)
    assert len(columns) == 64, "all columns of the map are among them"


def test_an_embedding_is_one_output(few: Request, runs: Path) -> None:
    outcome = pipeline.export(replace(few, head="gap", output=runs / "gap"))
    (output,) = outcome.report.outputs
    assert (output.name, output.shape) == ("embedding", (16,))
    assert output.sqnr_db > 25 and outcome.exit_code == 0


def test_the_last_stage_alone(few: Request, runs: Path) -> None:
    (output,) = pipeline.quantize(replace(few, head="none", output=runs / "none")).report.outputs
    assert (output.name, output.shape, output.fidelity_db) == ("stage2", (16, 4, 4), None)


@pytest.mark.exhaustive
def test_jetson_says_what_the_board_must_measure(few: Request, runs: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'edgeconvnext[rtx]'")
    first = pipeline.quantize(replace(few, output=runs / "few"))
    outcome = pipeline.export(Request(target="jetson", from_run=first.path, effort="quick", output=runs / "jetson"))
    assert [output.name for output in outcome.report.outputs] == STAGES[:2], "--from takes the head over"
    gate = next(gate for gate in outcome.report.gates if gate.name == "min_feature_sqnr_db")
    assert gate.passed is None and "the simulated graph has" in str(gate.reason)
    assert all(check.passed for check in outcome.report.checks)


@pytest.mark.exhaustive
def test_core_ml_gives_every_stage_to_the_reference_evaluator(few: Request, runs: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'edgeconvnext[coreml]'")
    outcome = pipeline.export(replace(few, target="coreml", output=runs / "coreml"))
    assert [output.name for output in outcome.report.outputs] == STAGES[:2]
    assert all((output.fidelity_db or 0) > 40 for output in outcome.report.outputs)
    assert not (outcome.path / "device" / "classify.swift").exists()


def test_validate_measures_a_backbone_again_without_labels(features: Outcome, photo_folder: Path) -> None:
    flat = features.path.parent / "flat"
    flat.mkdir()
    for path in sorted(photo_folder.glob("*/*.jpg"))[:6]:
        (flat / path.name).write_bytes(path.read_bytes())
    again = pipeline.validate(features.path, Validate(data=str(flat), latency=False))
    assert again.report.accuracy.images == 6 and [output.name for output in again.report.outputs] == STAGES


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_drop": 0.5}, "--max-drop counts points of a classifier's score"),
        ({"prune_macs": 0.5}, "Change the classifier first"),
    ],
)
def test_what_needs_answers_is_refused(changes: dict, words: str, tmp_path: Path) -> None:  # type: ignore[type-arg]
    with pytest.raises(QuantizationError, match=words):
        pipeline.quantize(replace(FEATURES, **changes, output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_from_a_run_with_another_head_is_refused(features: Outcome, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="was made with --head features"):
        pipeline.export(Request(target="onnx", head="gap", from_run=features.path, output=tmp_path / "run"))


def test_commands_that_are_judged_by_logits_refuse_a_saved_backbone(features: Outcome, tmp_path: Path) -> None:
    from edgeconvnext import api

    saved = tmp_path / "backbone.safetensors"
    save_checkpoint(load_model("digits", head="features"), saved)
    tries = [
        lambda: api.prune(saved, calib="digits", macs=0.5),
        lambda: api.compress(saved, calib="digits", replace_norm=True),
        lambda: api.analyze(saved, calib="digits"),
        lambda: api.analyze(features.path),
    ]
    for attempt in tries:
        with pytest.raises(EdgeConvNextError, match="judged by logits"):
            attempt()
