"""`edgeconvnext compare`: targets beside each other, in runs of their own, timed in processes of their own."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from in_process import run_command

import edgeconvnext
from edgeconvnext.backends import backend, processes
from edgeconvnext.backends.processes import TimedFile, TimedProcess, time_processes
from edgeconvnext.backends.timed_process import turn
from edgeconvnext.commands import compare as command
from edgeconvnext.errors import ExportError, OptionError, TargetError
from edgeconvnext.report.comparison_page import noisy_lines
from edgeconvnext.schema.comparison import (
    Comparison,
    DeviceTiming,
    FormTiming,
    TargetRow,
    Winner,
    pareto_front,
    winners,
)
from edgeconvnext.schema.report import Interval

ASKED = {"calib": "digits", "eval": "digits_test", "num_images": 32, "effort": "quick", "seconds": 0.01}
NO_TENSORRT = "gpu"


@pytest.fixture(scope="module")
def compared(micro: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """The micro network on a target that runs and on one whose runtime is not installed."""
    folder = tmp_path_factory.mktemp("comparison")
    result = edgeconvnext.compare(micro, targets=["onnx", NO_TENSORRT], output=folder, batch=(1, 2), **ASKED)
    return result, folder


def test_a_row_holds_what_its_run_measured(compared: tuple[Comparison, Path]) -> None:
    result, folder = compared
    row = result.rows[0]
    report = json.loads((folder / row.run / "report.json").read_text())
    assert row.drop_pp.value == report["accuracy"]["drop_pp"]["value"]
    assert (row.sqnr_db, row.fidelity_db) == (report["accuracy"]["sqnr_db"], report["fidelity_db"])
    assert row.int8_bytes == (folder / row.run / "model.onnx").stat().st_size
    assert {(timing.form, timing.batch) for timing in row.timings} == {
        (form, batch) for form in ("float", "int8") for batch in (1, 2)
    }
    assert all(timing.median_ms > 0 and timing.load_ms > 0 and timing.runs >= 10 for timing in row.timings)


def test_speedup_is_over_the_best_float_form(compared: tuple[Comparison, Path]) -> None:
    row = compared[0].rows[0]
    for batch in (1, 2):
        floating, artifact = row.timing("float", 1, batch), row.timing("int8", 1, batch)
        assert floating.speedup.value == 1.0  # the only float form is the best one
        assert artifact.speedup.value == pytest.approx(floating.median_ms / artifact.median_ms, rel=1e-12)
        assert artifact.throughput > 0


def test_a_target_that_fails_is_a_row_with_its_reason(compared: tuple[Comparison, Path]) -> None:
    result, folder = compared
    row = result.rows[1]
    assert "tensorrt" in row.failed.lower() and row.run is None and not row.timings
    assert row.failed in " ".join((folder / "comparison.md").read_text().replace("\\", "").split())


def test_finished_runs_and_times_are_reused(
    compared: tuple[Comparison, Path], micro: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, folder = compared
    monkeypatch.setattr(command, "time_processes", lambda *_args, **_names: pytest.fail("times were measured again"))
    again = edgeconvnext.compare(micro, targets=["onnx", NO_TENSORRT], output=folder, batch=(1, 2), **ASKED)
    assert [row.model_dump() for row in again.rows] == [row.model_dump() for row in result.rows]


def test_the_csv_has_a_line_for_each_form(compared: tuple[Comparison, Path]) -> None:
    result, folder = compared
    rows = list(csv.DictReader((folder / "comparison.csv").open()))
    assert [(row["target"], row["form"], row["batch"]) for row in rows] == [
        *(("onnx", timing.form, str(timing.batch)) for timing in result.rows[0].timings),
        (NO_TENSORRT, "", ""),
    ]
    assert float(rows[1]["median_ms"]) == result.rows[0].timings[1].median_ms
    assert rows[-1]["failed"] == result.rows[1].failed
    assert int(rows[0]["bytes"]) == result.rows[0].float_bytes and int(rows[1]["bytes"]) == result.rows[0].int8_bytes


def test_the_command_names_what_was_given(compared: tuple[Comparison, Path], micro: str) -> None:
    words = compared[0].command.split()
    assert words[:3] == ["edgeconvnext", "compare", micro]
    assert words[words.index("--batch") + 1] == "1,2" and words[words.index("--num-images") + 1] == "32"


def test_the_command_line_prints_the_winner(compared: tuple[Comparison, Path], micro: str) -> None:
    _, folder = compared
    options = [f"--{name.replace('_', '-')}={value}" for name, value in ASKED.items()]
    done = run_command("compare", micro, f"--targets=onnx,{NO_TENSORRT}", f"--output={folder}", "--batch=1,2", *options)
    assert done.returncode == (0 if compared[0].rows[0].within else 3), done.stderr
    assert "onnx" in done.stdout and "Not measured: everything of gpu" in " ".join(done.stdout.split())
    assert f"2 of 2: {NO_TENSORRT} failed" in done.stderr


def test_all_targets_failing_is_an_error(micro: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"No target could be exported\. gpu: "):
        edgeconvnext.compare(micro, targets=[NO_TENSORRT], output=tmp_path, **ASKED)


def test_a_fault_of_one_target_does_not_end_the_others(
    compared: tuple[Comparison, Path], micro: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = compared
    real = command.pipeline.export

    def export(request: Any) -> Any:
        if request.target == NO_TENSORRT:
            raise KeyError("fault of a test")
        return real(request)

    monkeypatch.setattr(command.pipeline, "export", export)
    result = edgeconvnext.compare(micro, targets=[NO_TENSORRT, "onnx"], output=folder, batch=(1, 2), **ASKED)
    assert result.rows[0].failed == "fault: KeyError: 'fault of a test'"
    assert result.rows[1].failed is None


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"targets": ["onxx"]}, TargetError, "There is no target 'onxx'"),
        ({"threads": "1,0"}, OptionError, "from 1 on"),
        ({"threads": "one"}, OptionError, "whole numbers separated by commas"),
        ({"threads": (4096,)}, OptionError, "this machine has"),
        ({"gate": -1.0}, OptionError, "takes numbers from 0 on"),
        ({"python": "python3.12"}, OptionError, "means nothing without host"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(
    asked: dict[str, Any], error: type[Exception], message: str, micro: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        edgeconvnext.compare(micro, calib="digits", output=tmp_path / "out", **{"targets": ["onnx"], **asked})
    assert not (tmp_path / "out").exists()


def test_without_targets_each_runtime_that_is_timed_is_taken_once() -> None:
    names = command.default_targets()
    assert "onnx" in names and NO_TENSORRT not in names and "coreml" not in names
    runtimes = [command.load_target(name).exporter for name in names]
    assert len(set(runtimes)) == len(runtimes)


# Processes that are timed


@pytest.fixture(scope="module")
def files(compared: tuple[Comparison, Path]) -> dict[str, TimedFile]:
    run = compared[1] / "onnx"
    return {
        "float": TimedFile("onnx", run / backend("onnx").baseline),
        "int8": TimedFile("onnx", run / backend("onnx").artifact),
    }


def test_a_process_runs_in_its_turn_only_and_on_its_cores(files: dict[str, TimedFile]) -> None:
    with TimedProcess(files["int8"], threads=1, batch=1) as running:
        process = psutil.Process(running._process.pid)
        _wait_until_stopped(process)
        assert process.cpu_affinity() == processes.usable_cores()[:1] == running.opened.cores
        assert running.turn(0.01)
        _wait_until_stopped(process)
    assert not psutil.pid_exists(process.pid)


def _wait_until_stopped(process: psutil.Process) -> None:
    """Wait for the signal to arrive, or fail."""
    for _ in range(500):
        if process.status() == psutil.STATUS_STOPPED:
            return
        time.sleep(0.01)
    pytest.fail("the process was not stopped")


def test_a_file_that_does_not_open_leaves_the_others_their_times(files: dict[str, TimedFile], tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no network")
    times = time_processes({"broken": TimedFile("onnx", broken), **files}, threads=1, batch=1, seconds=0.01)
    assert list(times) == ["broken", "float", "int8"]
    assert isinstance(times["broken"], str) and str(broken) in times["broken"]
    counts = [len(np.unique(times[name].samples.blocks)) for name in ("float", "int8")]
    assert counts[0] == counts[1] >= 10


def test_a_process_that_dies_is_a_reason(files: dict[str, TimedFile], monkeypatch: pytest.MonkeyPatch) -> None:
    real, turns = TimedProcess.turn, []

    def dying(self: TimedProcess, seconds: float) -> list[float]:
        turns.append(self)
        if len(turns) == 4:  # warm-up of both, a turn of one
            self._process.kill()
        return real(self, seconds)

    monkeypatch.setattr(TimedProcess, "turn", dying)
    times = time_processes(files, threads=1, batch=1, seconds=0.01)
    assert times["int8"] == "The process that ran model.onnx ended with exit code -9."
    assert len(times["float"].samples.times_ms) >= 10


def test_a_process_that_does_not_answer_is_given_up(
    files: dict[str, TimedFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    with TimedProcess(files["int8"], threads=1, batch=1) as running:
        monkeypatch.setattr(processes, "ANSWER_SECONDS", 0.05)
        with pytest.raises(ExportError, match="gave no answer"):
            running.turn(30.0)


def test_a_turn_does_not_count_its_first_run() -> None:
    clock = iter(
        [0.0, 1.0, 3.0, 3.0, 4.0, 9.0, 11.0]
    ).__next__  # start; runs of 2 and 5 seconds; looks at the clock between
    runs: list[int] = []
    assert turn(lambda: runs.append(1), 10.0, clock) == [2000.0, 5000.0]
    assert len(runs) == 3


# Who wins


def _row(name: str, loss: float, time_ms: float, size: int, **more: Any) -> TargetRow:
    timing = FormTiming(form="int8", threads=1, batch=1, median_ms=time_ms)
    return TargetRow(
        target=name,
        runtime=name,
        drop_pp=Interval(value=loss, low=loss, high=loss),
        int8_bytes=size,
        timings=[timing],
        **{"within": loss <= 1, "measured_on": "artifact"} | more,
    )


ROWS = [
    _row("fast", 0.5, 1.0, 500),
    _row("small", 0.5, 3.0, 100),
    _row("beaten", 0.6, 3.0, 600),
    _row("lossy", 5.0, 0.5, 50),
    _row("simulated", 0.0, 0.1, 10, measured_on="simulation"),
    TargetRow(target="failed", runtime="r", failed="no runtime"),
]


def test_winners_are_within_the_gate_and_measured() -> None:
    assert [(winner.goal, winner.target, winner.threads) for winner in winners(ROWS, [1, 2], [1])] == [
        ("fastest", "fast", 1),
        ("smallest", "small", None),
    ]
    assert winners(ROWS[3:], [1], [1]) == []


def test_the_front_holds_what_nothing_beats_in_all_three() -> None:
    assert pareto_front(ROWS[:4], 1, 1) == ["fast", "small", "lossy"]
    assert pareto_front(ROWS, 2, 1) == []


def test_equal_targets_do_not_beat_each_other() -> None:
    assert pareto_front([_row("one", 0.5, 1.0, 10), _row("two", 0.5, 1.0, 10)], 1, 1) == ["one", "two"]


def test_without_labels_the_loss_is_disagreement() -> None:
    assert TargetRow(target="t", runtime="r", agreement=97.5).loss == 2.5
    assert TargetRow(target="t", runtime="r").loss is None


def test_cores_are_those_this_process_may_use() -> None:
    if hasattr(os, "sched_getaffinity"):
        assert processes.usable_cores() == sorted(os.sched_getaffinity(0))


def test_a_reason_with_a_semicolon_in_brackets_is_one_line(compared: tuple[Comparison, Path]) -> None:
    comparison = compared[0].model_copy(deep=True)
    for timing in comparison.rows[0].timings:
        timing.noisy = None
    comparison.rows[0].timings[0].noisy = "runs scatter by 20 % (deviation / mean; 15 % at most); 9 processes ran"
    assert noisy_lines(comparison) == [
        "onnx: runs scatter by 20 % (deviation / mean; 15 % at most) (1 thread, batch 1)",
        "onnx: 9 processes ran (1 thread, batch 1)",
    ]


def test_the_page_says_every_key() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "compare.md").read_text()
    words = set(re.findall(r"\w+", text.partition("## comparison.json")[2]))
    records = (Comparison, TargetRow, FormTiming, DeviceTiming, Winner)
    assert {name for record in records for name in record.model_fields} <= words
