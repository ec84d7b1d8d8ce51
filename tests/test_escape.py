"""Text from outside changes nothing where it is shown: not the terminal, not the markup, not the page, not the model card."""

from __future__ import annotations

import html
import io

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from edgeconvnext.escape import for_html, for_markdown, for_markup, for_terminal, lines_for_terminal

HOSTILE = [
    "\x1b[2J\x1b[1;1Herror: none",
    "cat\r\nerror: forged",
    "[bold]x[/bold]",
    "[/bold]",
    "\\[red]",
    "[link=file:///etc/passwd]x[/link]",
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "![x](http://x/y)",
    "| a | b |",
    "a\u202etxt.exe",
    "\u2028new line",
    "\ud800",
    "`code` *star* _under_ # head",
    "www.example.org http://example.org a@b.org",
    "\x9b31m",
    "&lt;b&gt;",
    "- item",
    "1. item",
    "~~~",
    "    indented",
]


def test_control_and_format_characters_are_written_as_escapes() -> None:
    assert for_terminal("a\x1b[1m\n\u202eb\x9b\u2028") == "a\\x1b[1m\\n\\u202eb\\x9b\\u2028"
    assert for_terminal("größe 猫 🐈 é") == "größe 猫 🐈 é"


def test_what_is_too_long_is_cut_after_it_was_escaped() -> None:
    assert for_terminal("abcd", 4) == "abcd"
    assert for_terminal("a\x1bcde", 5) == "a\\x1b..."


def test_output_of_several_lines_keeps_its_lines_and_loses_its_control_sequences() -> None:
    assert lines_for_terminal("a\n\tb\x1b[2Jc\r") == "a\n\tb\\x1b[2Jc\\r"


@pytest.mark.parametrize("text", HOSTILE)
def test_rich_prints_marked_up_text_as_it_is(text: str) -> None:
    out = io.StringIO()
    Console(file=out, width=500, force_terminal=True, color_system=None, highlight=False, emoji=False).print(
        for_markup(text)
    )
    assert out.getvalue() == for_terminal(text) + "\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_html_gives_back_the_text_and_holds_no_tag_or_quote(text: str) -> None:
    escaped = for_html(text)
    assert not set(escaped) & set("<>\"'")
    assert html.unescape(escaped) == for_terminal(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_renders_to_the_text_alone(text: str) -> None:
    rendered = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(
        f"| a |\n|---|\n| x{for_markdown(text)} |\n"
    )
    cell = rendered.split("<tbody>")[1].split("<td>")[1].split("</td>")[0]
    assert "<" not in cell
    assert html.unescape(cell).split() == f"x{for_terminal(text)}".split()
