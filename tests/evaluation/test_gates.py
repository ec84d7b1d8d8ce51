"""Gates: point estimates are judged, what was not measured is null with the reason."""

from __future__ import annotations

import pytest

from edgeconvnext.backends import load_target
from edgeconvnext.evaluation.gates import judge, verdict
from edgeconvnext.schema.report import Accuracy, Gate, Interval, OutputRecord
from edgeconvnext.targets import GateSection, Target

REASONS = {"score_drop_pp": "no labels", "min_speedup": "--no-latency", "min_fidelity_db": "no board"}


def with_gates(**limits: float) -> Target:
    return load_target("onnx").model_copy(update={"gates": GateSection(**limits)})


def drop(value: float, measured_on: str = "artifact") -> Accuracy:
    return Accuracy.model_validate(
        {"drop_pp": {"value": value, "low": value - 0.5, "high": value + 0.5}, "measured_on": measured_on}
    )


def speedup(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


def stages(*decibels: float) -> list[OutputRecord]:
    numbered = enumerate(decibels, start=1)
    return [
        OutputRecord(name=f"stage{n}", shape=(8, 4, 4), sqnr_db=db, simulated_sqnr_db=db, fidelity_db=None)
        for n, db in numbered
    ]


def only(gates: list[Gate]) -> Gate:
    (gate,) = gates
    return gate


@pytest.mark.parametrize(("value", "met"), [(-0.3, True), (1.0, True), (1.01, False)])
def test_the_drop_is_judged_by_its_point_estimate(value: float, met: bool) -> None:
    gate = only(judge(with_gates(score_drop_pp=1.0), drop(value), None, None, REASONS))
    assert (gate.passed, gate.measured, gate.low, gate.high) == (met, value, value - 0.5, value + 0.5)


def test_a_simulation_can_miss_the_drop_gate_but_not_meet_it() -> None:
    target = with_gates(score_drop_pp=1.0)
    met = only(judge(target, drop(0.2, "simulation"), None, None, {"score_drop_pp": "needs a Jetson"}))
    assert (met.passed, met.measured) == (None, None)
    assert met.reason == "needs a Jetson; the simulated graph loses 0.20 points (-0.30 to 0.70)"
    missed = only(judge(target, drop(9.0, "simulation"), None, None, REASONS))
    assert (missed.passed, missed.measured) == (False, 9.0)
    assert missed.reason is not None and "measured on the simulation" in missed.reason


@pytest.mark.parametrize(
    ("measured", "met"),
    [(speedup(1.2, 1.1, 1.3), True), (speedup(0.98, 0.95, 1.02), True), (speedup(0.9, 0.85, 0.95), False)],
)
def test_speedup_fails_only_with_the_whole_interval_below(measured: Interval, met: bool) -> None:
    gate = only(judge(with_gates(min_speedup=1.0), None, None, measured, REASONS))
    assert gate.passed is met
    assert (gate.reason is not None) == (met and measured.value < 1)


@pytest.mark.parametrize(("value", "met"), [(30.0, True), (29.9, False)])
def test_fidelity_is_judged_by_its_value(value: float, met: bool) -> None:
    assert only(judge(with_gates(min_fidelity_db=30.0), None, value, None, REASONS)).passed is met


def test_gates_say_where_a_figure_is_the_reference_evaluators() -> None:
    accuracy = drop(0.2).model_copy(update={"runtime": "reference evaluator on torch 2.13.0"})
    gates = judge(with_gates(score_drop_pp=1.0, min_fidelity_db=30.0), accuracy, 60.0, None, REASONS)
    assert [gate.passed for gate in gates] == [True, True]
    assert all(gate.reason is not None and "reference evaluator" in gate.reason for gate in gates)
    own = judge(with_gates(min_fidelity_db=30.0), drop(0.2), 60.0, None, REASONS)
    assert only(own).reason is None


def test_what_was_not_measured_is_null_with_its_reason_and_fails_nothing() -> None:
    gates = judge(load_target("jetson"), Accuracy(), None, None, REASONS)
    assert [(gate.name, gate.passed, gate.measured, gate.reason) for gate in gates] == [
        (name, None, None, reason) for name, reason in REASONS.items()
    ]
    assert verdict(gates, []) == "not_measured"


def test_one_missed_gate_fails_the_run() -> None:
    gates = judge(load_target("onnx"), drop(0.1), 12.0, None, REASONS)
    assert [gate.passed for gate in gates] == [True, None, False]
    assert verdict(gates, []) == "failed"


def test_a_target_without_gates_is_never_missed() -> None:
    assert judge(with_gates(), drop(50.0), 0.0, speedup(0.1, 0.1, 0.1), REASONS) == []


@pytest.mark.parametrize(("worst", "met"), [(20.0, True), (19.9, False)])
def test_a_backbone_is_judged_by_its_worst_output_in_place_of_top1(worst: float, met: bool) -> None:
    target = with_gates(score_drop_pp=1.0, min_feature_sqnr_db=20.0)
    gate = only(judge(target, Accuracy(measured_on="artifact"), None, None, REASONS, stages(30.0, worst, 40.0)))
    assert (gate.name, gate.measured, gate.passed) == ("min_feature_sqnr_db", worst, met)
    assert gate.reason == "worst in stage2"


def test_a_simulated_backbone_can_miss_but_not_meet_its_gate() -> None:
    target, simulated = with_gates(min_feature_sqnr_db=20.0), Accuracy(measured_on="simulation")
    open_ = only(judge(target, simulated, None, None, {"min_feature_sqnr_db": "no board"}, stages(25.0)))
    assert open_.passed is None and "no board; the simulated graph has 25.0 dB in stage1" in str(open_.reason)
    missed = only(judge(target, simulated, None, None, REASONS, stages(15.0)))
    assert missed.passed is False and "did not run here" in str(missed.reason)


def test_a_classifier_is_not_judged_by_features() -> None:
    assert judge(with_gates(min_feature_sqnr_db=20.0), drop(0.1), None, None, REASONS) == []
