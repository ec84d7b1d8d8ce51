"""The kit's timing: figures by hand, every run written down, an end to what one measurement may hold."""

from __future__ import annotations

import math

import pytest

from edgeconvnext.evaluation import turns as timing

# Mean 3, median 2, squared deviations 4 + 1 + 9 of the mean.
UNEQUAL = [6.0, 1.0, 2.0]


def test_throughput_is_the_batch_over_the_mean_and_not_over_the_median() -> None:
    figures = timing.summary(UNEQUAL, batch=4)
    assert figures["throughput"] == pytest.approx(4 / 0.003)
    assert (figures["median_ms"], figures["mean_ms"]) == (2.0, 3.0)
    assert (figures["min_ms"], figures["max_ms"], figures["runs"]) == (1.0, 6.0, 3)
    # Linear between the two nearest of 1, 2, 6 at places 1.8, 1.9 and 1.98.
    assert [figures[name] for name in ("p90_ms", "p95_ms", "p99_ms")] == pytest.approx([5.2, 5.6, 5.92])
    assert figures["cv"] == pytest.approx(math.sqrt(14 / 3) / 3)


def test_every_run_is_written_down_in_its_block() -> None:
    blocks = [[{"latency": 6.0, "gpu": 5.0}, {"latency": 1.0, "gpu": 0.5}], [{"latency": 2.0, "gpu": 1.5}]]
    figures = timing.summaries(blocks, batch=1)
    assert figures["blocks_ms"] == [[6.0, 1.0], [2.0]]
    assert figures["mean_ms"] == 3.0
    assert figures["gpu"]["median_ms"] == 1.5


def test_the_speed_up_is_the_ratio_of_the_medians_of_the_blocks_medians() -> None:
    baseline = [[{"latency": time}] for time in (30.0, 10.0, 20.0)]
    artifact = [[{"latency": time} for time in times] for times in ((5.0, 7.0, 100.0), (4.0,), (8.0,))]
    gain = timing.speedup(baseline, artifact)
    assert gain["value"] == pytest.approx(20 / 7)  # medians 30, 10, 20 and 7, 4, 8
    # A resample that draws one block three times gives the widest ratios: 30 / 7 and 20 / 8, 10 / 4.
    assert 2.5 <= gain["low"] <= gain["value"] <= gain["high"] <= 30 / 7


@pytest.mark.parametrize(("limit", "most"), [("MOST_RUNS", 40), ("MOST_BLOCKS", 12)])
def test_timing_ends_where_device_json_would_grow_too_large(
    limit: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.0)  # one run a block
    monkeypatch.setattr(timing, limit, most)
    blocks = timing.time_in_turns({name: lambda: {"latency": 1.0} for name in ("baseline", "artifact")}, seconds=1e9)
    assert {name: len(found) for name, found in blocks.items()} == {"baseline": most, "artifact": most}
