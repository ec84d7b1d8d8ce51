"""Docstrings of this package as Markdown: sentences "name: what it is" become a list."""

from __future__ import annotations

import re
from collections.abc import Collection

_NAMES = re.compile(r"(?:(?<=^)|(?<=\. )|(?<=; ))([a-z]\w*(?:, [a-z]\w*)*): ")


def as_markdown(docstring: str, names: Collection[str]) -> str:
    """Return a docstring in Markdown. names: of parameters or fields; a sentence that begins with one becomes an entry."""
    paragraphs = [" ".join(part.split()) for part in docstring.strip().split("\n\n")]
    return "\n\n".join(_paragraph(text, names) for text in paragraphs)


def _paragraph(text: str, names: Collection[str]) -> str:
    entries: list[str] = []
    rest = text
    starts = [match for match in _NAMES.finditer(text) if set(match[1].split(", ")) <= set(names)]
    if not starts:
        return escaped(text)
    rest = text[: starts[0].start()].strip()
    ends = [match.start() for match in starts[1:]] + [len(text)]
    for match, end in zip(starts, ends, strict=True):
        named = ", ".join(f"`{name}`" for name in match[1].split(", "))
        entries.append(f"- {named}: {escaped(text[match.end() : end].strip())}")
    return "\n".join(([escaped(rest), ""] if rest else []) + entries)


def escaped(text: str) -> str:
    """Return text in which nothing outside of code is read as markup."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([*_\[\]|])", r"\\\1", text)
