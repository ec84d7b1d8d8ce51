"""What came back from a device: is it about this run, what does it say, and which gates does it settle?"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeconvnext.errors import DeviceResultsError
from edgeconvnext.export.device_kit import KIT_FILE, VECTORS_FILE, KitOutput
from edgeconvnext.files import tree_sha256
from edgeconvnext.report.device import machine_name
from edgeconvnext.report.schema import (
    DeviceLatency,
    DeviceLayer,
    DeviceOutput,
    DevicePower,
    DeviceRecord,
    Gate,
    Interval,
    Latency,
    LayerFidelity,
    Report,
)
from edgeconvnext.targets import Target
from edgeconvnext.validate.accuracy import compare, logit_sqnr_db
from edgeconvnext.validate.fidelity import fidelity_db
from edgeconvnext.validate.gates import gate_reasons, judge, passed

MOST_BYTES = 64 * 2**20
MOST_LAYERS = 5000
SHOWN_MESSAGES = 20


class _Told(BaseModel):
    """Base of what a kit's script writes: newer keys are passed over, numbers must be finite."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Runtime(_Told):
    name: str
    version: str


class _Forms(_Told):
    artifact: str
    baseline: str


class _Times(_Told):
    median_ms: float = Field(gt=0)
    mean_ms: float = Field(gt=0)
    min_ms: float = Field(ge=0)
    max_ms: float = Field(gt=0)
    p90_ms: float = Field(gt=0)
    p95_ms: float = Field(gt=0)
    p99_ms: float = Field(gt=0)
    throughput: float = Field(gt=0)
    cv: float = Field(ge=0)
    runs: int = Field(ge=1)
    samples_ms: list[float] = Field(default=[], max_length=200)


class _Latency(_Told):
    batch: int = Field(ge=1)
    threads: int = Field(ge=1)
    settings: dict[str, str] = {}
    artifact: _Times
    baseline: _Times


class _Speedup(_Told):
    value: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)


class _Power(_Told):
    source: str
    total: str
    idle_w: float
    baseline_w: float
    artifact_w: float
    baseline_mj_per_image: float
    artifact_mj_per_image: float


class _Layer(_Told):
    name: str
    kind: str
    precision: str
    median_ms: float | None = None


class _LayerFidelity(_Told):
    layer: str
    sqnr_db: float | None = None


class _Layers(_Told):
    artifact: list[_Layer] = Field(default=[], max_length=MOST_LAYERS)


class DeviceResults(_Told):
    """device.json, format 3. kit: sha256 of the kit.json it was measured with; answers: base64 of float32."""

    format: int
    kit: str
    model: str
    target: str
    started: str
    runtime: _Runtime
    forms: _Forms
    machine: dict[str, str] = {}
    answers: str | None = None
    latency: _Latency | None = None
    speedup: _Speedup | None = None
    power: _Power | None = None
    power_absent: str | None = None
    clocks_before: dict[str, dict[str, float | str | None]] = {}
    clocks_after: dict[str, dict[str, float | str | None]] = {}
    layers: _Layers = _Layers()
    layer_fidelity: list[_LayerFidelity] = Field(default=[], max_length=MOST_LAYERS)
    layer_fidelity_absent: str | None = None
    messages: list[str] = []


@dataclass(frozen=True)
class Kit:
    """The kit of a run, as it was exported: (N, classes) logits and (N,) labels of its check vectors.

    outputs: of a network without classifier, whose answers are samples of these, one behind the other. sha256: of kit.json, which
    names the sha256 of every file of the kit, artifact and vectors included.
    """

    sha256: str
    model: str
    target: str
    fp32: np.ndarray
    simulated: np.ndarray
    labels: np.ndarray | None
    outputs: tuple[KitOutput, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Kit:
        """Read the `device/` folder of a run whose files were checked against its manifest."""
        about = json.loads((folder / KIT_FILE).read_text(encoding="utf-8"))
        outputs = tuple(KitOutput(**output) for output in about["outputs"])
        count, values = about["count"], sum(output.samples for output in outputs)
        numbers = np.fromfile(folder / VECTORS_FILE, "<f4")[-2 * count * values :].astype(np.float32)
        fp32, simulated = numbers.reshape(2, count, values)
        labels = None if about["labels"] is None else np.asarray(about["labels"])
        several = () if about["classes"] else outputs
        return cls(tree_sha256(folder / KIT_FILE), about["model"], about["target"], fp32, simulated, labels, several)


def read_results(path: Path, kit: Kit) -> DeviceResults:
    """Read device.json. Raises DeviceResultsError where it does not hold, or was measured with another run's kit."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DeviceResultsError(
                f"{path} is larger than any device.json; name the file that the kit's script wrote."
            )
        results = DeviceResults.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DeviceResultsError(
            f"{path} cannot be read: {error.strerror}. The kit's script writes device.json beside itself."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DeviceResultsError(
            f"{path} is not a device.json that this version reads: {where + ': ' if where else ''}{first['msg']}. Run the "
            "kit's script again and bring back what it writes."
        ) from error
    if results.kit != kit.sha256:
        raise DeviceResultsError(
            f"{path} was measured with the kit of another run ({results.model} for {results.target}, kit {results.kit[:12]}); "
            f"this run's is {kit.model} for {kit.target}, kit {kit.sha256[:12]}. Name the run it belongs to, or copy this "
            "run's device folder to the device and run its script there."
        )
    return results


def device_record(results: DeviceResults, kit: Kit) -> DeviceRecord:
    """Bring what a device measured into the report's terms; accuracies are computed here, from the logits."""
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
            baseline=Latency(**told.baseline.model_dump()),
            artifact=Latency(**told.artifact.model_dump()),
            batch=told.batch,
            threads=told.threads,
            settings=told.settings,
        )
        record.speedup = None if results.speedup is None else Interval(**results.speedup.model_dump())
    else:
        missing["latency"] = "nothing was timed there"
    if results.power is not None:
        record.power = DevicePower(**results.power.model_dump())
    else:
        missing["power"] = results.power_absent or "nothing was run there"
    if not results.layer_fidelity:
        missing["layer_fidelity"] = results.layer_fidelity_absent or "the kit's script compared the answers only"
    record.not_measured = missing
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
    )
    gates = [_on_device(gate, record) for gate in judged]
    met = passed(gates) and all(check.passed for check in report.checks)
    return report.model_copy(update={"device": record, "gates": gates, "passed": met, "not_measured": reasons})


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
        met = gain.high >= gate.limit
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
                "passed": met,
                "reason": f"{place}, against {record.baseline_form}{below}",
            }
        )
    if gate.name == "top1_drop_pp" and gate.passed is None and record.drop_pp is not None:
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
    found = compare(kit.fp32, None, answers, kit.labels, None, [str(row) for row in range(len(answers))])
    record.fp32, record.artifact, record.drop_pp = found.fp32, found.artifact, found.drop_pp
    record.agreement, record.sqnr_db = found.agreement, found.sqnr_db
    record.fidelity_db = fidelity_db(answers, kit.simulated)
    if kit.labels is None:
        missing["artifact"] = "the check vectors have no labels"


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
            f"The answers of device.json do not hold: {error}. Run the kit's script again."
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
