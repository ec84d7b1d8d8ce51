"""Results from a device: accuracies are computed from its logits, latencies from its times, and the gates judged by both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_files import COUNT, POWER, Results, backbone, kit, packed, timed, told

from edgeconvnext.backends import load_target
from edgeconvnext.backends.kit import record as on_device
from edgeconvnext.backends.kit.known import Kit
from edgeconvnext.backends.kit.record import device_record, merge
from edgeconvnext.backends.kit.results import DeviceResults
from edgeconvnext.errors import DeviceResultsError
from edgeconvnext.schema.report import (
    DeviceLayer,
    DeviceRecord,
    ExportCheck,
    Interval,
    LayerFidelity,
    OutputRecord,
    Report,
)
from edgeconvnext.targets import Target


def recorded(results: Results, exported: Kit) -> DeviceRecord:
    return device_record(DeviceResults.model_validate(results), exported)


def judged(results: Results, exported: Kit, report: Report, target: Target | None = None) -> Report:
    return merge(report, recorded(results, exported), target or load_target("jetson"))


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


# ---------------------------------------------------------------------------------------------------------- The record


def test_the_record_holds_what_the_device_says_of_itself() -> None:
    exported = kit()
    layers = [{"name": f"l{index}", "kind": "Conv", "precision": "float16"} for index in range(2)]
    layers += [{"name": "m", "kind": "MatMul", "precision": "int8", "median_ms": 0.25}] * 3
    record = recorded(
        told(
            exported.simulated,
            layers={"artifact": layers},
            layer_fidelity=[{"layer": "stages.1", "sqnr_db": 33.5}, {"layer": "stages.0", "sqnr_db": None}],
            messages=[f"WARNING {index}" for index in range(25)],
        ),
        exported,
    )
    assert record.runtime == "tensorrt 10.3.0" and record.machine == {"name": "Jetson"}
    assert record.started == "2026-11-25T01:41:13Z"
    assert (record.baseline_form, record.artifact_form) == ("FP16", "W8A8")
    assert record.precisions == {"int8": 3, "float16": 2} and list(record.precisions) == ["int8", "float16"]
    assert record.layers[0] == DeviceLayer(name="l0", kind="Conv", precision="float16", median_ms=None)
    assert record.layers[4] == DeviceLayer(name="m", kind="MatMul", precision="int8", median_ms=0.25)
    assert record.layer_fidelity == [
        LayerFidelity(layer="stages.1", sqnr_db=33.5),
        LayerFidelity(layer="stages.0", sqnr_db=None),
    ]
    assert record.messages == [f"WARNING {index}" for index in range(20)], "the first twenty"
    assert record.not_measured == {"power": "this machine shows no power sensor"}


def test_accuracies_are_computed_from_the_logits() -> None:
    """Four images, three classes. FP32 is right on the first three; the device on the first and the last."""
    fp32 = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 0, 0]], np.float32)
    simulated = fp32 + np.float32(0.5)
    answers = np.array([[9, 0, 0], [9, 0, 0], [9, 0, 0], [0, 9, 0]], np.float32)
    about = {"count": 4, "classes": 3, "outputs": [{"name": "logits", "size": 3, "samples": 3}]}
    exported = Kit(
        "a" * 64,
        kit(
            labels=False,
            **about,
        ).about.model_copy(update={"labels": [0, 1, 2, 1]}),
        fp32,
        simulated,
    )
    record = recorded(told(answers), exported)
    assert record.images == 4
    assert record.fp32 is not None and (record.fp32.value, record.fp32.n) == (75.0, 4)
    assert record.artifact is not None and (record.artifact.value, record.artifact.n) == (50.0, 4)
    assert record.drop_pp is not None and record.drop_pp.value == 25.0
    assert record.agreement == 25.0
    # 4 * 81 of signal; three rows differ by 9 in two places: 6 * 81 of noise.
    assert record.sqnr_db == pytest.approx(10 * np.log10(4 / 6), abs=1e-6)
    # simulated: 4 * 9.5^2 + 8 * 0.5^2 = 363; noise: six values 0.5 away, three 9.5 and three 8.5.
    noise = 6 * 0.25 + 3 * 9.5**2 + 3 * 8.5**2
    assert record.fidelity_db == pytest.approx(10 * np.log10(363 / noise), abs=1e-6)
    assert "artifact" not in record.not_measured and "fidelity_db" not in record.not_measured


def test_latency_and_speed_up_are_computed_from_the_times() -> None:
    exported = kit()
    record = recorded(timed(exported.simulated, [[2.0, 2.0, 5.0]], [[6.0, 6.0, 9.0, 9.0]]), exported)
    assert record.latency is not None and record.speedup is not None
    assert (record.latency.artifact.median_ms, record.latency.artifact.mean_ms) == (2.0, 3.0)
    assert (record.latency.baseline.median_ms, record.latency.baseline.runs) == (7.5, 4)
    assert record.latency.artifact.throughput == pytest.approx(1000 / 3)
    assert record.speedup.value == 3.75
    assert (record.latency.batch, record.latency.threads, record.latency.settings) == (1, 1, {})
    whole = recorded(told(exported.simulated, power=POWER), exported)
    assert whole.latency is not None and whole.latency.settings == {"timed": "by events"}
    assert whole.power is not None and (whole.power.artifact_w, whole.power.baseline_mj_per_image) == (6.0, 27.0)
    assert "power" not in whole.not_measured and "latency" not in whole.not_measured


def test_what_was_not_measured_says_why() -> None:
    exported = kit(layers=[])
    record = recorded(told(None, latency=None, speedup=None, power_absent=None), exported)
    assert record.not_measured == {
        "artifact": "the engine was built there, but not run",
        "latency": "nothing was timed there",
        "power": "nothing was run there",
        "layer_fidelity": "the kit's script compared the answers only",
    }
    assert record.images == 0 and record.latency is None and record.speedup is None and record.power is None
    why = recorded(told(None, latency=None, speedup=None, layer_fidelity_absent="TensorRT fuses them"), exported)
    assert why.not_measured["layer_fidelity"] == "TensorRT fuses them"


def test_an_older_file_without_times_counts_for_its_answers_only() -> None:
    exported = kit()
    record = recorded(told(exported.simulated, format=3, latency=None, speedup=None), exported)
    assert record.fidelity_db == 200.0 and record.latency is None
    for name in ("latency", "power"):
        assert record.not_measured[name].startswith("device.json is of format 3, which does not hold the times")


def test_vectors_without_labels_leave_top1_open(report: Report) -> None:
    exported = kit(labels=False)
    record = recorded(told(exported.simulated), exported)
    assert record.artifact is None and record.agreement is not None
    assert record.not_measured["artifact"] == "the check vectors have no labels"
    assert gate(judged(told(exported.simulated), exported, report), "min_fidelity_db").passed is True


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answers_that_are_not_finite_miss_the_fidelity(report: Report, value: float) -> None:
    exported = kit()
    broken = exported.simulated.copy()
    broken[3, 2] = value
    merged = judged(told(broken), exported, report)
    assert merged.device is not None
    assert merged.device.fidelity_db is None and merged.device.agreement is None and merged.device.images == COUNT
    for name in ("artifact", "fidelity_db"):
        assert merged.device.not_measured[name] == "the device's answers are not finite numbers"
    fidelity = gate(merged, "min_fidelity_db")
    assert (fidelity.measured, fidelity.passed) == (None, False)
    assert fidelity.reason == ("measured on the device (Jetson), 32 check vectors: the answers are not finite numbers")
    assert merged.verdict == "failed"


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ("!!!", "The answers of device.json do not hold"),
        (packed(np.zeros(1))[:-2], "The answers of device.json do not hold"),
        ("MTIz", "The answers of device.json do not hold"),  # three bytes are no float32
        (packed(np.zeros(1)), "device.json holds 1 answers; the kit has 32 check vectors of 10 values"),
        (packed(np.zeros(COUNT * 10 + 1)), "device.json holds 321 answers"),
    ],
)
def test_answers_that_do_not_fit_the_vectors_are_refused(answers: str, words: str) -> None:
    with pytest.raises(DeviceResultsError, match=words):
        recorded(told(None) | {"answers": answers}, kit())


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"mhz": 1500.0, "max_mhz": 2400.0, "governor": "ondemand"}, {"mhz": 2400.0},
         "1500, then 2400 MHz (at most 2400, governor ondemand)"),
        ({"mhz": 1500.4, "max_mhz": None}, {}, "1500 MHz"),
        ({"celsius": 40.6}, {"celsius": 55.2}, "41, then 55 degrees Celsius"),
        ({"mhz": 306.0, "max_mhz": 625.0}, {"mhz": None}, "306 MHz (at most 625)"),
        ({"mhz": 306.0, "governor": None}, {"mhz": 307.0}, "306, then 307 MHz"),
    ],
)  # fmt: skip
def test_clocks_stand_side_by_side(before: Results, after: Results, text: str) -> None:
    exported = kit()
    results = told(exported.simulated, clocks_before={"a": before}, clocks_after={"a": after, "b": {"mhz": 1.0}})
    assert recorded(results, exported).clocks == {"a": text}
    alone = recorded(told(exported.simulated, clocks_before={"a": {"mhz": 5.0}}, clocks_after={}), exported)
    assert alone.clocks == {"a": "5 MHz"}


# ----------------------------------------------------------------------------------------------------------- The gates


def test_the_device_settles_fidelity_and_speed(report: Report) -> None:
    exported = kit()
    noisy = exported.simulated + np.random.default_rng(1).normal(scale=0.01, size=exported.simulated.shape)
    merged = judged(told(noisy), exported, report)
    wide = exported.simulated.astype(np.float64)
    expected = 10 * np.log10((wide**2).sum() / ((wide - noisy.astype(np.float32)) ** 2).sum())
    fidelity, speed = gate(merged, "min_fidelity_db"), gate(merged, "min_speedup")
    assert fidelity.measured == pytest.approx(expected, abs=1e-6) and fidelity.passed is True
    assert fidelity.reason == "measured on the device (Jetson), 32 check vectors"
    assert (fidelity.low, fidelity.high) == (None, None)
    assert (speed.measured, speed.low, speed.high, speed.passed) == (1.5, 1.5, 1.5, True)
    assert speed.reason == "measured on the device (Jetson), against FP16"
    assert merged.verdict == "passed" and merged.device is not None
    assert merged.not_measured["fidelity_db"] == "measured on the device only: see device.fidelity_db"
    assert merged.not_measured["accuracy.artifact"] == (
        "measured on the device only: on the check vectors, see device.artifact"
    )
    for key, place in (
        ("speedup", "speedup"),
        ("speedup_interval", "speedup"),
        ("latency.artifact", "latency"),
        ("latency.fp32", "latency"),
    ):
        assert merged.not_measured[key] == f"measured on the device only: see device.{place}"
    assert merged.not_measured["size_bytes.fp32"] == "no float engine was written", "other reasons stay"


def test_figures_that_were_measured_here_need_no_reason(report: Report) -> None:
    exported = kit()
    report.fidelity_db = 46.8
    report.speedup = 1.2
    merged = judged(told(exported.simulated), exported, report)
    assert "fidelity_db" not in merged.not_measured and "speedup" not in merged.not_measured
    built = judged(told(None, latency=None, speedup=None), exported, report)
    assert built.not_measured["accuracy.artifact"] == report.not_measured["accuracy.artifact"]


def test_a_failed_check_of_the_export_is_not_forgotten(report: Report) -> None:
    exported = kit()
    ok = ExportCheck(name="onnx.checker", passed=True, result="opset 21")
    report.checks = [ok]
    assert judged(told(exported.simulated), exported, report).verdict == "passed"
    report.checks = [ok, ExportCheck(name="sparse kernels", passed=False, result="none ran"), ok]
    merged = judged(told(exported.simulated), exported, report)
    assert all(gate.passed is not False for gate in merged.gates)
    assert merged.verdict == "failed", "whatever the device measured"


def limited(**gates: float) -> Target:
    target = load_target("jetson")
    return target.model_copy(update={"gates": target.gates.model_copy(update=gates)})


def test_the_limit_itself_is_met_and_anything_below_is_missed(report: Report) -> None:
    exported = kit()
    record = recorded(told(exported.simulated * np.float32(1.1)), exported)
    assert record.fidelity_db is not None
    for limit, met in ((record.fidelity_db, True), (np.nextafter(record.fidelity_db, 1e9), False)):
        merged = merge(report, record, limited(min_fidelity_db=float(limit)))
        assert gate(merged, "min_fidelity_db").passed is met and merged.verdict == ("passed" if met else "failed")


def test_a_speed_up_is_missed_only_where_its_whole_interval_lies_below(report: Report) -> None:
    exported = kit()
    record = recorded(told(exported.simulated), exported)
    wide = record.model_copy(update={"speedup": Interval(value=0.98, low=0.9, high=1.05)})
    unsure = merge(report, wide, limited(min_speedup=1.05))
    speed = gate(unsure, "min_speedup")
    assert speed.passed is True and unsure.verdict == "passed"
    assert (speed.measured, speed.low, speed.high) == (0.98, 0.9, 1.05)
    assert speed.reason == (
        "measured on the device (Jetson), against FP16; 0.98x is below the limit, but its 95 % interval is not"
    )
    at_limit = gate(merge(report, wide, limited(min_speedup=0.98)), "min_speedup")
    assert at_limit.reason == "measured on the device (Jetson), against FP16", "0.98 is not below 0.98"
    slow = merge(report, wide, limited(min_speedup=1.0501))
    assert gate(slow, "min_speedup").passed is False and slow.verdict == "failed"
    assert gate(slow, "min_speedup").reason == "measured on the device (Jetson), against FP16"


def test_runs_that_scatter_on_the_device_decide_no_speed(report: Report) -> None:
    """Half of the baseline's runs take 1 ms and half 2 ms: the standard deviation is a third of the mean."""
    exported = kit()
    results = timed(exported.simulated, [[1.0] * 4] * 2, [[1.0, 2.0, 1.0, 2.0]] * 2)
    speed = gate(merge(report, recorded(results, exported), limited(min_speedup=1.0)), "min_speedup")
    assert (speed.measured, speed.passed) == (1.5, None)
    assert speed.reason is not None and "not decided, the timings are noisy: runs scatter by 33 %" in speed.reason


