"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from docstrings import escaped


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(text: str | None) -> str:
    """Return plain text as one cell: on one line, with nothing in it that is read as markup."""
    return escaped(" ".join((text or "").split()))
