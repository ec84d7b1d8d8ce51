"""The documentation as a site: reference pages are whole, every page is in the navigation, and links lead somewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import command_line
import exit_codes
import pytest
import python_api
import target_files
import yaml
from in_process import run_command

import edgeconvnext
from edgeconvnext.options import commands as options
from edgeconvnext.options.declaration import declared_options

ROOT = Path(__file__).resolve().parent.parent
ALL = list(command_line.commands())
MADE_AT_BUILD = {"command-line.md", "python-reference.md", "target-files.md", "exit-codes.md"}
ELSEWHERE = {"architecture.md", "changelog.md", "contributing.md", "report-a-weakness.md", "speed.md"}


def sections(page: str, level: str) -> dict[str, str]:
    """Return the text below each heading of a level, by its heading."""
    parts = re.split(rf"^{level} (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_has_a_section_with_all_of_its_options() -> None:
    of_commands = sections(command_line.page(), "##")
    known = {
        "edgeconvnext quantize": options.Quantize,
        "edgeconvnext export": options.Export,
        "edgeconvnext validate": options.Validate,
        "edgeconvnext remote": options.Remote,
        "edgeconvnext analyze": options.Analyze,
        "edgeconvnext bench": options.Bench,
        "edgeconvnext fold": options.Fold,
        "edgeconvnext prune": options.PruneAndRecover,
        "edgeconvnext roadmap": options.Roadmap,
        "edgeconvnext search": options.Search,
    }
    for command, kind in known.items():
        for option in declared_options(kind).values():
            assert f"`{option.flag}" in of_commands[command], (command, option.name)
    for name, command in command_line.commands():
        for parameter in command.params:
            shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name.upper()
            assert parameter.hidden or f"`{shown}" in of_commands[f"edgeconvnext {name}"], (name, shown)


def test_what_help_lists_is_on_the_page() -> None:
    """The names come from the terminal here, not from the objects that the page is made from."""
    listed = re.findall(r"^ ?│ ([a-z][a-z-]+) {2,}", run_command("--help").stdout, re.MULTILINE)
    assert len(listed) >= 15
    of_commands = sections(command_line.page(), "##")
    for name in listed:
        assert any(heading.startswith(f"edgeconvnext {name}") for heading in of_commands), name


def test_every_public_function_is_documented_with_its_keywords() -> None:
    of_functions = sections(python_api.page(), "###")
    public = [name for name in edgeconvnext.__all__ if not name.startswith("_")]
    assert set(public) <= set(of_functions)
    assert "`num_images`" in of_functions["quantize"]
    assert "`norm_drop`" in of_functions["compress"]
    assert "module: str | Path" not in of_functions["load_model"]
    assert "weights_from: str | None = None" in of_functions["load_model"]


def test_every_class_of_the_python_page_is_where_it_is_looked_for() -> None:
    of_classes = sections(python_api.page(), "###")
    assert set(python_api.RESULTS) <= set(of_classes)
    assert "predict(images: Any)" in of_classes["Artifact"]


def keys(table: dict[str, Any], name: str = "") -> list[tuple[str, str]]:
    """Return table and name of every key below a TOML table."""
    below: list[tuple[str, str]] = []
    for key, value in table.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        if isinstance(inner, dict):
            below += keys(inner, f"{name}.{key}".lstrip("."))
        else:
            below.append((name, key))
    return below


@pytest.mark.parametrize("path", sorted((ROOT / "targets").glob("*.toml")), ids=lambda path: path.stem)
def test_every_key_of_a_shipped_target_file_is_explained(path: Path) -> None:
    of_tables = sections(target_files.page(), "##")
    for table, key in keys(tomllib.loads(path.read_text(encoding="utf-8"))):
        heading = "The file" if not table else f"`[[{table}]]`" if table == "facts" else f"`[{table}]`"
        assert f"| `{key}` |" in of_tables[heading], (table, key)


def test_the_exit_codes_and_all_errors_are_listed() -> None:
    page = exit_codes.page()
    for code in ("0", "1", "2", "3", "4", "70"):
        assert re.search(rf"^\| {code} \| ", page, re.MULTILINE)
    assert len(list(exit_codes.errors())) >= 15
    assert "| `RuntimeMissingError` | `EdgeConvNextError` | 4 |" in page


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages(entry)]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    written = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert sorted(listed) == sorted(written | MADE_AT_BUILD | ELSEWHERE)


def test_the_site_loads_nothing_from_a_network() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert settings["strict"] is True
    assert not re.search(r"https?://", (ROOT / "docs" / "site.css").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        if link not in MADE_AT_BUILD | ELSEWHERE:
            assert (page.parent / link).exists(), link


PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_pages_have_the_options_that_they_name(page: Path) -> None:
    known = {
        name: {flag for part in command.params for flag in (*part.opts, *part.secondary_opts)} for name, command in ALL
    }
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in re.findall(r"^edgeconvnext (.+)$", block, re.MULTILINE):
            words = shlex.split(line, comments=True)
            name = " ".join(words[:2]) if words[0] == "data" else words[0]
            flags = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert words[0].startswith("--") or flags <= known[name] | {"--help"}, line
