"""The benchmark of training speed counts what was trained in the time it took."""

from __future__ import annotations

import time

import pytest

from benchmarks import training_speed as module
from edgeconvnext.data.digits import digits_set


def test_images_are_those_of_the_timed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter((7, 12))
    monkeypatch.setattr(module, "_steps", lambda request: next(steps))
    before = time.monotonic()
    speed = module.training_speed(digits_set("calibration"), 32, 50, 1.0)
    assert speed.images == 5 * 50 and 0 < speed.seconds <= time.monotonic() - before
    assert speed.images_per_second == speed.images / speed.seconds


@pytest.mark.exhaustive
def test_a_training_goes_on_where_the_warm_up_ended() -> None:
    speed = module.training_speed(digits_set("calibration"), 32, 100, 1e-6)
    assert speed.images == 100  # one step, and then the pause
