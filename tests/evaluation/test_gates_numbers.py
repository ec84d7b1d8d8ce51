"""Every gate at its limit, one step below and one above, and the worst of several figures."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgeconvnext.backends import load_target
from edgeconvnext.evaluation import gates
from edgeconvnext.schema.report import Accuracy, ExportCheck, Gate, Interval, OutputRecord, SizeRecord
from edgeconvnext.targets import GateSection, Target

EVALUATOR = "computed from the artifact by the reference evaluator, not by the runtime of the device"
ALL_LIMITS = {"score_drop_pp": 1.0, "min_feature_sqnr_db": 20.0, "min_speedup": 1.5, "min_fidelity_db": 30.0}


def with_gates(**limits: float) -> Target:
    return load_target("onnx").model_copy(update={"gates": GateSection(**limits)})


def below(value: float) -> float:
    return math.nextafter(value, -math.inf)


def above(value: float) -> float:
    return math.nextafter(value, math.inf)


def drop(value: float, measured_on: str = "artifact", runtime: str | None = "engine") -> Accuracy:
    interval = Interval(value=value, low=value - 0.5, high=value + 0.25)
    return Accuracy.model_validate({"drop_pp": interval, "measured_on": measured_on, "runtime": runtime})


def output(name: str, decibels: float) -> OutputRecord:
    return OutputRecord(name=name, shape=(8, 4, 4), sqnr_db=decibels, simulated_sqnr_db=99.0, fidelity_db=None)


def at_size(size: tuple[int, int], fidelity_db: float | None, *outputs: OutputRecord) -> SizeRecord:
    return SizeRecord(
        size=size, images=8, sqnr_db=50.0, simulated_sqnr_db=50.0, fidelity_db=fidelity_db, outputs=list(outputs)
    )


def judged(limits: dict[str, float], accuracy: Accuracy | None = None, **more: Any) -> Gate:
    arguments = {"fidelity_db": None, "speedup": None, "reasons": {}} | more
    (gate,) = gates.judge(with_gates(**limits), accuracy, **arguments)
    return gate


def figures(gate: Gate) -> tuple[str, float, float | None, float | None, float | None, bool | None]:
    return gate.name, gate.limit, gate.measured, gate.low, gate.high, gate.passed


@pytest.mark.parametrize(("value", "met"), [(below(1.0), True), (1.0, True), (above(1.0), False)])
def test_a_drop_may_reach_its_limit(value: float, met: bool) -> None:
    gate = judged({"score_drop_pp": 1.0}, drop(value))
    assert figures(gate) == ("score_drop_pp", 1.0, value, value - 0.5, value + 0.25, met)
    assert gate.reason is None


@pytest.mark.parametrize(("value", "missed"), [(below(1.0), False), (1.0, False), (above(1.0), True)])
def test_a_simulated_drop_is_a_miss_above_its_limit_and_open_below(value: float, missed: bool) -> None:
    gate = judged({"score_drop_pp": 1.0}, drop(value, "simulation"), reasons={"score_drop_pp": "no board"})
    measured = (value, value - 0.5, value + 0.25, False) if missed else (None, None, None, None)
    assert figures(gate) == ("score_drop_pp", 1.0, *measured)
    told = "the simulated graph loses 1.00 points (0.50 to 1.25)"
    assert gate.reason == (
        f"measured on the simulation, the artifact did not run here: {told}" if missed else f"no board; {told}"
    )


@pytest.mark.parametrize("accuracy", [None, Accuracy(), Accuracy(measured_on="artifact")])
def test_a_drop_that_was_not_measured_is_open(accuracy: Accuracy | None) -> None:
    gate = judged({"score_drop_pp": 1.0}, accuracy)
    assert figures(gate) == ("score_drop_pp", 1.0, None, None, None, None)
    assert gate.reason == "not measured"


@pytest.mark.parametrize(("high", "met"), [(below(1.5), False), (1.5, True), (above(1.5), True)])
def test_a_speedup_is_missed_only_below_the_upper_end(high: float, met: bool) -> None:
    gate = judged({"min_speedup": 1.5}, speedup=Interval(value=1.25, low=1.0, high=high))
    assert figures(gate) == ("min_speedup", 1.5, 1.25, 1.0, high, met)
    assert gate.reason == ("1.25x is below the limit, but its 95 % interval is not" if met else None)


@pytest.mark.parametrize(("value", "told"), [(below(1.5), True), (1.5, False), (above(1.5), False)])
def test_only_a_speedup_below_its_limit_is_explained(value: float, told: bool) -> None:
    gate = judged({"min_speedup": 1.5}, speedup=Interval(value=value, low=1.0, high=2.0))
    assert gate.passed is True and (gate.reason is not None) is told


def test_a_speedup_that_was_not_measured_is_open() -> None:
    gate = judged({"min_speedup": 1.5}, reasons={"min_speedup": "--no-latency"})
    assert figures(gate) == ("min_speedup", 1.5, None, None, None, None)
    assert gate.reason == "--no-latency"


@pytest.mark.parametrize(("value", "met"), [(below(30.0), False), (30.0, True), (above(30.0), True)])
def test_fidelity_may_reach_its_limit(value: float, met: bool) -> None:
    gate = judged({"min_fidelity_db": 30.0}, fidelity_db=value)
    assert figures(gate) == ("min_fidelity_db", 30.0, value, None, None, met)
    assert gate.reason is None


def test_fidelity_is_the_lowest_of_all_sizes() -> None:
    sizes = [at_size((64, 64), 35.0), at_size((96, 128), 20.0), at_size((128, 128), None), at_size((32, 32), 25.0)]
    gate = judged({"min_fidelity_db": 30.0}, fidelity_db=40.0, sizes=sizes)
    assert (gate.measured, gate.passed, gate.reason) == (20.0, False, "worst at 96x128")
    first = judged({"min_fidelity_db": 30.0}, fidelity_db=20.0, sizes=sizes)
    assert (first.measured, first.reason) == (20.0, None)
    open_ = judged({"min_fidelity_db": 30.0}, fidelity_db=None, sizes=sizes, reasons={"min_fidelity_db": "no board"})
    assert (open_.measured, open_.passed, open_.reason) == (None, None, "no board")


def test_fidelity_says_where_it_is_worst_and_who_computed_it() -> None:
    accuracy = drop(0.0, runtime="reference evaluator on torch")
    sizes = [at_size((64, 64), 35.0)]
    gate = judged({"min_fidelity_db": 30.0}, accuracy, fidelity_db=40.0, sizes=sizes)
    assert (gate.measured, gate.passed, gate.reason) == (35.0, True, f"worst at 64, {EVALUATOR}")
    assert judged({"min_fidelity_db": 30.0}, accuracy, fidelity_db=40.0).reason == EVALUATOR
    assert judged({"min_fidelity_db": 30.0}, accuracy).reason == "not measured"
    assert judged({"score_drop_pp": 1.0}, accuracy).reason == EVALUATOR


@pytest.mark.parametrize(("value", "met"), [(below(20.0), False), (20.0, True), (above(20.0), True)])
@pytest.mark.parametrize("measured_on", ["artifact", "simulation"])
def test_the_worst_output_may_reach_its_limit(value: float, met: bool, measured_on: str) -> None:
    accuracy = Accuracy.model_validate({"measured_on": measured_on})
    outputs = [output("stage1", 30.0), output("stage2", value), output("stage3", 25.0)]
    reasons = {"min_feature_sqnr_db": "no board"}
    gate = judged({"min_feature_sqnr_db": 20.0}, accuracy, outputs=outputs, reasons=reasons)
    told = "the simulated graph has 20.0 dB in stage2, its worst output"
    if measured_on == "artifact":
        expected: tuple[float | None, bool | None, str] = (value, met, "worst in stage2")
    elif met:
        expected = (None, None, f"no board; {told}")
    else:
        expected = (value, False, f"measured on the simulation, the artifact did not run here: {told}")
    assert gate.name == "min_feature_sqnr_db" and gate.limit == 20.0
    assert (gate.measured, gate.passed, gate.reason) == expected


def test_outputs_of_other_sizes_count_under_their_own_names() -> None:
    sizes = [at_size((64, 96), 40.0, output("stage1", 25.0), output("stage2", 12.0)), at_size((32, 32), 40.0)]
    accuracy = Accuracy(measured_on="artifact", runtime="reference evaluator")
    gate = judged({"min_feature_sqnr_db": 20.0}, accuracy, outputs=[output("stage1", 30.0)], sizes=sizes)
    assert (gate.measured, gate.passed) == (12.0, False)
    assert gate.reason == f"worst in stage2 at 64x96, {EVALUATOR}"
    unknown = judged({"min_feature_sqnr_db": 20.0}, None, outputs=[output("stage1", 30.0)])
    assert unknown.passed is None and str(unknown.reason).startswith("not measured; the simulated graph has 30.0 dB")


def test_a_classifier_has_its_drop_and_a_backbone_its_outputs_in_the_order_of_the_file() -> None:
    target, fast = with_gates(**ALL_LIMITS), Interval(value=2.0, low=1.9, high=2.1)
    classifier = gates.judge(target, drop(0.5), 40.0, fast, {})
    assert [gate.name for gate in classifier] == ["score_drop_pp", "min_speedup", "min_fidelity_db"]
    backbone = gates.judge(target, drop(0.5), 40.0, fast, {}, [output("stage1", 30.0)])
    assert [gate.name for gate in backbone] == ["min_feature_sqnr_db", "min_speedup", "min_fidelity_db"]
    assert [gate.limit for gate in backbone] == [20.0, 1.5, 30.0]
    # A size without the outputs of its own does not make a classifier a backbone.
    assert (
        gates.judge(with_gates(min_feature_sqnr_db=20.0), drop(0.5), 40.0, fast, {}, [], [at_size((64, 64), 9.0)]) == []
    )


@pytest.mark.parametrize("name", ALL_LIMITS)
def test_a_limit_of_zero_is_a_limit(name: str) -> None:
    if name == "min_speedup":
        return  # must be above 0
    gate = judged(
        {name: 0.0},
        drop(0.0),
        fidelity_db=0.0,
        outputs=[output("stage1", 0.0)] if name == "min_feature_sqnr_db" else [],
    )
    assert (gate.name, gate.limit, gate.measured, gate.passed) == (name, 0.0, 0.0, True)


def test_reasons_of_a_report_reach_the_gates_they_concern() -> None:
    reasons = {"accuracy.artifact": "no board", "fidelity_db": "no engine", "speedup": "--no-latency", "sizes": "none"}
    assert gates.gate_reasons(reasons) == {
        "score_drop_pp": "no board",
        "min_feature_sqnr_db": "no engine",
        "min_speedup": "--no-latency",
        "min_fidelity_db": "no engine",
    }
    assert gates.gate_reasons({"speedup": "--no-latency"}) == {"min_speedup": "--no-latency"}
    assert gates.gate_reasons({}) == {}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "not_measured"),
        ([True], "passed"),
        ([None], "not_measured"),
        ([None, None], "not_measured"),
        ([False], "failed"),
        ([True, None, True], "passed"),
        ([True, False], "failed"),
        ([False, None], "failed"),
    ],
)
def test_a_run_passes_only_where_a_gate_was_measured_and_none_is_missed(
    verdicts: list[bool | None], expected: str
) -> None:
    made = [Gate(name="min_speedup", limit=1.0, measured=1.0, passed=verdict) for verdict in verdicts]
    ok, broken = (ExportCheck(name="parser", passed=passed, result="") for passed in (True, False))
    assert gates.verdict(made, []) == expected
    assert gates.verdict(made, [ok]) == expected
    assert gates.verdict(made, [ok, broken]) == "failed"


@pytest.mark.parametrize("measured_on", ["artifact", "simulation"])
@pytest.mark.parametrize(("low", "missed"), [(below(1.0), False), (1.0, False), (above(1.0), True)])
def test_without_labels_a_drop_is_missed_where_its_whole_expected_interval_is_above(
    low: float, missed: bool, measured_on: str
) -> None:
    expected = Interval(value=3.0, low=low, high=5.0)
    accuracy = Accuracy.model_validate({"expected_drop_pp": expected, "measured_on": measured_on})
    gate = judged({"score_drop_pp": 1.0}, accuracy, reasons={"score_drop_pp": "no labels"})
    assert figures(gate)[2:] == ((3.0, low, 5.0, False) if missed else (None, None, None, None))
    simulated = measured_on == "simulation"
    assert (gate.simulated, gate.simulated_passed) == ((3.0, False) if simulated else (None, None))
    told = "without labels, 3.00 points (1.00 to 5.00) are lost if FP32's probabilities hold"
    place = "measured on the simulation, the artifact did not run here: " if simulated else ""
    assert gate.reason == (place + told if missed else f"no labels; {told}")


def test_the_simulations_figure_is_beside_a_gate_that_only_the_artifact_can_meet() -> None:
    open_ = judged({"score_drop_pp": 1.0}, drop(0.5, "simulation"))
    missed = judged({"score_drop_pp": 1.0}, drop(1.5, "simulation"))
    own = judged({"score_drop_pp": 1.0}, drop(0.5))
    assert [(gate.passed, gate.simulated, gate.simulated_passed) for gate in (open_, missed, own)] == [
        (None, 0.5, True),
        (False, 1.5, False),
        (True, None, None),
    ]
    features = judged({"min_feature_sqnr_db": 20.0}, Accuracy(measured_on="simulation"), outputs=[output("a", 25.0)])
    assert (features.passed, features.simulated, features.simulated_passed) == (None, 25.0, True)
