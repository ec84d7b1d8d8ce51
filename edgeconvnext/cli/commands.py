"""Commands made from declared options: `@command(options.Export, "EXAMPLE", ...)` on a function of these options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from edgeconvnext.cli.application import CommandWithPanels, app
from edgeconvnext.cli.options import QuietOption
from edgeconvnext.errors import OptionError
from edgeconvnext.options.declaration import Declared, Options, declared_options
from edgeconvnext.progress import without_bars

_METAVARS: dict[Any, str] = {bool: "", str: "<name>"}
_Function = TypeVar("_Function", bound=Callable[..., None])


def command(
    options: type[Options],
    *examples: str,
    name: str | None = None,
) -> Callable[[_Function], _Function]:
    """Add a command that takes the options which `options` declares, and what else its function takes.

    options: a class; the function's first parameter gets one of it, with what the user gave. examples: shown below the
    help.
    name: of the command, where it is not the function's. --quiet is every command's.
    """

    def decorate(function: _Function) -> _Function:
        declared = declared_options(options).values()
        former = [known.about.was for known in declared if known.about.was is not None]
        _, *own = inspect.signature(function).parameters.values()

        def run(context: typer.Context, **values: Any) -> None:
            quiet = values.pop("quiet")
            names = (*(known.name for known in declared), *former)
            given = {name: values[name] for name in names if _is_given(context, name)}
            others = {parameter.name: values[parameter.name] for parameter in own}
            try:
                with without_bars() if quiet else nullcontext():
                    function(_read(options, given), **others)
            except OptionError as error:
                wording = error.wording(_flags(options))
                raise OptionError(lambda spelled: wording) from error

        hints = get_type_hints(function, include_extras=True)
        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(_parameter(known) for known in declared),
            *(_former(name) for name in former),
            *(
                parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
                for parameter in own
            ),
            inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption),
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        register = app.command(
            name or function.__name__,
            cls=CommandWithPanels,
            help=inspect.getdoc(function),
            epilog=examples_text(*examples),
        )
        register(run)
        return function

    return decorate


def examples_text(*examples: str) -> str:
    """Return the text below a command's help."""
    return "\n".join(["Examples:", *(f"  edgeconvnext {example}" for example in examples)])


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _read(options: type[Options], given: dict[str, Any]) -> Options:
    """Return the options that a user gave; a value that one does not take is a usage error."""
    try:
        return options.of(given=given)
    except OptionError as error:
        raise typer.BadParameter(error.wording(_flags(options))) from error


def _flags(options: type[Options]) -> Callable[[str], str]:
    """Return how the command line writes an option, from its name."""
    declared = declared_options(options)
    return lambda name: declared[name].flag if name in declared else "--" + name.replace("_", "-")


def _parameter(known: Declared) -> inspect.Parameter:
    """Return the parameter that Typer makes an option of."""
    default = inspect.Parameter.empty if known.required else known.field.default
    if default == ():
        default = None
    flag = known.flag
    if known.kind is bool and default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    details: dict[str, Any] = {"help": known.about.help, "rich_help_panel": known.panel}
    metavar = known.about.metavar or _METAVARS.get(known.text_kind)
    if metavar is not None:
        details["metavar"] = metavar
    if known.about.default_text is not None:
        details["show_default"] = known.about.default_text
    kind: Any = known.text_kind if default is not None else known.text_kind | None
    annotation = Annotated[kind, typer.Option(flag, **details)]
    return inspect.Parameter(known.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _former(name: str) -> inspect.Parameter:
    """Return a hidden option of a former name; `Options.of` refuses it."""
    option = typer.Option(f"--{name.replace('_', '-')}", hidden=True)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )
