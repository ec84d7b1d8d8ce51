"""Parsers of option values: paths with `~` expanded, and numbers that are numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import typer

from edgeconvnext.errors import UnusablePathError
from edgeconvnext.received import user_path


def path_value(text: str | Path) -> Path:
    """Return a path; `~` and `~user` at its start are expanded, also in --output=~/x, which no shell expands."""
    if "\0" in str(text):
        raise typer.BadParameter("a path holds no NUL character.")
    return user_path(text, UnusablePathError)


def finite(text: str | float) -> float:
    """Return a number; "nan" and "inf", which float() takes and no comparison stops, are usage errors."""
    try:
        number = float(text)
    except ValueError:
        raise typer.BadParameter(f"{str(text)[:80]!r} is not a number.") from None
    if not math.isfinite(number):
        raise typer.BadParameter(f"{number} is not a finite number.")
    return number


def at_least(least: float) -> Callable[[str | float], float]:
    """Return a parser of finite numbers from `least` on."""

    def parse(text: str | float) -> float:
        number = finite(text)
        if number < least:
            raise typer.BadParameter(f"{number:g} is below {least:g}.")
        return number

    return parse
