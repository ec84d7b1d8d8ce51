"""Text from outside, made safe for where it is shown: a terminal, Rich markup, HTML, Markdown.

Names of classes, files, tensors and machines, and whatever a board prints, may hold anything: control sequences that repaint a
terminal, line breaks that forge a line of output, markup that a renderer obeys. One function for each place; all show every
character that was there.
"""

from __future__ import annotations

import html
import re
import unicodedata

# Control (Cc), format (Cf: bidirectional overrides, zero-width characters), surrogates (Cs), line and paragraph separators.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_MARKDOWN_SPECIALS = re.compile(r"([\\`*_{}\[\]()#+!|~>-])")
# A URL becomes a link in many Markdown readers although nothing marks it as one.
_MARKDOWN_AUTOLINK = re.compile(r"(?i)\b(https?|ftp|mailto)(:)|\b(www)(\.)|(@)")


def for_terminal(text: object, most: int | None = None) -> str:
    """Return `text` on one line with every control and format character written as an escape, as in \\x1b or \\n.

    most: characters; what is longer ends in "...".
    """
    shown = "".join(_visible(character) for character in str(text))
    return shown if most is None or len(shown) <= most else f"{shown[:most]}..."


def lines_for_terminal(text: object) -> str:
    """Return `text` with its line breaks and tabs, every other control and format character written as an escape."""
    return "".join(character if character in "\n\t" else _visible(character) for character in str(text))


def for_markup(text: object) -> str:
    """Return `text` for a string that Rich reads as markup: as for a terminal, with no tag left that Rich would obey."""
    from rich.markup import escape

    return escape(for_terminal(text))


def for_html(text: object) -> str:
    """Return `text` for an HTML text or a quoted attribute."""
    return html.escape(for_terminal(text), quote=True)


def for_markdown(text: object) -> str:
    """Return `text` for a Markdown paragraph, heading or table cell: shown as it is, no markup, HTML or link in it."""
    escaped = _MARKDOWN_SPECIALS.sub(r"\\\1", for_terminal(text)).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN_AUTOLINK.sub(_unlinked, escaped)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE_CATEGORIES:
        return character
    return character.encode("unicode_escape").decode("ascii")


def _unlinked(match: re.Match[str]) -> str:
    return "".join(f"&#{ord(part)};" if part in (":", ".", "@") else part for part in match.groups() if part)
