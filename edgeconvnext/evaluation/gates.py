"""Judge what was measured against what the target promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeconvnext.data.size import size_text
from edgeconvnext.schema.report import (
    REFERENCE_EVALUATOR,
    Accuracy,
    ExportCheck,
    Gate,
    Interval,
    OutputRecord,
    RunVerdict,
    SizeRecord,
)
from edgeconvnext.targets import Target


def judge(
    target: Target,
    accuracy: Accuracy | None,
    fidelity_db: float | None,
    speedup: Interval | None,
    reasons: Mapping[str, str],
    outputs: Sequence[OutputRecord] = (),
    sizes: Sequence[SizeRecord] = (),
    noise: str | None = None,
) -> list[Gate]:
    """Return one gate for each limit of the target, in the order of its file.

    outputs: of a network without classifier, which is judged by their SQNR in place of a drop. sizes: further input
    sizes, whose outputs and fidelity count as well (a drop takes more images than there are). The point estimate is judged;
    `min_speedup` is missed only when the whole 95 % interval lies below it, because a ratio of times moves from run to run.
    reasons: by gate, why it could not be measured; such a gate has passed None. noise: why times are doubtful, so that they decide
    no gate.
    """
    limits = target.gates
    gates = []
    if outputs and limits.min_feature_sqnr_db is not None:
        everywhere = [*outputs, *_named_by_size(sizes)]
        why = _reason(reasons, "min_feature_sqnr_db")
        gates.append(_feature_gate(limits.min_feature_sqnr_db, everywhere, accuracy, why))
    if not outputs and limits.score_drop_pp is not None:
        gate = _drop_gate(limits.score_drop_pp, accuracy, _reason(reasons, "score_drop_pp"))
        gates.append(gate.model_copy(update={"score": None if accuracy is None else accuracy.score}))
    if limits.min_speedup is not None:
        gates.append(_speedup_gate(limits.min_speedup, speedup, _reason(reasons, "min_speedup"), noise))
    if limits.min_fidelity_db is not None:
        lowest, place = fidelity_db, None
        for record in sizes:
            if lowest is not None and record.fidelity_db is not None and record.fidelity_db < lowest:
                lowest, place = record.fidelity_db, f"worst at {size_text(record.size)}"
        gate = _fidelity_gate(limits.min_fidelity_db, lowest, _reason(reasons, "min_fidelity_db"))
        told = ", ".join(filter(None, (place, _where(accuracy))))
        gates.append(gate.model_copy(update={"reason": gate.reason or told or None}))
    return gates


def _named_by_size(sizes: Sequence[SizeRecord]) -> list[OutputRecord]:
    """Return the outputs at other sizes under names such as "stage3 at 384x512"."""
    return [
        output.model_copy(update={"name": f"{output.name} at {size_text(record.size)}"})
        for record in sizes
        for output in record.outputs
    ]


def gate_reasons(not_measured: Mapping[str, str]) -> dict[str, str]:
    """Translate a report's reasons, by its keys, to reasons by gate."""
    causes = {
        "score_drop_pp": "accuracy.artifact",
        "min_feature_sqnr_db": "fidelity_db",
        "min_speedup": "speedup",
        "min_fidelity_db": "fidelity_db",
    }
    return {gate: not_measured[key] for gate, key in causes.items() if key in not_measured}


def verdict(gates: Sequence[Gate], checks: Sequence[ExportCheck]) -> RunVerdict:
    """Sum up a run: "failed" where a gate is missed or a check failed, "passed" where a gate was measured, else "not_measured"."""
    if any(gate.passed is False for gate in gates) or any(not check.passed for check in checks):
        return "failed"
    return "passed" if any(gate.passed for gate in gates) else "not_measured"