def test_timings_that_were_noisy_here_still_decide_nothing_after_a_merge(report: Report) -> None:
    exported = kit()
    report.speedup_interval = Interval(value=1.2, low=1.1, high=1.3)
    report.latency.settings["noisy"] = "8.7 processes ran on 2 cores"
    built = recorded(told(None, latency=None, speedup=None), exported)
    speed = gate(merge(report, built, limited(min_speedup=1.0)), "min_speedup")
    assert speed.passed is None and speed.reason == "not decided, the timings are noisy: 8.7 processes ran on 2 cores"


def dropped(report: Report, low: float, value: float = 9.0) -> Report:
    exported = kit()
    record = recorded(told(exported.simulated), exported)
    record = record.model_copy(update={"drop_pp": Interval(value=value, low=low, high=12.0), "images": 8})
    return merge(report, record, limited(score_drop_pp=1.0))


def test_a_few_vectors_do_not_settle_a_drop_of_one_point(report: Report) -> None:
    merged = dropped(report, low=1.0)
    drop = gate(merged, "score_drop_pp")
    assert (drop.passed, drop.measured) == (None, None) and merged.verdict == "passed"
    assert "the simulated graph loses 0.10 points" in drop.reason
    assert drop.reason.endswith(
        "; +9.00 points (+1.00 to +12.00) on 8 check vectors, measured on the device (Jetson): one image is 12.5 points"
    )


