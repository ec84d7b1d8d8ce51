"""Results from a device: those of another run are refused, accuracies are computed from its logits, gates apply."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeconvnext import pipeline
from edgeconvnext.errors import DeviceResultsError, RunDirectoryError
from edgeconvnext.export.device_kit import KitOutput
from edgeconvnext.job import Request
from edgeconvnext.manifest import load_run
from edgeconvnext.report.schema import Interval, OutputRecord, Report
from edgeconvnext.targets import Target, load_target
from edgeconvnext.validate.on_device import DeviceResults, Kit, device_record, merge, read_results

COUNT, CLASSES = 32, 10
Results = dict[str, Any]


def kit(labels: bool = True) -> Kit:
    rng = np.random.default_rng(0)
    fp32 = rng.normal(size=(COUNT, CLASSES)).astype(np.float32)
    simulated = fp32 + rng.normal(scale=0.01, size=fp32.shape).astype(np.float32)
    return Kit("a" * 64, "small", "jetson", fp32, simulated, fp32.argmax(1) if labels else None)


def times(median: float) -> Results:
    names = ("median_ms", "mean_ms", "min_ms", "max_ms", "p90_ms", "p95_ms", "p99_ms")
    return dict.fromkeys(names, median) | {"throughput": 1e3 / median, "cv": 0.1, "runs": 20, "gpu": {"median_ms": 1}}


def told(answers: np.ndarray | None, **changes: object) -> Results:
    """device.json as a kit's script writes it."""
    return {
        "format": 3,
        "kit": "a" * 64,
        "model": "small",
        "target": "jetson",
        "started": "2026-11-25T01:41:13Z",
        "runtime": {"name": "tensorrt", "version": "10.3.0"},
        "forms": {"artifact": "W8A8", "baseline": "FP16"},
        "machine": {"name": "Jetson"},
        "answers": None if answers is None else base64.b64encode(answers.astype("<f4").tobytes()).decode(),
        "latency": {"batch": 1, "threads": 1, "settings": {}, "artifact": times(1.0), "baseline": times(1.5)},
        "speedup": {"value": 1.5, "low": 1.4, "high": 1.6},
        "power": None,
        "power_absent": "this machine shows no power sensor",
        "clocks_before": {"cpu": {"mhz": 1500.0, "max_mhz": 2400.0, "governor": "ondemand"}},
        "clocks_after": {"cpu": {"mhz": 2400.0, "max_mhz": 2400.0}},
        "layers": {"artifact": [{"name": "a", "kind": "Conv", "precision": "int8", "median_ms": 0.1}]},
        "a key of a later version": 1,
    } | changes


def judged(results: Results, exported: Kit, report: Report, target: Target | None = None) -> Report:
    record = device_record(DeviceResults.model_validate(results), exported)
    return merge(report, record, target or load_target("jetson"))