def _drop_gate(limit: float, accuracy: Accuracy | None, reason: str) -> Gate:
    """Judge the artifact's drop. A simulation that misses the limit is a miss; one that meets it proves nothing yet."""
    name = "score_drop_pp"
    if accuracy is None or accuracy.drop_pp is None:
        return _expected_drop_gate(Gate(name=name, limit=limit, measured=None, passed=None, reason=reason), accuracy)
    drop = accuracy.drop_pp
    if accuracy.measured_on == "artifact":
        return Gate(
            name=name,
            limit=limit,
            measured=drop.value,
            low=drop.low,
            high=drop.high,
            passed=drop.value <= limit,
            reason=_where(accuracy),
        )
    simulation = f"the simulated graph loses {drop.value:.2f} points ({drop.low:.2f} to {drop.high:.2f})"
    if drop.value > limit:
        return Gate(
            name=name,
            limit=limit,
            measured=drop.value,
            low=drop.low,
            high=drop.high,
            passed=False,
            simulated=drop.value,
            simulated_passed=False,
            reason=f"measured on the simulation, the artifact did not run here: {simulation}",
        )
    return Gate(
        name=name,
        limit=limit,
        measured=None,
        passed=None,
        simulated=drop.value,
        simulated_passed=True,
        reason=f"{reason}; {simulation}",
    )


def _expected_drop_gate(gate: Gate, accuracy: Accuracy | None) -> Gate:
    """Judge a drop that no label measures: missed where FP32's own probabilities put its whole interval above the limit."""
    if accuracy is None or accuracy.expected_drop_pp is None:
        return gate
    drop = accuracy.expected_drop_pp
    estimate = f"without labels, {drop.value:.2f} points ({drop.low:.2f} to {drop.high:.2f}) are lost if FP32's probabilities hold"
    on_simulation = accuracy.measured_on != "artifact"
    simulated = {"simulated": drop.value, "simulated_passed": drop.value <= gate.limit} if on_simulation else {}
    if drop.low > gate.limit:
        place = "measured on the simulation, the artifact did not run here: " if on_simulation else ""
        missed = {"measured": drop.value, "low": drop.low, "high": drop.high, "passed": False}
        return gate.model_copy(update=missed | simulated | {"reason": place + estimate})
    return gate.model_copy(update=simulated | {"reason": f"{gate.reason}; {estimate}"})


def _feature_gate(limit: float, outputs: Sequence[OutputRecord], accuracy: Accuracy | None, reason: str) -> Gate:
    """Judge the worst output. As with the drop, a simulation that meets the limit proves nothing yet."""
    name, lowest = "min_feature_sqnr_db", min(outputs, key=lambda output: output.sqnr_db)
    measured, missed = lowest.sqnr_db, lowest.sqnr_db < limit
    if accuracy is not None and accuracy.measured_on == "artifact":
        told = ", ".join(filter(None, (f"worst in {lowest.name}", _where(accuracy))))
        return Gate(name=name, limit=limit, measured=measured, passed=not missed, reason=told)
    simulation = f"the simulated graph has {measured:.1f} dB in {lowest.name}, its worst output"
    if missed:
        told = f"measured on the simulation, the artifact did not run here: {simulation}"
        return Gate(
            name=name,
            limit=limit,
            measured=measured,
            passed=False,
            simulated=measured,
            simulated_passed=False,
            reason=told,
        )
    return Gate(
        name=name,
        limit=limit,
        measured=None,
        passed=None,
        simulated=measured,
        simulated_passed=True,
        reason=f"{reason}; {simulation}",
    )


def _speedup_gate(limit: float, speedup: Interval | None, reason: str, noise: str | None) -> Gate:
    if speedup is None:
        return Gate(name="min_speedup", limit=limit, measured=None, passed=None, reason=reason)
    below = f"{speedup.value:.2f}x is below the limit, but its 95 % interval is not" if speedup.value < limit else None
    missed, decided = speedup.high < limit, noise is None
    return Gate(
        name="min_speedup",
        limit=limit,
        measured=speedup.value,
        low=speedup.low,
        high=speedup.high,
        passed=not missed if decided else None,
        reason=f"not decided, the timings are noisy: {noise}" if not decided else None if missed else below,
    )


def _fidelity_gate(limit: float, fidelity_db: float | None, reason: str) -> Gate:
    if fidelity_db is None:
        return Gate(name="min_fidelity_db", limit=limit, measured=None, passed=None, reason=reason)
    return Gate(name="min_fidelity_db", limit=limit, measured=fidelity_db, passed=fidelity_db >= limit)


def _where(accuracy: Accuracy | None) -> str | None:
    """Say so where a figure is the artifact's, but not from its own runtime."""
    if accuracy is None or not accuracy.evaluated:
        return None
    return f"computed from the artifact by the {REFERENCE_EVALUATOR}, not by the runtime of the device"


def _reason(reasons: Mapping[str, str], gate: str) -> str:
    return reasons.get(gate, "not measured")
