"""Every figure of a device.json is computed from its raw numbers, by hand here; a device that says another one is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from device_files import POWER, Results, backbone, kit, times, told

from edgeconvnext.backends.kit.figures import latency_of, power_of, speedup_of
from edgeconvnext.backends.kit.known import Kit
from edgeconvnext.backends.kit.record import device_record
from edgeconvnext.backends.kit.results import DeviceResults, ResultPower, ResultTimes
from edgeconvnext.errors import DeviceResultsError
from edgeconvnext.evaluation import turns as timing


def record(results: Results, exported: Kit | None = None) -> Any:
    return device_record(DeviceResults.model_validate(results), exported or kit())


def changed(results: Results, path: str, value: object) -> Results:
    """Return a copy with another value at a dotted path."""
    results = copy.deepcopy(results)
    entry: Any = results
    *parents, last = path.split(".")
    for name in parents:
        entry = entry[int(name) if isinstance(entry, list) else name]
    entry[int(last) if isinstance(entry, list) else last] = value
    return results


# -------------------------------------------------------------------------------------------------------------- Figures


def test_throughput_is_the_batch_over_the_mean_and_not_over_the_median() -> None:
    """1, 2 and 6 ms: mean 3, median 2, squared deviations from the mean 4, 1 and 9."""
    latency = latency_of(ResultTimes.model_validate(times([6.0, 1.0], [2.0], batch=4)), 4, "latency.artifact")
    assert latency.throughput == pytest.approx(4 / 0.003, rel=1e-12)
    assert (latency.median_ms, latency.mean_ms, latency.min_ms, latency.max_ms, latency.runs) == (2.0, 3.0, 1.0, 6.0, 3)
    assert (latency.p90_ms, latency.p95_ms, latency.p99_ms) == pytest.approx((5.2, 5.6, 5.92), rel=1e-12)
    assert latency.cv == pytest.approx((14 / 3) ** 0.5 / 3, rel=1e-12)
    assert latency.samples_ms == [6.0, 1.0, 2.0]


def test_the_speed_up_is_the_ratio_of_the_medians_of_the_blocks_medians() -> None:
    gain = speedup_of([[30.0], [10.0], [20.0]], [[5.0, 7.0, 100.0], [4.0], [8.0]])
    assert gain.value == pytest.approx(20 / 7)
    assert speedup_of([[3.0], [3.0], [99.0]], [[2.0], [2.0]]).value == 1.5, "pairs only"


def test_the_interval_is_the_one_that_the_kit_computes() -> None:
    """Two implementations, one on lists and one in numpy, of the same draws."""
    rng = np.random.default_rng(3)
    baseline, artifact = (
        [rng.gamma(4.0, scale, size=size).tolist() for size in rng.integers(1, 9, size=31)] for scale in (2.0, 1.4)
    )
    theirs = timing.speedup(
        *([[{"latency": run} for run in block] for block in blocks] for blocks in (baseline, artifact))
    )
    ours = speedup_of(baseline, artifact)
    assert ours.model_dump() == pytest.approx(theirs, rel=1e-12)
    assert ours.low < ours.value < ours.high


def test_the_interval_holds_the_ratio_in_nineteen_of_twenty_measurements() -> None:
    """True ratio 1.5; 200 measurements of 20 blocks: 190 with a standard deviation of 3.1, and four of these below it is 178."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        baseline, artifact = (rng.normal(mean, 0.1, size=(20, 1)).tolist() for mean in (3.0, 2.0))
        gain = speedup_of(baseline, artifact)
        covered += gain.low <= 1.5 <= gain.high
    assert 178 <= covered < 200


