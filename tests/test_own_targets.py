"""Target files of the user's own, end to end: what they ask for is what is written."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeconvnext.commands.bench import bench_artifact
from edgeconvnext.errors import RuntimeMissingError
from edgeconvnext.evaluation import timing
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.commands import Outcome
from edgeconvnext.pipeline.job import Request
from edgeconvnext.resources import resource_dir

DIGITS = Request(model="digits", calib="digits", eval="digits_test", num_images=60, latency=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs, so that later ones take over the stages of earlier ones."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def small(micro: str) -> Request:
    """The digits told apart by a network of two blocks, for what no accuracy is asserted of."""
    return replace(DIGITS, model=micro, num_images=30, effort="quick")


@pytest.fixture(scope="module")
def quantized(runs: Path, small: Request) -> Outcome:
    return pipeline.quantize(replace(small, output=runs / "quantized"))


@pytest.fixture(scope="module")
def jetson(runs: Path, small: Request, quantized: Outcome) -> Outcome:
    return pipeline.export(replace(small, target="jetson", output=runs / "jetson"))


def own_target(folder: Path, base: str, *changes: tuple[str, str]) -> str:
    """Write a copy of a shipped target with pieces of its text replaced, and return its path."""
    text = (resource_dir("targets") / f"{base}.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / f"{base}.toml"
    path.write_text(text)
    return str(path)


def top1(outcome: Outcome) -> float:
    assert outcome.report.accuracy.simulated is not None
    return outcome.report.accuracy.simulated.value


def check(outcome: Outcome, name: str) -> Any:
    return next(check for check in outcome.report.checks if check.name == name)


@pytest.mark.parametrize("base", ["jetson", "onnx"])
def test_a_quantised_stem_that_takes_pixels_has_a_grid_for_pixels(
    micro: str, runs: Path, tmp_path: Path, base: str
) -> None:
    """A grid fitted on normalised images would clip pixels at 2 and leave chance accuracy; the network is right on 56 of 100."""
    changes = [("[quantize]\n", '[input]\nvalue_range = "0..255"\n\n[quantize]\n')]
    if base == "onnx":
        changes.append(('operators = ["pointwise1"', 'operators = ["stem", "pointwise1"'))
    target = own_target(tmp_path, base, *changes)
    outcome = pipeline.quantize(replace(DIGITS, model=micro, target=target, output=runs / f"{base}-pixels"))
    assert top1(outcome) > 50
    stem = outcome.report.quantization.layers[0]
    assert stem.operator == "stem"
    # jetson moves pixels to -128..127 in front of the quantizer, which then holds each of them exactly.
    largest = 127 if base == "jetson" else 255
    assert stem.smoothing == ("pixels" if base == "jetson" else stem.smoothing)
    assert stem.high >= 0.9 * largest
    assert stem.observed_high == pytest.approx(largest, abs=1)


def test_outputs_of_depthwise_convs_are_quantised_where_the_target_says(
    runs: Path, small: Request, tmp_path: Path
) -> None:
    depthwise = (
        ('outputs = ["projection"]', 'outputs = ["depthwise"]'),
        ("operators = [", 'operators = ["depthwise", '),
    )
    target = own_target(tmp_path, "onnx", *depthwise)
    outcome = pipeline.export(replace(small, target=target, output=runs / "outputs"))
    names = [layer.layer for layer in outcome.report.quantization.layers]
    assert [name for name in names if name.endswith(":output")] == [
        f"{name}:output" for name in names if name.endswith(".dwconv")
    ]
    assert outcome.report.fidelity_db is not None
    assert outcome.report.fidelity_db > 30


def test_eight_bit_weights_fail_where_products_saturate_and_warn_elsewhere(
    runs: Path, small: Request, quantized: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = own_target(tmp_path, "onnx", ("range_bits = 7", "range_bits = 8"))
    asked = replace(small, target=target, from_run=quantized.path)

    monkeypatch.setattr("edgeconvnext.backends.onnxruntime.saturation.instruction_sets", lambda: {"sse2", "avx2"})
    outcome = pipeline.export(replace(asked, output=runs / "without-vnni"))
    saturation = check(outcome, "x86 saturation")
    assert not saturation.passed
    assert "range_bits = 7" in saturation.result
    assert outcome.exit_code == 3

    monkeypatch.setattr("edgeconvnext.backends.onnxruntime.saturation.instruction_sets", lambda: {"sse2", "avx_vnni"})
    outcome = pipeline.export(replace(asked, output=runs / "with-vnni"))
    saturation = check(outcome, "x86 saturation")
    assert saturation.passed
    assert not saturation.result.startswith("0 of")
    assert "range_bits = 7" in saturation.result
    assert not next(stage for stage in outcome.report.stages if stage.stage == "artifact").reused


def test_a_fixed_batch_is_timed_at_that_batch(
    runs: Path, small: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.05)
    target = own_target(tmp_path, "onnx", ("[quantize]\n", "[input]\nbatch = [4, 4, 4]\n\n[quantize]\n"))
    outcome = pipeline.export(replace(small, target=target, latency=True, output=runs / "batch4"))
    assert outcome.report.latency.batch == 4
    assert bench_artifact(outcome.path, seconds=0.05).latency.batch == 4


def test_a_board_is_not_replaced_by_this_processor(jetson: Outcome) -> None:
    with pytest.raises(RuntimeMissingError, match=r"build_and_check\.py") as caught:
        bench_artifact(jetson.path)
    assert caught.value.exit_code == 4
    assert bench_artifact(jetson.path / "model.onnx", seconds=0.05).latency.artifact is not None


def test_the_parsers_layers_are_listed(jetson: Outcome) -> None:
    pytest.importorskip("tensorrt_rtx")
    with (jetson.path / "layers.csv").open() as file:
        layers = list(csv.DictReader(file))
    convs = [layer for layer in layers if layer["kind"] == "CONVOLUTION"]
    assert len(convs) == 4
    assert all(layer["int8"] == "yes" and layer["output_types"] == "HALF" for layer in convs)
    assert f"{len(layers)} layers" in check(jetson, "TensorRT-RTX").result


def test_every_null_of_a_report_has_a_reason(jetson: Outcome, quantized: Outcome) -> None:
    for outcome in (jetson, quantized):
        report = json.loads((outcome.path / "report.json").read_text())
        # What was not asked for is nothing that could have been measured.
        known = [*report["not_measured"], "quantization.budget", "compression", "device"]
        unexplained = [key for key in nulls(report) if not any(key.startswith(name) for name in known)]
        assert unexplained == []
        assert all(gate["reason"] for gate in report["gates"] if gate["passed"] is None)


def nulls(record: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the nulls of a report, lists left out."""
    names = []
    for key, value in record.items():
        if isinstance(value, dict):
            names += nulls(value, f"{prefix}{key}.")
        elif value is None:
            names.append(prefix + key)
    return names


