"""Latency: the method runs on a clock of its own; real sessions only prove the plumbing, no test judges a real time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from quantized_graphs import classifier_file

from edgeconvnext.backends import backend
from edgeconvnext.backends.base import LatencySettings
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation import timing
from edgeconvnext.evaluation.timing import (
    MIN_BLOCKS,
    MIN_RUNS,
    Samples,
    ratio_of_medians,
    speedup,
    summarize,
    time_interleaved,
)

ONNX = backend("onnx")


class FakeMachine:
    """A clock that moves only when work is done, and a log of what ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float | Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += seconds if isinstance(seconds, float) else seconds()

        return call


@pytest.fixture(autouse=True)
def _turns_as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_UP_S", 0.2)
    monkeypatch.setattr(timing, "BLOCK_S", 0.1)


def test_each_network_runs_long_enough_and_in_turns() -> None:
    machine = FakeMachine()
    calls = {"fp32": machine.work("fp32", 1 / 64), "artifact": machine.work("artifact", 1 / 128)}
    samples = time_interleaved(calls, seconds=3.0, clock=machine.clock)
    assert all(s.times_ms.sum() >= 3000 for s in samples.values())
    assert (samples["fp32"].times_ms == 1000 / 64).all() and (samples["artifact"].times_ms == 1000 / 128).all()
    # Warm-up: 200 ms each are 13 and 26 runs; then turns of 100 ms, 7 and 13 runs behind an uncounted first one.
    assert machine.log[:39] == ["fp32"] * 13 + ["artifact"] * 26
    assert machine.log[39:91] == ["fp32"] * 8 + ["artifact"] * 28 + ["fp32"] * 16


def test_a_slow_network_still_gets_its_runs() -> None:
    machine = FakeMachine()
    samples = time_interleaved({"slow": machine.work("slow", 5.0)}, seconds=3.0, clock=machine.clock)["slow"]
    assert len(samples.times_ms) >= MIN_RUNS
    assert len(np.unique(samples.blocks)) >= MIN_BLOCKS


def test_the_first_run_of_a_turn_is_not_counted() -> None:
    machine = FakeMachine()
    last: list[str] = []

    def cold_after_switch(name: str) -> Callable[[], float]:
        def seconds() -> float:
            cold = not last or last[-1] != name
            last.append(name)
            return 0.05 if cold else 0.01

        return seconds

    calls = {name: machine.work(name, cold_after_switch(name)) for name in ("fp32", "artifact")}
    samples = time_interleaved(calls, clock=machine.clock)
    assert max(s.times_ms.max() for s in samples.values()) == pytest.approx(10)


def test_figures_of_a_hand_computed_case() -> None:
    latency = summarize(np.arange(1, 102, dtype=np.float64), batch=4)
    assert (latency.median_ms, latency.mean_ms, latency.min_ms, latency.max_ms) == (51, 51, 1, 101)
    assert (latency.p90_ms, latency.p95_ms, latency.p99_ms) == (91, 96, 100)
    assert latency.throughput == pytest.approx(4000 / 51)
    assert latency.cv == pytest.approx(np.sqrt((101**2 - 1) / 12) / 51)
    assert latency.runs == 101 and len(latency.samples_ms) == 101


def test_throughput_is_images_over_the_mean_time_not_the_median() -> None:
    # Ten runs in 1 + 4 * 2 + 4 * 3 + 79 = 100 ms, with the median at 2.5: 3 images a run are 300 a second.
    latency = summarize(np.array([79.0, 2, 3, 2, 3, 1, 3, 2, 3, 2]), batch=3)
    assert (latency.median_ms, latency.mean_ms) == (2.5, 10.0)
    assert latency.throughput == pytest.approx(300)
    # Squares sum to 79^2 + 1 + 4 * 4 + 4 * 9 = 6294; the standard deviation is that of these runs, not of a sample.
    assert latency.cv == pytest.approx((629.4 - 100) ** 0.5 / 10)
    assert (latency.min_ms, latency.max_ms, latency.runs) == (1, 79, 10)
    # numpy's percentiles lie on the line between neighbours: 90 % is at index 8.1, 95 % at 8.55, 99 % at 8.91.
    assert (latency.p90_ms, latency.p95_ms, latency.p99_ms) == pytest.approx(
        (3 + 0.1 * 76, 3 + 0.55 * 76, 3 + 0.91 * 76)
    )