def test_power_is_the_sum_of_the_rails_that_are_named() -> None:
    power = power_of(ResultPower.model_validate(POWER))
    assert (power.idle_w, power.artifact_w, power.baseline_w) == (1.5, 6.0, 9.0)
    assert (power.artifact_mj_per_image, power.baseline_mj_per_image) == (12.0, 27.0)
    assert (power.source, power.total) == ("ina3221", "sum of CPU, GPU")
    one = POWER | {"summed": ["DRAM"], "total": "DRAM", "idle_w": 0.25, "artifact_w": 0.25, "baseline_w": 0.25}
    one |= {"artifact_mj_per_image": 0.5, "baseline_mj_per_image": 0.75}
    assert power_of(ResultPower.model_validate(one)).total == "DRAM"


# ------------------------------------------------------------------------------------------------- What the device says


def whole() -> Results:
    """device.json with everything that a device computes itself, all of it right."""
    exported = kit()
    answers = exported.simulated * np.float32(1.25)
    ratio = 10 * np.log10(
        (exported.fp32.astype(np.float64) ** 2).sum() / ((exported.fp32.astype(np.float64) - answers) ** 2).sum()
    )
    fidelity = 20 * np.log10(4)
    top1 = float(100 * (answers.argmax(1) == exported.fp32.argmax(1)).mean())
    return told(
        answers,
        power=POWER,
        check={
            "images": 32,
            "outputs": [{"name": "logits", "fidelity_db": fidelity, "sqnr_db": ratio}],
            "fidelity_db": fidelity,
            "sqnr_db": ratio,
            "agreement": top1,
            "score": top1,
            "score_fp32": 100.0,
        },
        gates=[
            {"name": "min_fidelity_db", "limit": 30.0, "measured": fidelity, "passed": False},
            {"name": "min_speedup", "limit": 1.0, "measured": 1.5, "passed": True},
        ],
        passed=False,
    )


def test_a_device_that_says_what_its_numbers_give_is_believed() -> None:
    assert record(whole()).speedup.value == 1.5


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("speedup.value", 100.0),
        ("check.images", 10**400),
        ("speedup.low", 1.4),
        ("speedup.high", 100.0),
        *((f"latency.artifact.{name}_ms", 0.999) for name in ("median", "mean", "min", "max", "p90", "p95", "p99")),
        *((f"latency.baseline.{name}_ms", 1.5001) for name in ("median", "mean", "min", "max", "p90", "p95", "p99")),
        ("latency.artifact.throughput", 1001.0),
        ("latency.baseline.cv", 0.01),
        ("latency.artifact.runs", 5),
        ("power.idle_w", 1.6),
        ("power.artifact_w", 0.1),
        ("power.baseline_w", 90.0),
        ("power.artifact_mj_per_image", 0.1),
        ("power.baseline_mj_per_image", 270.0),
        ("power.total", "sum of CPU, GPU, DRAM"),
        ("power.summed", ["CPU", "CPU"]),
        ("power.summed", ["CPU", "MAINS"]),
        ("check.images", 31),
        ("check.fidelity_db", 99.0),
        ("check.fidelity_db", None),
        ("check.sqnr_db", 99.0),
        ("check.agreement", 99.0),
        ("check.score", 100.1),
        ("check.score_fp32", 50.0),
        ("gates.0.limit", 1.0),
        ("gates.0.measured", 31.0),
        ("gates.0.passed", True),
        ("gates.1.measured", 1.6),
        ("gates.1.passed", False),
        ("passed", True),
        ("model", "another"),
        ("target", "another"),
        ("forms.artifact", "W4A4"),
        ("forms.baseline", "FP32"),
        ("latency.batch", 9),
        ("layer_fidelity", [{"layer": "stages.7", "sqnr_db": 60.0}]),
        ("layer_fidelity", [{"layer": "stages.0", "sqnr_db": 60.0}] * 2),
    ],
)
def test_a_device_that_says_something_else_is_refused_by_name(path: str, value: object) -> None:
    with pytest.raises(DeviceResultsError) as caught:
        record(changed(whole(), path, value))
    assert f"device.json, {path}" in str(caught.value)


