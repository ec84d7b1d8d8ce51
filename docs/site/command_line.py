"""The page "Command line": every command and option, from the declarations that the command line itself is made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main
from markdown_table import cell, table

from edgeconvnext.cli import app

_OPENING = """# Command line

Every command, with every option, its default and what it does. This page is made from the declarations in
`edgeconvnext/options/`, so it says what `edgeconvnext COMMAND --help` says.

An option of a command is a keyword of the Python function of the same name: `--num-images 512` is `num_images=512`
([Python](python-reference.md)). [Exit codes](exit-codes.md) says how a command ends.
"""

_COMPLETION = """## Shell completion

```sh
edgeconvnext --install-completion
```

completes commands and options in bash, zsh, fish and PowerShell. Open a new shell afterwards. `edgeconvnext --show-completion`
prints the script, for a shell configuration that you keep by hand.
"""


def commands() -> Iterator[tuple[str, Any]]:
    """Give the full name of every visible command, as in "data get", and the command."""
    yield from _commands(typer.main.get_command(app), "")


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def page() -> str:
    """Return the page in Markdown."""
    known = list(commands())
    overview = table(
        ("command", "what it does"), [(f"[`{name}`](#{anchor(name)})", cell(command.help)) for name, command in known]
    )
    return "\n".join([_OPENING, overview, "", _COMPLETION, *(_section(name, command) for name, command in known)])


def anchor(name: str) -> str:
    """Return the anchor of a command's section, as the site makes it from the heading."""
    return "edgeconvnext-" + name.replace(" ", "-")


def _section(name: str, command: Any) -> str:
    parameters = [parameter for parameter in command.params if not parameter.hidden]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    usage = " ".join(["edgeconvnext", name, "[OPTIONS]", *(argument.name.upper() for argument in arguments)])
    lines = [f"## edgeconvnext {name}", "", command.help, "", f"```text\n{usage}\n```", ""]
    if command.epilog:
        examples = "\n".join(line.strip() for line in command.epilog.splitlines()[1:])
        lines += [f"```sh\n{examples}\n```", ""]
    if arguments:
        rows = [(f"`{argument.name.upper()}`", cell(argument.help)) for argument in arguments]
        lines += [table(("argument", "what it is"), rows), ""]
    for panel, options in _panels(parameters).items():
        rows = [(_flags(option), _default(option), cell(option.help)) for option in options]
        lines += [table((panel, "default", "what it does"), rows), ""]
    return "\n".join(lines)


def _panels(parameters: list[Any]) -> dict[str, list[Any]]:
    panels: dict[str, list[Any]] = {}
    for parameter in parameters:
        if parameter.param_type_name == "option":
            panels.setdefault(parameter.rich_help_panel or "Options", []).append(parameter)
    return panels


def _flags(option: Any) -> str:
    names = [*option.opts, *option.secondary_opts]
    value = "" if option.is_flag else " " + (option.metavar or f"<{_kind(option)}>")
    return ", ".join(f"`{name}{value}`" for name in names)


def _kind(option: Any) -> str:
    annotation = option.type_descriptor.annotation
    return getattr(annotation, "__name__", "value")


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return cell(option.show_default)
    if option.is_flag:
        return "on" if option.default else "off"
    return "" if option.default in (None, "", ()) else f"`{option.default}`"