def test_an_interval_wholly_above_the_limit_misses_the_drop(report: Report) -> None:
    merged = dropped(report, low=1.01)
    drop = gate(merged, "score_drop_pp")
    assert (drop.measured, drop.low, drop.high, drop.passed) == (9.0, 1.01, 12.0, False) and merged.verdict == "failed"
    assert drop.reason == "+9.00 points (+1.01 to +12.00) on 8 check vectors, measured on the device (Jetson)"


def test_a_drop_that_was_judged_here_stays_as_it_was(report: Report) -> None:
    report.accuracy.measured_on = "artifact"
    drop = gate(dropped(report, low=5.0), "score_drop_pp")
    assert (drop.measured, drop.passed) == (0.1, True)


def test_an_artifact_that_answers_something_else_misses_the_drop_and_the_fidelity(report: Report) -> None:
    exported = kit()
    merged = judged(told(np.roll(exported.simulated, 1, axis=1)), exported, report)
    assert gate(merged, "score_drop_pp").passed is False and gate(merged, "min_fidelity_db").passed is False
    assert merged.verdict == "failed"


def test_an_engine_that_was_only_built_settles_nothing(report: Report) -> None:
    merged = judged(told(None, latency=None, speedup=None), kit(), report)
    assert [gate.passed for gate in merged.gates] == [None, None, None] and merged.verdict == "not_measured"
    assert merged.device is not None and merged.device.images == 0


