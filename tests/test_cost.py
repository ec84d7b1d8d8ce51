"""What a stage costs: its time, its peak, and nothing of what an earlier one left behind."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from edgeconvnext.memory import give_back_free_memory
from edgeconvnext.run.cost import CostMeter


def test_the_peak_is_of_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeconvnext.memory.WORTH_COLLECTING_MIB", 0.0)
    give_back_free_memory()  # a block that takes what an earlier test has freed adds less
    with CostMeter() as idle:
        pass
    with CostMeter() as busy:
        block = bytearray(b"x") * 200_000_000
    assert len(block) == 200_000_000
    assert 150 < busy.peak_mib - idle.peak_mib < 300
    assert busy.seconds > 0


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc_trim")
def test_freed_memory_between_blocks_in_use_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [bytearray(3000) for _ in range(60_000)]
    kept = blocks[::100]
    with CostMeter() as full:
        pass
    del blocks
    monkeypatch.setattr("edgeconvnext.memory._resident_when_given_back", 0.0)
    monkeypatch.setattr("edgeconvnext.memory.WORTH_COLLECTING_MIB", 32.0)
    give_back_free_memory()
    with CostMeter() as trimmed:
        pass
    assert len(kept) == 600
    assert full.peak_mib - trimmed.peak_mib > 120


def test_a_process_that_has_not_grown_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    monkeypatch.setattr("edgeconvnext.memory._resident_when_given_back", 0.0)
    monkeypatch.setattr("edgeconvnext.memory.WORTH_COLLECTING_MIB", 32.0)
    give_back_free_memory()
    monkeypatch.setattr("gc.collect", lambda: searched.append(1))
    small = bytearray(b"x") * 5_000_000
    give_back_free_memory()
    assert searched == []
    large = bytearray(b"x") * 300_000_000
    give_back_free_memory()
    assert searched == [1]
    assert len(small) + len(large) == 305_000_000


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS shows no other process's private memory")
def test_memory_of_workers_of_workers_counts_towards_the_peak() -> None:
    worker = "held = bytearray(b'1' * (100 << 20)); import time; time.sleep(1.5)"
    manager = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}], check=True)"
    with CostMeter() as idle:
        time.sleep(0.1)
    with CostMeter() as busy:
        subprocess.run([sys.executable, "-c", manager], check=True)
    assert 95 < busy.peak_mib - idle.peak_mib < 300
