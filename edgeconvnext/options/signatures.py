"""Functions that take options as keywords: `inspect.signature`, editors and mypy see those that a dataclass declares."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, get_type_hints

from edgeconvnext.options.declaration import Options, declared_options

_Taken = ParamSpec("_Taken")
_Options = TypeVar("_Options")
_Subject = TypeVar("_Subject")
_Result = TypeVar("_Result")


def takes_options(
    options: Callable[_Taken, _Options],
) -> Callable[[Callable[[_Options], _Result]], Callable[_Taken, _Result]]:
    """Turn a function of options into one that takes each of them as a keyword. options: their class."""

    def decorate(function: Callable[[_Options], _Result]) -> Callable[_Taken, _Result]:
        @functools.wraps(function)
        def call(*args: _Taken.args, **keywords: _Taken.kwargs) -> _Result:
            return function(_read(function.__name__, options, args, keywords))

        _describe(call, function, options)
        return call

    return decorate


def takes_subject_and_options(
    options: Callable[_Taken, _Options],
) -> Callable[[Callable[[_Subject, _Options], _Result]], Callable[Concatenate[_Subject, _Taken], _Result]]:
    """Do the same for a function of what it works on, such as a model or a run, and of options."""

    def decorate(
        function: Callable[[_Subject, _Options], _Result],
    ) -> Callable[Concatenate[_Subject, _Taken], _Result]:
        @functools.wraps(function)
        def call(subject: _Subject, /, *args: _Taken.args, **keywords: _Taken.kwargs) -> _Result:
            return function(subject, _read(function.__name__, options, args, keywords))

        _describe(call, function, options)
        return call

    return decorate


def _read(function: str, options: Callable[..., _Options], args: tuple[Any, ...], keywords: dict[str, Any]) -> _Options:
    """Return the options of a call; raises OptionError, and TypeError for arguments that do not fit the signature."""
    kind = cast(type[Options], options)
    former = {known.about.was for known in declared_options(kind).values()} & keywords.keys()
    if former:
        kind.of(given=keywords)
    try:
        given = inspect.signature(kind).bind(*args, **keywords).arguments
    except TypeError as error:
        raise TypeError(f"{function}(): {error}") from None
    return cast(_Options, kind.of(given=given))


def _describe(call: Callable[..., Any], function: Callable[..., Any], options: Callable[..., Any]) -> None:
    """Give a function the signature that its callers see, and its docstring a line for each option."""
    kind = cast(type[Options], options)
    hints, declared = get_type_hints(kind), declared_options(kind)
    *subject, _ = inspect.signature(function).parameters.values()
    taken = inspect.signature(kind).parameters.values()
    signature = inspect.Signature(
        [*subject, *(parameter.replace(annotation=hints[parameter.name]) for parameter in taken)],
        return_annotation=inspect.signature(function).return_annotation,
    )
    call.__signature__ = signature  # type: ignore[attr-defined]
    lines = [f"    {name}: {known.about.help}" for name, known in declared.items()]
    call.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Options:", *lines])