@pytest.fixture
def report() -> Report:
    """A jetson export: nothing of the artifact was measured where it was made, the simulation loses 0.1 points."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
    try:
        from sample_reports import unmeasured_report
    finally:
        sys.path.pop(0)
    report = unmeasured_report()
    report.accuracy.drop_pp = Interval(value=0.1, low=-0.2, high=0.4)
    report.accuracy.measured_on = "simulation"
    return report


def gate(report: Report, name: str) -> Any:
    return next(gate for gate in report.gates if gate.name == name)


def test_accuracies_are_computed_from_the_logits_and_settle_the_gates(report: Report) -> None:
    exported = kit()
    noisy = exported.simulated + np.random.default_rng(1).normal(scale=0.01, size=exported.simulated.shape)
    merged = judged(told(noisy, check={"fidelity_db": 99.0, "agreement": 100.0}), exported, report)
    device = merged.device
    assert device is not None and device.images == COUNT
    expected = 10 * np.log10((exported.simulated**2).sum() / ((exported.simulated - noisy) ** 2).sum())
    assert device.fidelity_db == pytest.approx(expected, abs=0.01), "not the figure that the file claims"
    assert device.artifact is not None and device.artifact.n == COUNT
    assert device.clocks == {"cpu": "1500, then 2400 MHz (at most 2400, governor ondemand)"}
    assert device.precisions == {"int8": 1}
    assert device.not_measured["power"] == "this machine shows no power sensor"
    assert (gate(merged, "min_fidelity_db").measured, gate(merged, "min_fidelity_db").passed) == (
        device.fidelity_db,
        True,
    )
    assert (gate(merged, "min_speedup").measured, gate(merged, "min_speedup").passed) == (1.5, True)
    assert "measured on the device (Jetson)" in gate(merged, "min_speedup").reason
    assert merged.passed
    assert merged.not_measured["fidelity_db"].startswith("measured on the device only")


def test_a_few_vectors_do_not_settle_a_drop_of_one_point(report: Report) -> None:
    exported = kit()
    merged = judged(told(exported.simulated), exported, report)
    drop = gate(merged, "top1_drop_pp")
    assert drop.passed is None
    assert "simulated graph loses 0.10 points" in drop.reason and "one image is 3.1 points" in drop.reason


def test_an_artifact_that_answers_something_else_misses_the_drop_and_the_fidelity(report: Report) -> None:
    exported = kit()
    merged = judged(told(np.roll(exported.simulated, 1, axis=1)), exported, report)
    assert gate(merged, "top1_drop_pp").passed is False
    assert gate(merged, "min_fidelity_db").passed is False
    assert not merged.passed


def test_answers_that_are_not_finite_miss_the_fidelity(report: Report) -> None:
    exported = kit()
    broken = exported.simulated.copy()
    broken[3, 2] = np.nan
    merged = judged(told(broken), exported, report)
    assert merged.device is not None and merged.device.fidelity_db is None
    assert gate(merged, "min_fidelity_db").passed is False
    assert "not finite" in gate(merged, "min_fidelity_db").reason


def test_a_slower_artifact_misses_the_speed(report: Report) -> None:
    exported = kit()
    slow = told(exported.simulated, speedup={"value": 0.9, "low": 0.85, "high": 0.95})
    assert gate(judged(slow, exported, report), "min_speedup").passed is False
    unsure = told(exported.simulated, speedup={"value": 0.98, "low": 0.9, "high": 1.05})
    merged = judged(unsure, exported, report)
    assert (
        gate(merged, "min_speedup").passed is True and "is below the limit, but" in gate(merged, "min_speedup").reason
    )


def test_an_engine_that_was_only_built_settles_nothing(report: Report) -> None:
    built = told(None, latency=None, speedup=None)
    merged = judged(built, kit(), report)
    assert [gate.passed for gate in merged.gates] == [None, None, None]
    assert merged.device is not None and merged.device.images == 0
    assert "not run" in merged.device.not_measured["artifact"]


def test_vectors_without_labels_leave_top1_open(report: Report) -> None:
    exported = kit(labels=False)
    merged = judged(told(exported.simulated), exported, report)
    assert merged.device is not None and merged.device.artifact is None and merged.device.agreement is not None
    assert gate(merged, "min_fidelity_db").passed is True


def test_merging_again_replaces_what_was_merged(report: Report) -> None:
    exported = kit()
    once = judged(told(np.roll(exported.simulated, 1, axis=1)), exported, report)
    again = judged(told(exported.simulated), exported, once)
    assert again == judged(told(exported.simulated), exported, report)


def refusal(path: Path) -> str:
    with pytest.raises(DeviceResultsError) as caught:
        read_results(path, kit())
    return str(caught.value)


def test_results_of_another_run_are_refused_by_their_hash(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text(json.dumps(told(kit().simulated, kit="b" * 64, model="other", target="onnx")))
    message = refusal(path)
    assert (
        "kit of another run (other for onnx, kit bbbbbbbbbbbb)" in message and "small for jetson, kit aaaa" in message
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[:100], "Invalid JSON"),
        (lambda text: "[]", "Input should be an object"),
        (lambda text: text.replace('"median_ms": 1.0', '"median_ms": -1.0', 1), "latency.artifact.median_ms"),
        (lambda text: text.replace('"value": 1.5', '"value": NaN'), "finite"),
        (lambda text: text.replace('"kit"', '"kot"'), "kit: Field required"),
    ],
)
def test_a_file_that_does_not_hold_is_refused(spoil: Callable[[str], str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text(spoil(json.dumps(told(kit().simulated))))
    assert words in refusal(path) and str(path) in refusal(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "device.json")


@pytest.mark.parametrize("answers", ["!!!", base64.b64encode(b"123").decode(), base64.b64encode(b"1234").decode()])
def test_answers_that_do_not_fit_the_vectors_are_refused(answers: str) -> None:
    with pytest.raises(DeviceResultsError, match="answers"):
        device_record(DeviceResults.model_validate(told(None) | {"answers": answers}), kit())


def test_outputs_of_a_backbone_are_judged_one_by_one(report: Report) -> None:
    exported = kit(labels=False)
    outputs = (KitOutput("stage1", 7, 7), KitOutput("stage2", 300, 3))
    exported = replace(exported, outputs=outputs)
    report.outputs = [
        OutputRecord(name=name, shape=(7,), sqnr_db=40, simulated_sqnr_db=40, fidelity_db=None)
        for name in ("stage1", "stage2")
    ]
    answers = exported.simulated.copy()
    answers[:, 7:] *= 1.2  # 20 log10(5) is 14 dB
    merged = judged(told(answers), exported, report)
    assert merged.device is not None
    first, second = merged.device.outputs
    assert (first.name, first.fidelity_db) == ("stage1", 200.0)
    assert second.fidelity_db == pytest.approx(14.0, abs=0.1)
    assert merged.device.fidelity_db == second.fidelity_db, "the worst output speaks for all"
    assert merged.device.agreement is None and "device.outputs" in merged.device.not_measured["artifact"]
    features = gate(merged, "min_feature_sqnr_db")
    assert features.passed is False and features.measured == second.sqnr_db and "worst in stage2" in features.reason
    assert not [gate for gate in merged.gates if gate.name == "top1_drop_pp"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    target = Path(__file__).parents[2] / "targets" / "onnx.toml"
    # How fast a network of digits is on a busy machine is not what these tests are about.
    (folder / "board.toml").write_text(
        target.read_text().replace("min_speedup = 1.0", "").replace('name = "onnx"', 'name = "board"')
    )
    request = Request(
        model="digits",
        calibration="digits",
        evaluation="digits_test",
        num_images=48,
        effort="quick",
        measure_latency=False,
        target=str(folder / "board.toml"),
        output=folder / "board",
    )
    return pipeline.export(request).path


@pytest.mark.slow
def test_a_kit_moved_away_and_run_comes_back_into_the_report(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run / "device", tmp_path / "moved"))
    command = [sys.executable, str(moved / "check.py"), "--seconds", "0.05"]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=tmp_path)
    before = load_run(run)
    command = [sys.executable, "-m", "edgeconvnext.cli", "validate", str(run), "--device", str(moved / "device.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "layers ran in" in done.stdout
    after = load_run(run)
    assert set(after.files) - set(before.files) == {"device_results.json", "stages/results.json"}
    report = json.loads((run / "report.json").read_text())
    assert report["device"]["fidelity_db"] > 60, "the same runtime on the same machine"

    again = pipeline.validate(run, measure_latency=False)
    assert again.report.device is not None, "measuring here again keeps what the device measured"
    assert again.report.device.fidelity_db == report["device"]["fidelity_db"]

    changed = json.loads((moved / "device.json").read_text()) | {"kit": "0" * 64}
    (moved / "device.json").write_text(json.dumps(changed))
    with pytest.raises(DeviceResultsError, match="another run"):
        pipeline.merge_device(run, moved / "device.json")
    load_run(run)


@pytest.mark.slow
def test_a_run_without_a_kit_takes_no_results(run: Path, tmp_path: Path) -> None:
    quantized = pipeline.quantize(Request(reuse_from=run, target="onnx", output=tmp_path / "quantized"))
    with pytest.raises(RunDirectoryError, match="no device kit"):
        pipeline.merge_device(quantized.path, tmp_path / "device.json")
