"""Timings that scatter, fall into two modes, or were taken on a busy machine decide no gate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgeconvnext.backends import load_target
from edgeconvnext.evaluation.gates import judge
from edgeconvnext.evaluation.timing import Samples
from edgeconvnext.evaluation.timing_noise import noise, two_modes, until_quiet, variation
from edgeconvnext.schema.report import Interval
from edgeconvnext.targets import GateSection

TURNS, RUNS = 20, 5


def samples(by_turn: np.ndarray, spread: float = 0.01) -> Samples:
    """Return RUNS runs for each turn, alternately `spread` above and below the turn's time."""
    around = 1 + spread * np.array([0, 1, -1, 1, -1])
    return Samples((by_turn[:, None] * around).ravel(), np.repeat(np.arange(len(by_turn)), RUNS))


def steady(spread: float = 0.01) -> Samples:
    return samples(np.full(TURNS, 10.0), spread)


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def test_steady_times_on_an_idle_machine_are_trusted() -> None:
    assert noise({"fp32": steady(), "artifact": steady()}, 0.4) is None
    assert noise({"artifact": steady()}, None) is None
    assert noise({"artifact": steady()}, 2.5) is None, "two cores, and half a process for the toolkit's own work"


@pytest.mark.parametrize(("spread", "noisy"), [(0.16, False), (0.17, True)])
def test_runs_that_scatter_by_more_than_15_percent_are_noisy(spread: float, noisy: bool) -> None:
    """Four of five runs lie `spread` off the mean: the standard deviation is sqrt(0.8) of it, 14.3 % and 15.2 %."""
    own = steady(spread)
    assert variation(own.times_ms) == pytest.approx(np.sqrt(0.8) * spread, rel=1e-12)
    found = noise({"fp32": steady(), "artifact": own}, 0.0)
    assert (found is not None) is noisy
    assert not noisy or "artifact scatter by 15 %" in str(found)


def test_a_load_above_the_cores_is_noise() -> None:
    assert noise({"artifact": steady()}, 8.7) == "8.7 processes ran on 2 cores"


def test_turns_of_two_kinds_are_two_modes() -> None:
    both = np.array([10.0, 12.0] * (TURNS // 2))
    assert two_modes(both) == (10.0, 12.0)
    assert "two modes, 10 and 12 ms" in str(noise({"artifact": samples(both)}, 0.0))


@pytest.mark.parametrize(
    "times",
    [
        np.linspace(10, 12, TURNS),  # a drift
        np.array([10.0] * (TURNS - 1) + [14.0]),  # one slow turn
        np.array([10.0, 10.8] * (TURNS // 2)),  # 8 % apart
        np.array([10.0, 12.0, 14.0, 16.0] * (TURNS // 4)),  # no gap that stands out
        np.array([10.0, 12.0, 12.1]),  # too few
    ],
)
def test_other_turns_are_one_mode(times: np.ndarray) -> None:
    assert two_modes(times) is None


def measurements(*spreads: float) -> Callable[[], dict[str, Samples]]:
    """Return what measures times of these spreads, one after the other."""
    left = list(spreads)
    return lambda: {"artifact": steady(left.pop(0))}


def ticking() -> Callable[[], float]:
    """Return a clock that goes on by one second each time it is asked."""
    times = iter(range(1000))
    return lambda: float(next(times))


def test_noisy_times_are_measured_again_until_they_are_quiet() -> None:
    times, doubt, count = until_quiet(measurements(0.5, 0.4, 0.01), lambda: 0.0, 10, ticking())
    assert (doubt, count) == (None, 3)
    assert variation(times["artifact"].times_ms) < 0.01


def test_times_that_stay_noisy_are_marked_after_a_while_and_the_quietest_is_taken() -> None:
    times, doubt, count = until_quiet(measurements(0.5, 0.3, 0.4), lambda: 0.0, 3, ticking())
    assert count == 3
    assert variation(times["artifact"].times_ms) == pytest.approx(np.sqrt(0.8) * 0.3)
    assert doubt is not None and "scatter by 27 %" in doubt


@pytest.mark.parametrize("value", [0.5, 1.0, 2.0])
def test_noisy_times_decide_no_gate(value: float) -> None:
    target = load_target("onnx").model_copy(update={"gates": GateSection(min_speedup=1.0)})
    measured = Interval(value=value, low=value, high=value)
    (gate,) = judge(target, None, None, measured, {}, noise="8.7 processes ran on 2 cores")
    assert gate.passed is None
    assert gate.measured == value
    assert gate.reason == "not decided, the timings are noisy: 8.7 processes ran on 2 cores"
