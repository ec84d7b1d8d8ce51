"""Judge what was measured against what the target promises."""

from __future__ import annotations

from collections.abc import Mapping

from edgeconvnext.report.schema import REFERENCE_EVALUATOR, Accuracy, Gate, Interval
from edgeconvnext.targets import Target


def judge(
    target: Target,
    accuracy: Accuracy | None,
    fidelity_db: float | None,
    speedup: Interval | None,
    reasons: Mapping[str, str],
) -> list[Gate]:
    """Return one gate for each limit of the target, in the order of its file.

    The point estimate is judged; `min_speedup` is missed only when the whole 95 % interval lies below it, because a
    ratio of times moves from run to run. reasons: for "top1_drop_pp", "min_speedup" and "min_fidelity_db", why it could
    not be measured; such a gate has passed None.
    """
    limits = target.gates
    gates = []
    if limits.top1_drop_pp is not None:
        gates.append(_drop_gate(limits.top1_drop_pp, accuracy, _reason(reasons, "top1_drop_pp")))
    if limits.min_speedup is not None:
        gates.append(_speedup_gate(limits.min_speedup, speedup, _reason(reasons, "min_speedup")))
    if limits.min_fidelity_db is not None:
        gate = _fidelity_gate(limits.min_fidelity_db, fidelity_db, _reason(reasons, "min_fidelity_db"))
        gates.append(gate.model_copy(update={"reason": gate.reason or _where(accuracy)}))
    return gates


def passed(gates: list[Gate]) -> bool:
    """Return whether every gate that could be measured is met."""
    return all(gate.passed is not False for gate in gates)


def _drop_gate(limit: float, accuracy: Accuracy | None, reason: str) -> Gate:
    """Judge the artifact's drop. A simulation that misses the limit is a miss; one that meets it proves nothing yet."""
    name = "top1_drop_pp"
    if accuracy is None or accuracy.drop_pp is None:
        return Gate(name=name, limit=limit, measured=None, passed=None, reason=reason)
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
            reason=f"measured on the simulation, the artifact did not run here: {simulation}",
        )
    return Gate(name=name, limit=limit, measured=None, passed=None, reason=f"{reason}; {simulation}")


def _speedup_gate(limit: float, speedup: Interval | None, reason: str) -> Gate:
    if speedup is None:
        return Gate(name="min_speedup", limit=limit, measured=None, passed=None, reason=reason)
    below = f"{speedup.value:.2f}x is below the limit, but its 95 % interval is not" if speedup.value < limit else None
    missed = speedup.high < limit
    return Gate(
        name="min_speedup",
        limit=limit,
        measured=speedup.value,
        low=speedup.low,
        high=speedup.high,
        passed=not missed,
        reason=None if missed else below,
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
