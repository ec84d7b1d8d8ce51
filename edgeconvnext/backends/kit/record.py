"""What came back from a device: is it about this run, what does it say, and which gates does it settle?"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from typing import Any

import numpy as np

from edgeconvnext.backends.kit.figures import latency_of, power_of, require_agreement, require_export, speedup_of
from edgeconvnext.backends.kit.known import Kit
from edgeconvnext.backends.kit.results import OLD_FORMAT, OLD_FORMAT_REASON, DeviceResults, read_results
from edgeconvnext.errors import DeviceResultsError
from edgeconvnext.escape import for_terminal
from edgeconvnext.evaluation.accuracy import compare, fidelity_db
from edgeconvnext.evaluation.gates import gate_reasons, judge, verdict
from edgeconvnext.evaluation.timing_noise import MOST_CV
from edgeconvnext.schema.report import (
    DeviceLatency,
    DeviceLayer,
    DeviceOutput,
    DeviceRecord,
    Gate,
    LayerFidelity,
    Report,
    machine_name,
)
from edgeconvnext.sqnr import logit_sqnr_db
from edgeconvnext.targets import Target

__all__ = ["Kit", "device_record", "merge", "read_results"]

SHOWN_MESSAGES = 20


def device_record(results: DeviceResults, kit: Kit) -> DeviceRecord:
    """Bring what a device measured into the report's terms: every figure is computed here, from answers, times and watts.

    Raises DeviceResultsError, naming the field, where the device's own figures are others.
    """
    require_export(results, kit)
    record = DeviceRecord(
        runtime=f"{results.runtime.name} {results.runtime.version}",
        machine=results.machine,
        started=results.started,
        baseline_form=results.forms.baseline,
        artifact_form=results.forms.artifact,
        images=len(kit.fp32),
        clocks=_clocks(results),
        precisions=dict(Counter(layer.precision for layer in results.layers.artifact).most_common()),
        layers=[DeviceLayer(**layer.model_dump()) for layer in results.layers.artifact],
        layer_fidelity=[LayerFidelity(**layer.model_dump()) for layer in results.layer_fidelity],
        messages=results.messages[:SHOWN_MESSAGES],
    )
    missing: dict[str, str] = {}
    if results.answers is None:
        missing["artifact"] = "the engine was built there, but not run"
        record.images = 0
    else:
        _add_accuracy(record, _answers(results.answers, kit), kit, missing)
    if results.latency is not None:
        told = results.latency
        record.latency = DeviceLatency(
            baseline=latency_of(told.baseline, told.batch, "latency.baseline"),
            artifact=latency_of(told.artifact, told.batch, "latency.artifact"),
            batch=told.batch,
            threads=told.threads,
            settings=told.settings,
        )
        record.speedup = speedup_of(told.baseline.blocks_ms, told.artifact.blocks_ms)
    elif results.format == OLD_FORMAT:
        missing["latency"] = OLD_FORMAT_REASON
    else:
        missing["latency"] = "nothing was timed there"
    if results.power is not None:
        record.power = power_of(results.power)
    elif results.format == OLD_FORMAT:
        missing["power"] = OLD_FORMAT_REASON
    else:
        missing["power"] = results.power_absent or "nothing was run there"
    if not results.layer_fidelity:
        missing["layer_fidelity"] = results.layer_fidelity_absent or "the kit's script compared the answers only"
    record.not_measured = missing
    require_agreement(results, record, kit)
    return record


def merge(report: Report, record: DeviceRecord, target: Target) -> Report:
    """Return the report with a device section, and with the gates judged by the device where it measured them."""
    reasons = report.not_measured | _reasons(report, record)
    judged = judge(
        target,
        report.accuracy,
        report.fidelity_db,
        report.speedup_interval,
        gate_reasons(reasons),
        report.outputs,
        report.sizes,
        report.latency.settings.get("noisy"),
    )
    gates = [_on_device(gate, record) for gate in judged]
    summed_up = verdict(gates, report.checks)
    return report.model_copy(update={"device": record, "gates": gates, "verdict": summed_up, "not_measured": reasons})


def _scatter(record: DeviceRecord) -> str | None:
    """Say so where the device's runs scatter too much to decide anything; None where they do not."""
    if record.latency is None:
        return None
    scatter = max(record.latency.baseline.cv, record.latency.artifact.cv)
    if scatter <= MOST_CV:
        return None
    return f"; not decided, the timings are noisy: runs scatter by {100 * scatter:.0f} %. Run the kit again on an idle device"


