"""What a report says in words: the verdict, its gates as sentences, and why a figure is not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from edgeconvnext.schema import format
from edgeconvnext.schema.report import REFERENCE_EVALUATOR, Accuracy, Gate, Interval, OutputRecord, Report

_Figure = TypeVar("_Figure")
Outcome = Literal["passed", "missed", "open"]

RESULTS = {
    "artifact": "artifact",
    "accuracy.fp32": "top-1 of FP32",
    "accuracy.simulated": "top-1 of the simulation",
    "accuracy.artifact": "top-1 of the artifact",
    "accuracy.drop_pp": "top-1 drop",
    "accuracy.agreement": "agreement",
    "accuracy.sqnr_db": "logit SQNR",
    "fidelity_db": "fidelity",
    "latency.fp32": "latency of FP32",
    "latency.artifact": "latency of the artifact",
    "speedup": "speed-up",
    "size_bytes.fp32": "size of the FP32 artifact",
    "size_bytes.artifact": "size of the artifact",
}
"""The results every report is expected to hold, by their dotted name in report.json."""

# Results of a classifier only.
_OF_ANSWERS = {
    "accuracy.fp32",
    "accuracy.simulated",
    "accuracy.artifact",
    "accuracy.drop_pp",
    "accuracy.agreement",
}

# What the device section shows in place of these, and by what to tell that it does.
_ON_DEVICE = {
    "accuracy.artifact": "artifact",
    "fidelity_db": "fidelity_db",
    "latency.fp32": "latency",
    "latency.artifact": "latency",
    "speedup": "speedup",
}

# Null whenever the result they belong to is, and not worth a line of their own.
_DETAILS = {"accuracy.expected_drop_pp", "accuracy.runtime", "latency.runtime", "latency.device", "speedup_interval"}

# Where a reason was given for the cause only, it also explains what could not follow from it.
_CAUSES = {
    "fidelity_db": ("accuracy.artifact", "artifact"),
    "speedup": ("latency.artifact", "latency.fp32"),
    "speedup_interval": ("speedup", "latency.artifact"),
    "size_bytes.artifact": ("artifact",),
    "accuracy.artifact": ("artifact",),
    "accuracy.classes": ("accuracy.drop_pp", "accuracy.fp32"),
    "accuracy.drop_pp": ("accuracy.fp32",),
    "accuracy.sqnr_db": ("accuracy.agreement",),
    "latency.artifact": ("artifact",),
}


@dataclass(frozen=True)
class Fact:
    """A figure in words. key: its dotted name in report.json. value: None where it was not measured."""

    key: str
    name: str
    value: str | None


@dataclass(frozen=True)
class Verdict:
    """The one line on top. outcome "open": nothing was missed, but not every promise could be measured."""

    outcome: Outcome
    title: str
    detail: str


@dataclass(frozen=True)
class GateText:
    """A gate in words. promise: "at most 1.00 points of top-1 lost"; measured: "+0.21 (-0.16 to +0.57)" or None.

    simulated: "simulation +0.21, within", where only the device can decide and a simulation says something; else None.
    """

    promise: str
    measured: str | None
    simulated: str | None
    outcome: Outcome
    reason: str | None


def verdict(report: Report) -> Verdict:
    """Sum up the gates and checks: missed where one is missed or fails, passed where all gates are met, else open."""
    texts = [gate_text(gate) for gate in report.gates]
    missed = [text for text in texts if text.outcome == "missed"]
    met = [text for text in texts if text.outcome == "passed"]
    failed = [check for check in report.checks if not check.passed]
    if report.verdict == "failed":
        details = [f"Promised: {text.promise}, measured {text.measured}." for text in missed]
        details += [f"{check.name}: {check.result.rstrip('.')}." for check in failed]
        title = "Gate missed" if missed else "Check failed" if failed else "Not passed"
        return Verdict("missed", title, " ".join(details) or "The run did not pass.")
    if not texts:
        return Verdict("open", "No gates", "This target promises nothing, so there is nothing to pass or miss.")
    if len(met) == len(texts):
        gates = "the only gate is met" if len(texts) == 1 else f"all {len(texts)} gates are met"
        return Verdict("passed", "Passed", f"{gates[0].upper()}{gates[1:]}.")
    if met:
        return Verdict("open", "Passed as far as measured", f"{len(met)} of {len(texts)} gates measured and met.")
    detail = f"None of the {len(texts)} gates could be measured on this machine."
    simulated = [text for text in texts if text.simulated is not None]
    return Verdict("open", "Not measured", " ".join([detail, *(f"{_simulated(text)}." for text in simulated)]))


def answer_facts(report: Report) -> list[Fact]:
    """Return how a classifier's answers compare with FP32's, in the same words for the terminal, the page and the card."""
    accuracy, on = report.accuracy, aside(report.accuracy)
    values = {
        "accuracy.drop_pp": _or_none(accuracy.drop_pp, lambda drop: f"{_with_interval(drop)} points{on}"),
        "accuracy.agreement": _or_none(
            accuracy.agreement, lambda value: f"{format.percent(value)} of {_compared(accuracy)}{on}"
        ),
        "accuracy.sqnr_db": _or_none(accuracy.sqnr_db, lambda value: f"{format.decibel(value)}{on}"),
    }
    return [Fact(key, result_title(key, accuracy), value) for key, value in values.items()]


def result_title(key: str, accuracy: Accuracy) -> str:
    """Name a result of RESULTS by the score that the run's task has."""
    title = RESULTS[key]
    return title if accuracy.score is None else title.replace("top-1", accuracy.score)


