"""What the raw numbers of a device.json give: latencies, speed-up, power; and that the device's own sums agree."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from edgeconvnext.backends.kit.known import Kit
from edgeconvnext.backends.kit.results import MOST_RUNS, DeviceResults, ResultCheck, ResultPower, ResultTimes
from edgeconvnext.errors import DeviceResultsError
from edgeconvnext.evaluation.timing import summarize
from edgeconvnext.evaluation.turns import RESAMPLES
from edgeconvnext.schema.report import DECIBEL_LIMIT, DevicePower, DeviceRecord, Interval, Latency

# The device sums in another order: 10,000 sums of float64 stay within 1e-11.
RELATIVE = 1e-9
DECIBELS = 0.001
_AGAIN = "The device's figures are not those of its own measurements. Run the kit's script again."


def latency_of(times: ResultTimes, batch: int, field: str) -> Latency:
    """Sum one network's runs up. Raises DeviceResultsError, naming the figure, where the device made another one of them."""
    runs = np.concatenate([np.asarray(block, dtype=np.float64) for block in times.blocks_ms])
    if len(runs) > MOST_RUNS:
        raise DeviceResultsError(f"device.json, {field}.blocks_ms: at most {MOST_RUNS} runs are read, not {len(runs)}.")
    latency = summarize(runs, batch)
    for name in ("median_ms", "mean_ms", "min_ms", "max_ms", "p90_ms", "p95_ms", "p99_ms", "throughput", "cv", "runs"):
        _require(f"{field}.{name}", getattr(times, name), getattr(latency, name))
    return latency


def speedup_of(baseline: Sequence[Sequence[float]], artifact: Sequence[Sequence[float]]) -> Interval:
    """Return the ratio of the medians of the blocks' medians, with a 95 % interval from resampled pairs of blocks.

    baseline, artifact: times in ms by block. Blocks of the same place were timed one after the other. Repeats the draws of
    the kit's script (`evaluation/turns.py`).
    """
    count = min(len(baseline), len(artifact))
    medians = np.array([[np.median(pair[0]), np.median(pair[1])] for pair in zip(baseline, artifact, strict=False)])
    value = float(np.divide(*np.median(medians, axis=0)))
    draw = random.Random(0)
    drawn = (int(draw.random() * count) for _ in range(RESAMPLES * count))
    places = np.fromiter(drawn, np.int32, RESAMPLES * count).reshape(RESAMPLES, count)
    above, below = (np.median(medians[places, side], axis=1) for side in (0, 1))
    low, high = np.percentile(above / below, [2.5, 97.5])
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def power_of(told: ResultPower) -> DevicePower:
    """Add up the rails that carry all of the device's input. Raises DeviceResultsError where the device added up others."""
    names = told.summed
    if len(set(names)) != len(names) or not set(names) <= set(told.rails):
        raise DeviceResultsError(f"device.json, power.summed: these are not rails, each once, of power.rails. {_AGAIN}")
    idle, baseline, artifact = (
        math.fsum(getattr(told.rails[name], kind) for name in names) for kind in ("idle", "baseline", "artifact")
    )
    power = DevicePower(
        source=told.source,
        total=names[0] if len(names) == 1 else "sum of " + ", ".join(names),
        idle_w=idle,
        baseline_w=baseline,
        artifact_w=artifact,
        baseline_mj_per_image=1000 * baseline * told.seconds_per_image.baseline,
        artifact_mj_per_image=1000 * artifact * told.seconds_per_image.artifact,
    )
    if told.total != power.total:
        raise DeviceResultsError(f"device.json, power.total: it does not name the rails of power.summed. {_AGAIN}")
    for name in ("idle_w", "baseline_w", "artifact_w", "baseline_mj_per_image", "artifact_mj_per_image"):
        _require(f"power.{name}", getattr(told, name), getattr(power, name))
    return power


