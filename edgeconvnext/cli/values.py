"""Parsers of options that are declared on a command's own function; a value that they do not take is a usage error."""

from __future__ import annotations

from pathlib import Path

import typer

from edgeconvnext.options import parsers


def path_value(text: str | Path) -> Path:
    """Return a path, as `parsers.path` does."""
    try:
        return parsers.path(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def finite(text: str | float) -> float:
    """Return a number that is finite."""
    try:
        return parsers.finite(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