def test_files_of_a_run_can_be_read_by_others(quantized: Outcome) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in quantized.path.iterdir() if path.is_file()}
    expected = modes["config.json"]
    assert {name: mode for name, mode in modes.items() if mode != expected and name != ".lock"} == {}


@pytest.mark.exhaustive
def test_a_network_without_classifier_is_measured_by_its_features(runs: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "features.pth"
    torch.save(ConvNeXt(ConvNeXtConfig((1, 1), (8, 16), num_classes=0)).state_dict(), weights)
    asked = replace(DIGITS, model=str(weights), eval=None, effort="quick", resolution=32, output=runs / "features")
    outcome = pipeline.export(asked)
    accuracy, reasons = outcome.report.accuracy, outcome.report.not_measured
    assert [output.name for output in outcome.report.outputs] == ["embedding"]
    assert accuracy.agreement is None
    assert accuracy.flips == []
    assert "no classifier" in reasons["accuracy.agreement"]
    assert "no classifier" in reasons["accuracy.fp32"]
    assert accuracy.sqnr_db == outcome.report.outputs[0].sqnr_db
    assert outcome.report.fidelity_db is not None
    named = pipeline.export(replace(asked, eval="digits_test"))
    assert named.report.accuracy.dataset == "digits_test", "its labels are not looked at"
