"""The crash matrix notices what a crash may do: files that differ, are missing, or are left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from crash_cases import COMMANDS, Command, at_moment, moments_of
from crash_checks import differences, leftovers
from crash_page import write_page


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def test_files_that_differ_or_are_missing_are_named(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", weights="a", only="x", same="s")
    other = folder(tmp_path / "other", weights="b", same="s")
    assert differences(one, other) == ["only is there in one of them only", "weights differs"]


def test_times_are_left_out_and_values_are_not(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("one", "later", "other")]
    for path, seconds, value in zip(names, (1, 2, 2), (5, 5, 6), strict=True):
        path.mkdir()
        record = {"seconds": seconds, "values": {"kl": value}, "files": {"stages/plan.json": str(seconds)}}
        (path / "a.json").write_text(json.dumps(record))
    assert differences(names[0], names[1]) == []
    assert differences(names[0], names[2]) == ["a.json differs"]


def test_times_are_columns_of_a_log(tmp_path: Path) -> None:
    logs = [folder(tmp_path / name) for name in ("one", "later", "other")]
    for path, minutes, loss in zip(logs, (1, 2, 2), (5, 5, 6), strict=True):
        path.mkdir()
        (path / "log.csv").write_text(f"epoch,minutes,loss\n1,{minutes},{loss}\n")
    assert differences(logs[0], logs[1]) == []
    assert differences(logs[0], logs[2]) == ["log.csv differs"]


def test_what_is_left_behind_is_named(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    for name in (".tmp-fold-1", "stages/fold.moving", "stages/fold.json"):
        (tmp_path / name).touch()
    assert leftovers(tmp_path) == [".tmp-fold-1", "stages/fold.moving"]


def test_every_stage_of_a_run_is_a_moment_twice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    (run / "stages" / "fold.json").touch()
    (run / "manifest.json").write_text(json.dumps({"stages": [{"stage": "fold"}, {"stage": "gone"}]}))
    command = Command("x", (), "run", stages=True)
    assert moments_of(command, tmp_path) == ["making fold", "moving fold", "writing the manifest"]


def test_a_moment_is_met_inside_the_function_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeconvnext.run import stage_files
    from edgeconvnext.run.directory import RunDirectory

    monkeypatch.setattr(RunDirectory, "_commit", RunDirectory._commit)  # put back after the test
    monkeypatch.setattr(stage_files, "_move", stage_files._move)
    met: list[str] = []
    at_moment(COMMANDS[0], "making one", lambda: met.append(",".join(sorted(os.listdir(tmp_path / "run")))))  # noqa: PTH208
    at_moment(COMMANDS[0], "moving one", lambda: met.append(str((tmp_path / "run" / "a").exists())))
    with RunDirectory.open(tmp_path / "run", {}) as run:
        run.stage("one", {}, lambda at: (at / "a").touch())  # type: ignore[func-returns-value]
        run.stage("two", {}, lambda at: (at / "b").touch())  # type: ignore[func-returns-value]
    assert len(met) == 2
    assert ".tmp-one-" in met[0] and ",a," not in met[0]
    assert met[1] == "True"


def test_the_page_counts_and_names_what_failed(tmp_path: Path) -> None:
    rows = [
        {"command": "export", "moment": "making fold", "signal": name, "code": 1, "problems": problems}
        for name, problems in (("KILL", []), ("TERM", ["plan differs"]))
    ]
    write_page(rows, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "2 cases, 1 as they should be" in text
    assert "| export | making fold | same | failed |" in text
    assert "export, making fold, TERM: plan differs" in text