def require_agreement(results: DeviceResults, record: DeviceRecord, kit: Kit) -> None:
    """Raise DeviceResultsError, naming the field, where what the device says is not what its raw numbers give.

    record: computed from these numbers. A device that says a gate is met where it is missed, or the other way round, is refused.
    """
    if results.speedup is not None:
        for name in ("value", "low", "high"):
            computed = None if record.speedup is None else getattr(record.speedup, name)
            _require(f"speedup.{name}", getattr(results.speedup, name), computed)
    if results.check is not None:
        _require_check(results.check, record)
    figures = {
        "min_feature_sqnr_db": record.sqnr_db,
        "min_fidelity_db": record.fidelity_db,
        "min_speedup": None if record.speedup is None else record.speedup.value,
    }
    for index, gate in enumerate(results.gates):
        limit, figure = kit.about.gates.get(gate.name), figures[gate.name]
        if limit is None:
            raise DeviceResultsError(f"device.json, gates.{index}: the kit sets no gate {gate.name}. {_AGAIN}")
        _require(f"gates.{index}.limit", gate.limit, limit)
        compare = _require if gate.name == "min_speedup" else _require_decibels
        compare(f"gates.{index}.measured", gate.measured, figure)
        judged = record.speedup.high if gate.name == "min_speedup" and record.speedup is not None else figure
        met = judged is not None and judged >= limit
        # As close to the limit as the sums may differ, either is right.
        if gate.passed != met and (judged is None or abs(judged - limit) > DECIBELS):
            raise DeviceResultsError(
                f"device.json, gates.{index}.passed: it says {gate.passed}; {figure} against {limit} says otherwise. {_AGAIN}"
            )
    if results.passed is not None and results.passed != all(gate.passed for gate in results.gates):
        raise DeviceResultsError(f"device.json, passed: it says {results.passed}, its gates say otherwise. {_AGAIN}")


def require_export(results: DeviceResults, kit: Kit) -> None:
    """Raise DeviceResultsError, naming the field, where what device.json repeats of the kit is not what the kit says."""
    repeated = {
        "model": (results.model, kit.model),
        "target": (results.target, kit.target),
        "forms.artifact": (results.forms.artifact, kit.about.artifact_form),
        "forms.baseline": (results.forms.baseline, kit.about.baseline_form),
    }
    for field, (told, exported) in repeated.items():
        if told != exported:
            raise DeviceResultsError(f"device.json, {field}: it is not what the kit says. {_AGAIN}")
    if results.latency is not None and not kit.about.batch[0] <= results.latency.batch <= kit.about.batch[2]:
        low, _, high = kit.about.batch
        raise DeviceResultsError(
            f"device.json, latency.batch: {results.latency.batch} is outside the artifact's batches, {low} to {high}. {_AGAIN}"
        )
    layers = [layer.layer for layer in results.layer_fidelity]
    if len(set(layers)) != len(layers) or not set(layers) <= {layer.name for layer in kit.about.layers}:
        raise DeviceResultsError(f"device.json, layer_fidelity: these are not blocks, each once, of the kit. {_AGAIN}")


def _require_check(check: ResultCheck, record: DeviceRecord) -> None:
    """Compare what the device made of its answers with what they give here."""
    _require("check.images", check.images, record.images)
    _require_decibels("check.fidelity_db", check.fidelity_db, record.fidelity_db)
    _require_decibels("check.sqnr_db", check.sqnr_db, record.sqnr_db)
    if record.fidelity_db is None:  # of answers that are not finite nothing else is computed here
        return
    _require("check.agreement", check.agreement, record.agreement)
    _require("check.score", check.score, None if record.artifact is None else record.artifact.value)
    _require("check.score_fp32", check.score_fp32, None if record.fp32 is None else record.fp32.value)
    known = {output.name: output for output in record.outputs}
    for index, output in enumerate(check.outputs if known else ()):
        computed = known.get(output.name)
        if computed is None:
            raise DeviceResultsError(f"device.json, check.outputs.{index}.name: the kit has no such output. {_AGAIN}")
        _require_decibels(f"check.outputs.{index}.fidelity_db", output.fidelity_db, computed.fidelity_db)
        _require_decibels(f"check.outputs.{index}.sqnr_db", output.sqnr_db, computed.sqnr_db)


def _require_decibels(field: str, told: float | None, computed: float | None) -> None:
    """Compare within the range that a report's decibels have."""
    within = None if told is None else max(-DECIBEL_LIMIT, min(DECIBEL_LIMIT, told))
    _require(field, within, computed, DECIBELS)


def _require(field: str, told: float | None, computed: float | None, tolerance: float = 1e-9) -> None:
    if told is None and computed is None:
        return
    if told is None or computed is None or not _agree(told, computed, tolerance):
        raise DeviceResultsError(f"device.json, {field}: it says {told}; its raw numbers give {computed}. {_AGAIN}")


def _agree(told: float, computed: float, tolerance: float) -> bool:
    try:
        return math.isclose(told, computed, rel_tol=RELATIVE, abs_tol=tolerance)
    except OverflowError:  # an integer beyond every float
        return False