def test_the_plot_gets_at_most_200_samples_over_the_whole_run() -> None:
    kept = summarize(np.arange(10_000, dtype=np.float64) + 1, batch=1).samples_ms
    assert len(kept) == 200 and kept[0] == 1 and kept[-1] == 10_000


def simulated_samples(rng: np.random.Generator, median_ms: float, drift: np.ndarray, runs: int = 8) -> Samples:
    blocks = np.repeat(np.arange(len(drift)), runs)
    return Samples(median_ms * drift[blocks] * rng.lognormal(0, 0.05, len(blocks)), blocks)


def test_speedup_interval_covers_the_true_ratio_on_a_machine_that_drifts() -> None:
    rng = np.random.default_rng(0)
    trials, covered, widths = 200, 0, []
    for trial in range(trials):
        drift = rng.lognormal(0, 0.2, 30)
        _, low, high = ratio_of_medians(
            simulated_samples(rng, 15.0, drift), simulated_samples(rng, 10.0, drift), resamples=300, seed=trial
        )
        covered += low <= 1.5 <= high
        widths.append(high - low)
    # The standard error of 95 % over 200 trials is 1.5 points.
    assert 0.9 <= covered / trials <= 1.0
    assert np.median(widths) < 0.5


def test_a_constant_ratio_has_no_width() -> None:
    blocks = np.repeat(np.arange(12), 5)
    interval = speedup(Samples(np.full(60, 30.0), blocks), Samples(np.full(60, 20.0), blocks))
    assert (interval.low, interval.value, interval.high) == (1.5, 1.5, 1.5)


def test_an_onnx_file_is_timed_beside_its_float_form(tmp_path: Path) -> None:
    weights = np.ones((3, 2), np.float32)
    fp32 = classifier_file(tmp_path / "fp32.onnx", weights)
    artifact = classifier_file(tmp_path / "model.onnx", weights, dtype=np.float16)
    photographs = np.zeros((3, 3, 4, 4), np.float32)
    result = ONNX.latency(fp32, artifact, LatencySettings(batch=2, seconds=0.01, images=photographs))
    times = result.comparison
    assert times.fp32 is not None and times.artifact is not None and result.speedup is not None
    assert result.speedup.low <= result.speedup.value <= result.speedup.high
    assert result.speedup.value == pytest.approx(times.fp32.median_ms / times.artifact.median_ms)
    assert (times.batch, times.threads) == (2, 1)
    assert times.runtime is not None and times.runtime.startswith("onnxruntime ")
    assert times.settings["input"] == "photographs, 4x4"
    assert "load before" in times.settings
    assert str(tmp_path) not in times.model_dump_json()


def test_an_artifact_alone_has_times_and_no_speedup(tmp_path: Path) -> None:
    artifact = classifier_file(tmp_path / "model.onnx", np.ones((3, 2), np.float32))
    result = ONNX.latency(None, artifact, LatencySettings(input_size=(4, 4), seconds=0.01))
    assert result.speedup is None and result.comparison.fp32 is None
    assert result.comparison.artifact is not None and result.comparison.artifact.runs >= MIN_RUNS
    assert result.comparison.settings["input"] == "grey ramp, 4x4"


def test_a_batch_or_size_the_file_does_not_take_is_an_error(tmp_path: Path) -> None:
    artifact = classifier_file(tmp_path / "model.onnx", np.ones((3, 2), np.float32), batch=1)
    with pytest.raises(ExportError, match="exported for batch 1 and cannot be timed at batch 8"):
        ONNX.latency(None, artifact, LatencySettings(batch=8, input_size=(4, 4), seconds=0.01))
    with pytest.raises(ExportError, match="does not run on"):
        ONNX.latency(None, artifact, LatencySettings(input_size=(8, 8), seconds=0.01))
