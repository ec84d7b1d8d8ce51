"""Progress on the terminal for long work: a Rich bar on stderr, and nothing at all where stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

_bar_is_shown = False


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: Literal["items", "bytes"] = "items"
) -> Iterator[Callable[[int], None]]:
    """Show a bar and give a function that moves it on by a number of items or bytes.

    Only the outermost bar shows: two live displays would overwrite each other's lines.
    """
    global _bar_is_shown
    if _bar_is_shown or not sys.stderr.isatty():
        yield lambda amount: None
        return
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
    _bar_is_shown = True
    try:
        with bar:
            task = bar.add_task(description, total=total)
            yield lambda amount: bar.advance(task, amount)
    finally:
        _bar_is_shown = False


@contextmanager
def without_bars() -> Iterator[None]:
    """Show no bar inside: of several processes on one terminal, one draws."""
    global _bar_is_shown
    before, _bar_is_shown = _bar_is_shown, True
    try:
        yield
    finally:
        _bar_is_shown = before
