"""The page "Target files": every table and key, from the classes that read them, and the files that ship."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstrings import as_markdown
from markdown_table import table
from pydantic_core import PydanticUndefined

from edgeconvnext.config_file import Section
from edgeconvnext.targets import Target, target_files

_OPENING = """# Target files

Every key that a target file may have, its values and its default. Write one for a device that no shipped target fits, and name it
with `--target my.toml`. This page is made from `edgeconvnext/targets.py`.

A target file is TOML. It says how a network is quantised, which runtime it is written for, and which gates the artifact must meet.
Start from a shipped file:

```sh
edgeconvnext targets
```
"""


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Give the dotted name of every table of a target file, "" for the file itself, and the class that reads it."""
    yield from _sections("", Target)


def _sections(name: str, kind: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    yield name, kind
    for key, member in _members(kind):
        yield from _sections(f"{name}.{key}".lstrip("."), member)


def _members(kind: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """Give the keys of a class that are tables, or lists of tables."""
    for key, hint in get_type_hints(kind).items():
        of_list = get_args(hint)[0] if get_origin(hint) is list else hint
        if key in kind.model_fields and inspect.isclass(of_list) and issubclass(of_list, Section):
            yield key, of_list


def page() -> str:
    """Return the page in Markdown."""
    return "\n".join([_OPENING, *(_section(name, kind) for name, kind in sections()), _shipped()])


def _section(name: str, kind: type[Section]) -> str:
    heading = _heading(name)
    tables = dict(_members(kind))
    rows = [
        (f"`{key}`", _values(get_type_hints(kind)[key]), _default(field))
        for key, field in kind.model_fields.items()
        if key not in tables
    ]
    text = inspect.getdoc(kind) or ""
    return "\n".join(
        [f"## {heading}", "", as_markdown(text, kind.model_fields), "", table(("key", "values", "default"), rows), ""]
    )


def _heading(name: str) -> str:
    if not name:
        return "The file"
    return f"`[[{name}]]`" if name == "facts" else f"`[{name}]`"


def _values(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in get_args(hint))
    if get_origin(hint) is list:
        return f"list: {_values(get_args(hint)[0])}"
    members = [member for member in get_args(hint) if member is not type(None)]
    if members:
        return " or ".join(_values(member) for member in members)
    return {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}[hint]


def _default(field: Any) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "required"
    return "absent" if field.default is None else f"`{json.dumps(field.default)}`"


def _shipped() -> str:
    lines = ["## Shipped target files", ""]
    for name, path in target_files().items():
        lines += [f"### {name}", "", f"```toml\n{path.read_text(encoding='utf-8').strip()}\n```", ""]
    return "\n".join(lines)