def _on_device(gate: Gate, record: DeviceRecord) -> Gate:
    """Judge a gate by the device's own figures: that is where the promise is made for."""
    place = f"measured on the device ({machine_name(record)})"
    if gate.name == "min_fidelity_db" and record.images:
        decibels = record.fidelity_db
        answers = "" if decibels is not None else ": the answers are not finite numbers"
        met = decibels is not None and decibels >= gate.limit
        text = f"{place}, {record.images} check vectors{answers}"
        return gate.model_copy(update={"measured": decibels, "low": None, "high": None, "passed": met, "reason": text})
    if gate.name == "min_feature_sqnr_db" and record.images:
        lowest = min(record.outputs, key=lambda output: output.sqnr_db, default=None)
        sqnr_db = None if lowest is None else lowest.sqnr_db
        where = ": the answers are not finite numbers" if lowest is None else f", worst in {lowest.name}"
        met = sqnr_db is not None and sqnr_db >= gate.limit
        text = f"{place}, {record.images} check vectors{where}"
        return gate.model_copy(update={"measured": sqnr_db, "passed": met, "reason": text})
    if gate.name == "min_speedup" and record.speedup is not None:
        gain = record.speedup
        met, doubt = gain.high >= gate.limit, _scatter(record)
        below = (
            f"; {gain.value:.2f}x is below the limit, but its 95 % interval is not"
            if met and gain.value < gate.limit
            else ""
        )
        return gate.model_copy(
            update={
                "measured": gain.value,
                "low": gain.low,
                "high": gain.high,
                "passed": met if doubt is None else None,
                "reason": f"{place}, against {record.baseline_form}{below if doubt is None else doubt}",
            }
        )
    if gate.name == "score_drop_pp" and gate.passed is None and record.drop_pp is not None:
        drop, step = record.drop_pp, 100 / record.images
        found = (
            f"{drop.value:+.2f} points ({drop.low:+.2f} to {drop.high:+.2f}) on {record.images} check vectors, {place}"
        )
        if drop.low > gate.limit:
            update = {"measured": drop.value, "low": drop.low, "high": drop.high, "passed": False, "reason": found}
            return gate.model_copy(update=update)
        return gate.model_copy(update={"reason": f"{gate.reason}; {found}: one image is {step:.1f} points"})
    return gate


def _reasons(report: Report, record: DeviceRecord) -> dict[str, str]:
    """Say where to look for what this machine did not measure and the device did."""
    elsewhere = {
        "accuracy.artifact": (
            report.accuracy.artifact,
            record.images or None,
            "on the check vectors, see device.artifact",
        ),
        "fidelity_db": (report.fidelity_db, record.fidelity_db, "see device.fidelity_db"),
        "speedup": (report.speedup, record.speedup, "see device.speedup"),
        "speedup_interval": (report.speedup_interval, record.speedup, "see device.speedup"),
        "latency.artifact": (report.latency.artifact, record.latency, "see device.latency"),
        "latency.fp32": (report.latency.fp32, record.latency, "see device.latency"),
    }
    return {
        key: f"measured on the device only: {look}"
        for key, (here, there, look) in elsewhere.items()
        if here is None and there is not None
    }


def _add_accuracy(record: DeviceRecord, answers: np.ndarray, kit: Kit, missing: dict[str, str]) -> None:
    if not np.isfinite(answers).all():
        missing["artifact"] = missing["fidelity_db"] = "the device's answers are not finite numbers"
        return
    if kit.outputs:
        record.outputs = _device_outputs(answers, kit)
        record.sqnr_db = min(output.sqnr_db for output in record.outputs)
        record.fidelity_db = min(output.fidelity_db for output in record.outputs)
        missing["artifact"] = "the network has no classifier; see device.outputs"
        return
    found = compare(kit.fp32, None, answers, kit.labels, None, [str(row) for row in range(len(answers))], task=kit.task)
    record.score = found.score
    record.fp32, record.artifact, record.drop_pp = found.fp32, found.artifact, found.drop_pp
    record.agreement, record.sqnr_db = found.agreement, found.sqnr_db
    record.fidelity_db = fidelity_db(answers, kit.simulated)
    if record.artifact is None:
        lacking = "have no labels" if kit.labels is None else "have none of the classes"
        missing["artifact"] = f"the check vectors {lacking}"


def _device_outputs(answers: np.ndarray, kit: Kit) -> list[DeviceOutput]:
    ends = np.cumsum([output.samples for output in kit.outputs])[:-1]
    parts = zip(*(np.split(values, ends, axis=1) for values in (answers, kit.fp32, kit.simulated)), strict=True)
    return [
        DeviceOutput(name=output.name, sqnr_db=logit_sqnr_db(fp32, found), fidelity_db=fidelity_db(found, simulated))
        for output, (found, fp32, simulated) in zip(kit.outputs, parts, strict=True)
    ]


def _answers(packed: str, kit: Kit) -> np.ndarray:
    try:
        values = np.frombuffer(base64.b64decode(packed, validate=True), "<f4").astype(np.float32)
    except (binascii.Error, ValueError) as error:
        raise DeviceResultsError(
            f"The answers of device.json do not hold: {for_terminal(error)}. Run the kit's script again."
        ) from error
    if values.size != kit.fp32.size:
        raise DeviceResultsError(
            f"device.json holds {values.size} answers; the kit has {len(kit.fp32)} check vectors of {kit.fp32.shape[1]} "
            "values. Run the kit's script again."
        )
    return values.reshape(kit.fp32.shape)


def _clocks(results: DeviceResults) -> dict[str, str]:
    """Put clocks and temperatures before and after the timing side by side: "1500 MHz, then 1500 MHz (at most 1500)"."""
    told = {}
    for name, before in results.clocks_before.items():
        after: dict[str, Any] = results.clocks_after.get(name, {})
        unit, key = ("degrees Celsius", "celsius") if "celsius" in before else ("MHz", "mhz")
        pair = [f"{value[key]:.0f}" for value in (before, after) if isinstance(value.get(key), float)]
        top, governor = before.get("max_mhz"), before.get("governor")
        more = [f"at most {top:.0f}"] if isinstance(top, float) else []
        more += [f"governor {governor}"] if isinstance(governor, str) else []
        told[name] = f"{', then '.join(pair)} {unit}" + (f" ({', '.join(more)})" if more else "")
    return told