def test_merging_again_replaces_what_was_merged(report: Report) -> None:
    exported = kit()
    once = judged(told(np.roll(exported.simulated, 1, axis=1)), exported, report)
    assert judged(told(exported.simulated), exported, once) == judged(told(exported.simulated), exported, report)


# --------------------------------------------------------------------------------------------------------- A backbone


@pytest.fixture
def features(report: Report) -> Report:
    report.outputs = [
        OutputRecord(name=name, shape=(7,), sqnr_db=40, simulated_sqnr_db=40, fidelity_db=None)
        for name in ("stage1", "stage2")
    ]
    return report


def test_outputs_of_a_backbone_are_judged_one_by_one(features: Report) -> None:
    exported = backbone()
    answers = exported.simulated.copy()
    answers[:, 7:] *= np.float32(1.2)
    merged = judged(told(answers), exported, features)
    device = merged.device
    assert device is not None
    first, second = device.outputs
    assert (first.name, first.fidelity_db, second.name) == ("stage1", 200.0, "stage2")
    assert second.fidelity_db == pytest.approx(20 * np.log10(5), abs=1e-4)  # float32 holds 1.2 to 1e-7
    fp32 = exported.fp32.astype(np.float64)
    for output, part in ((first, slice(0, 7)), (second, slice(7, 10))):
        expected = (fp32[:, part] ** 2).sum() / ((fp32[:, part] - answers[:, part]) ** 2).sum()
        assert output.sqnr_db == pytest.approx(10 * np.log10(expected), abs=1e-6)
    assert (device.fidelity_db, device.sqnr_db) == (second.fidelity_db, second.sqnr_db), "the worst speaks for all"
    assert device.agreement is None and device.artifact is None
    assert device.not_measured["artifact"] == "the network has no classifier; see device.outputs"
    feature = gate(merged, "min_feature_sqnr_db")
    assert (feature.measured, feature.passed) == (second.sqnr_db, False)
    assert feature.reason == "measured on the device (Jetson), 32 check vectors, worst in stage2"
    assert not [gate for gate in merged.gates if gate.name == "score_drop_pp"]
    for limit, met in ((second.sqnr_db, True), (float(np.nextafter(second.sqnr_db, 1e9)), False)):
        assert gate(merge(features, device, limited(min_feature_sqnr_db=limit)), "min_feature_sqnr_db").passed is met