def test_a_speed_up_of_a_hundred_beside_equal_latencies_is_refused() -> None:
    """The gate of the target would be met by it."""
    results = changed(whole(), "latency.baseline", times([1.0] * 2, [1.0] * 2))
    results["speedup"] = {"value": 100.0, "low": 99.0, "high": 101.0}
    with pytest.raises(DeviceResultsError, match=r"speedup\.value: it says 100\.0; its raw numbers give 1\.0"):
        record(results)


def test_a_speed_up_without_times_is_refused() -> None:
    with pytest.raises(DeviceResultsError, match=r"speedup\.value: it says 1\.5; its raw numbers give None"):
        record(changed(whole(), "latency", None))


def test_a_gate_that_the_kit_does_not_set_is_refused() -> None:
    exported = kit(gates={"min_fidelity_db": 30.0, "min_speedup": None})
    with pytest.raises(DeviceResultsError, match=r"gates\.1: the kit sets no gate min_speedup"):
        record(whole(), exported)


def test_figures_of_answers_that_are_not_finite() -> None:
    results = whole()
    broken = kit().simulated.copy()
    broken[0, 0] = np.nan
    fresh = told(broken, check=results["check"] | {"fidelity_db": None, "sqnr_db": None}, gates=[], passed=None)
    assert record(fresh).fidelity_db is None
    for figure in ("fidelity_db", "sqnr_db"):
        with pytest.raises(DeviceResultsError, match=rf"check\.{figure}: it says 40\.0; its raw numbers give None"):
            record(changed(fresh, f"check.{figure}", 40.0))


def test_a_check_of_answers_that_are_not_there_is_refused() -> None:
    with pytest.raises(DeviceResultsError, match=r"check\.images"):
        record(changed(whole(), "answers", None))


def test_each_output_of_a_backbone_is_compared() -> None:
    exported = backbone()
    outputs = [{"name": name, "fidelity_db": 200.0, "sqnr_db": sqnr} for name, sqnr in by_output(exported).items()]
    check = {"images": 32, "outputs": outputs, "fidelity_db": 300.0, "sqnr_db": min(by_output(exported).values())}
    gates = [{"name": "min_feature_sqnr_db", "limit": 20.0, "measured": check["sqnr_db"], "passed": True}]
    results = told(exported.simulated, check=check, gates=gates, passed=True)
    assert len(record(results, exported).outputs) == 2, "what lies beyond 200 dB is 200 dB"
    for path, value in (
        ("check.outputs.0.fidelity_db", 199.0),
        ("check.outputs.1.sqnr_db", 12.0),
        ("check.outputs.1.name", "stage9"),
        ("gates.0.measured", 12.0),
        ("gates.0.passed", False),
    ):
        with pytest.raises(DeviceResultsError) as caught:
            record(changed(results, path, value), exported)
        assert f"device.json, {path}" in str(caught.value)


def by_output(exported: Kit) -> dict[str, float]:
    parts = {"stage1": slice(0, 7), "stage2": slice(7, 10)}
    wide = exported.fp32.astype(np.float64)
    return {
        name: float(10 * np.log10((wide[:, part] ** 2).sum() / ((wide - exported.simulated)[:, part] ** 2).sum()))
        for name, part in parts.items()
    }


def test_close_to_the_limit_either_verdict_is_right() -> None:
    """The device sums in another order: its fidelity of 12.0412 dB may lie on the other side of 12.0412."""
    limit = float(20 * np.log10(4))
    exported = kit(gates={"min_fidelity_db": limit, "min_speedup": 1.0})
    for passed in (True, False):
        results = changed(
            whole(), "gates.0", {"name": "min_fidelity_db", "limit": limit, "measured": limit, "passed": passed}
        )
        results["passed"] = passed
        assert record(results, exported).fidelity_db == pytest.approx(limit, abs=1e-5)


def test_more_runs_than_are_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeconvnext.backends.kit.figures.MOST_RUNS", 3)
    with pytest.raises(DeviceResultsError, match="at most 3 runs are read, not 4"):
        record(whole())
