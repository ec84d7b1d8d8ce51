"""Progress of long work: a Rich bar on a terminal, one line that changes in a notebook, a line every ten seconds in a log.

All of it goes to standard error, or to the notebook's cell. Work that ends within ten seconds leaves no line in a log.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

LINE_SECONDS = 10.0
"""How often a log gets a line."""
_CHANGES_SECONDS = 0.5
"""How often the line of a notebook changes."""

Unit = Literal["items", "bytes"]
_bar_is_shown = False


@contextmanager
def progress_bar(description: str, total: int | None, unit: Unit = "items") -> Iterator[Callable[[int], None]]:
    """Show progress and give a function that moves it on by a number of items or bytes.

    Only the outermost bar shows: two live displays would overwrite each other's lines.
    """
    global _bar_is_shown
    if _bar_is_shown:
        yield lambda amount: None
        return
    _bar_is_shown = True
    try:
        with _shown(description, total, unit) as advance:
            yield advance
    finally:
        _bar_is_shown = False


def is_silent() -> bool:
    """Return whether progress shows nowhere now: --quiet was given, or another bar is up."""
    return _bar_is_shown


def announce(line: str) -> None:
    """Say one thing at once on standard error, where progress shows."""
    if not is_silent():
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


@contextmanager
def without_bars() -> Iterator[None]:
    """Show no progress inside: of several processes on one terminal, one draws, and --quiet wants none."""
    global _bar_is_shown
    before, _bar_is_shown = _bar_is_shown, True
    try:
        yield
    finally:
        _bar_is_shown = before


def _shown(description: str, total: int | None, unit: Unit) -> Any:
    """Return the context of a bar where this process writes to: a notebook, a terminal or a log."""
    if _notebook() is not None:
        return _lines(_State(description, total, unit), _CellLine(), _CHANGES_SECONDS)
    if sys.stderr.isatty():
        return _rich_bar(description, total, unit)
    return _lines(_State(description, total, unit), _LogLines(), LINE_SECONDS)


def _notebook() -> Any:
    """Return the shell of the notebook that this process works for; None where it is none."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if shell is not None and hasattr(shell, "kernel") else None


@contextmanager
def _rich_bar(description: str, total: int | None, unit: Unit) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counters = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *counters,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


@dataclass
class _State:
    """How far a piece of work is. done, total: items or bytes; total None: not known."""

    description: str
    total: int | None
    unit: Unit
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        """Say it in one line, as in "Calibrating: 120 of 256 (47 %), 20 s"."""
        seconds = f"{time.monotonic() - self.began:.0f} s"
        if self.unit == "bytes":
            done = f"{self.done / 2**20:.0f}" + (f" of {self.total / 2**20:.0f}" if self.total else "") + " MiB"
        else:
            done = f"{self.done}" + (f" of {self.total}" if self.total else "")
        share = f" ({100 * self.done // self.total} %)" if self.total else ""
        return (
            f"{self.description}: {done}{share}, {seconds}"
            if self.total or self.done
            else f"{self.description}: {seconds}"
        )


class _LogLines:
    """Lines on standard error, each complete."""

    def show(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Nothing to clear: a log keeps its lines."""


class _CellLine:
    """One line below a notebook's cell, which goes when the work is done."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        from IPython.display import display

        content = {"text/plain": text}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def end(self) -> None:
        if self._handle is not None:
            self._handle.update({"text/plain": ""}, raw=True)


@contextmanager
def _lines(state: _State, lines: _LogLines | _CellLine, seconds: float) -> Iterator[Callable[[int], None]]:
    """Show a line every so many seconds, also while nothing moves on."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(seconds):
            lines.show(state.text)

    writer = threading.Thread(target=write, name="progress", daemon=True)
    try:
        writer.start()
    except RuntimeError:  # no room for a thread: the work itself may still have room
        yield lambda amount: None
        return

    def advance(amount: int) -> None:
        state.done += amount

    try:
        yield advance
    finally:
        ended.set()
        writer.join()
        lines.end()