def test_every_one_of_three_outputs_has_its_own_samples() -> None:
    outputs = [{"name": name, "size": size, "samples": size} for name, size in (("a", 2), ("b", 3), ("c", 5))]
    exported = backbone(outputs=outputs)
    answers = exported.simulated.copy()
    answers[:, 2:5] *= np.float32(1.25)
    found = {output.name: output.fidelity_db for output in recorded(told(answers), exported).outputs}
    assert found == {"a": 200.0, "b": pytest.approx(20 * np.log10(4), abs=1e-4), "c": 200.0}


def test_a_backbone_whose_answers_are_not_finite_misses_every_gate(features: Report) -> None:
    exported = backbone()
    answers = exported.simulated.copy()
    answers[0, 0] = np.nan
    merged = judged(told(answers), exported, features)
    feature = gate(merged, "min_feature_sqnr_db")
    assert (feature.measured, feature.passed) == (None, False)
    assert feature.reason == ("measured on the device (Jetson), 32 check vectors: the answers are not finite numbers")
    built = judged(told(None, latency=None, speedup=None), exported, features)
    assert gate(built, "min_feature_sqnr_db").passed is None


def test_the_names_that_the_pipeline_uses_are_there() -> None:
    assert sorted(on_device.__all__) == ["Kit", "device_record", "merge", "read_results"]