def _compared(accuracy: Accuracy) -> str:
    return {"binary": "images, by sign", "multi-label": "decisions, by sign"}.get(accuracy.task or "", "images")


def worst_output(report: Report) -> OutputRecord | None:
    """Return the output of a network without classifier that is furthest from FP32's; None for a classifier."""
    return min(report.outputs, key=lambda output: output.sqnr_db, default=None)


def capitalized(words: str) -> str:
    """Begin with a capital letter and leave the rest: "mIoU" is "MIoU", "top-1" is "Top-1"."""
    return words[:1].upper() + words[1:]


def gate_text(gate: Gate) -> GateText:
    """Put a gate in words, with the unit that its name implies."""
    outcome: Outcome = "open" if gate.passed is None else "passed" if gate.passed else "missed"
    if gate.name == "score_drop_pp":
        promise, show = f"at most {gate.limit:.2f} points of {gate.score or 'top-1'} lost", format.points
    elif gate.name == "min_feature_sqnr_db":
        promise, show = f"at least {format.decibel(gate.limit)} SQNR of every output against FP32", format.decibel
    elif gate.name == "min_speedup":
        promise, show = f"at least {format.ratio(gate.limit)} the speed of FP32", format.ratio
    elif gate.name == "min_fidelity_db":
        promise, show = f"at least {format.decibel(gate.limit)} fidelity to the simulation", format.decibel
    else:
        promise, show = f"{gate.name} {format.significant(gate.limit)}", format.significant
    measured = None
    if gate.measured is not None:
        measured = show(gate.measured)
        if outcome == "missed" and measured == show(gate.limit):  # 6 of 599 images are 1.002 points
            measured = f"just {'above' if gate.measured > gate.limit else 'below'} {measured}"
        if gate.low is not None and gate.high is not None:
            measured += f" ({show(gate.low)} to {show(gate.high)})"
    simulated = None
    if gate.passed is None and gate.simulated is not None:
        simulated = f"simulation {show(gate.simulated)}, {'within' if gate.simulated_passed else 'outside'}"
    return GateText(promise, measured, simulated, outcome, gate.reason)


def _simulated(text: GateText) -> str:
    return f"Promised: {text.promise}; {text.simulated}"


def place(accuracy: Accuracy) -> str:
    """Say where the artifact's figures were computed: "its runtime", or "the reference evaluator"."""
    return f"the {REFERENCE_EVALUATOR}" if accuracy.evaluated else "its runtime"


def aside(accuracy: Accuracy) -> str:
    """Return what stands behind a figure that is not of the artifact in its runtime: " (simulation)"; else nothing."""
    if accuracy.measured_on == "simulation":
        return " (simulation)"
    return f" ({REFERENCE_EVALUATOR})" if accuracy.evaluated else ""


def reason(report: Report, key: str) -> str | None:
    """Say why the value at a dotted name is null: its own, its parents' or its cause's reason; None where none is."""
    names = key.split(".")
    for end in range(len(names), 0, -1):
        name = ".".join(names[:end])
        for candidate in (name, *_CAUSES.get(name, ())):
            if candidate in report.not_measured:
                return report.not_measured[candidate]
    return None


def missing_results(report: Report) -> dict[str, list[str]]:
    """Return what was not measured, grouped by the reason, in the order of the report."""
    groups: dict[str, list[str]] = {}
    for key in RESULTS:
        if report.outputs and key in _OF_ANSWERS:
            continue
        if _lookup(report, key) is None and not measured_on_device(report, key):
            groups.setdefault(reason(report, key) or "no reason was recorded", []).append(
                result_title(key, report.accuracy)
            )
    for key, why in report.not_measured.items():
        if key not in RESULTS and key not in _DETAILS and not measured_on_device(report, key):
            names = groups.setdefault(why, [])
            # "accuracy.artifact.top5" adds nothing beside "top-1 of the artifact", missing for the same reason.
            if not any(
                key.startswith(f"{known}.") and result_title(known, report.accuracy) in names for known in RESULTS
            ):
                names.append(key)
    return {why: names for why, names in groups.items() if names}


def measured_on_device(report: Report, key: str) -> bool:
    """Say whether the device section holds a figure for what is null at a dotted name."""
    field = _ON_DEVICE.get(key)
    return report.device is not None and field is not None and getattr(report.device, field) is not None


def _or_none(value: _Figure | None, words: Callable[[_Figure], str]) -> str | None:
    return None if value is None else words(value)


def _with_interval(interval: Interval) -> str:
    return f"{format.points(interval.value)} ({format.points(interval.low)} to {format.points(interval.high)})"


def _lookup(report: Report, key: str) -> object:
    value: object = report
    for name in key.split("."):
        value = getattr(value, name, None)
    return value
