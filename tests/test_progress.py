"""Progress shows on a terminal, and only there."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence

import pytest

from edgeconvnext.progress import progress_bar, without_bars


def track(items: Sequence[int], description: str) -> Iterator[int]:
    with progress_bar(description, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_written_where_stderr_is_not_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
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
