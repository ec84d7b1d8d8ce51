"""Progress shows on a terminal, in a notebook and, where work lasts, in a log."""

from __future__ import annotations

import io
import re
import sys
import time
import types
from collections.abc import Iterator, Sequence

import pytest

from edgeconvnext import progress
from edgeconvnext.progress import progress_bar, without_bars


def track(items: Sequence[int], description: str) -> Iterator[int]:
    with progress_bar(description, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quick_work_writes_nothing_where_stderr_is_not_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "Counting")) == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_a_bar_on_stderr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track(range(3), "Counting")) == [0, 1, 2]
    assert "Counting" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert capfd.readouterr().out == ""


def test_an_inner_bar_stays_silent_and_the_outer_one_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for _ in track(range(2), "Outer"):
        assert list(track(range(2), "Inner")) == [0, 1]
    assert "Inner" not in terminal.getvalue()
    with progress_bar("Bytes", 10, unit="bytes") as advance:
        advance(10)
    assert "Bytes" in terminal.getvalue()


def test_without_bars_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with without_bars():
        assert list(track(range(2), "Hidden")) == [0, 1]
    assert terminal.getvalue() == ""
    assert list(track(range(2), "Shown")) == [0, 1] and "Shown" in terminal.getvalue()


def test_a_log_gets_a_complete_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with progress_bar("Calibrating", 4) as advance:
        advance(3)
        time.sleep(0.3)
    lines = capfd.readouterr().err.splitlines()
    # 0.3 s have room for six lines of 0.05 s; a busy machine may write fewer.
    assert 1 <= len(lines) <= 6
    assert re.fullmatch(r"Calibrating: 3 of 4 \(75 %\), 0 s", lines[0])
    with progress_bar("Folding", None):
        time.sleep(0.2)
    assert "Folding: 0 s" in capfd.readouterr().err


def test_quiet_silences_logs(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    with without_bars(), progress_bar("Hidden", 4):
        time.sleep(0.1)
    assert capfd.readouterr().err == ""


def test_a_notebook_shows_one_line_that_changes_and_goes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown.append(content["text/plain"])

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(content["text/plain"])
        return Handle()

    ipython, ipython_display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    ipython_display.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython_display)
    monkeypatch.setattr(progress, "_CHANGES_SECONDS", 0.02)
    with progress_bar("Calibrating", 10) as advance:
        advance(5)
        time.sleep(0.2)
    assert len(shown) >= 2
    assert shown[0].startswith("Calibrating: 5 of 10 (50 %)")
    assert shown[-1] == ""
    assert capfd.readouterr() == ("", "")
