"""How an option is declared: a field of a dataclass, with its help text, parser and bounds.

    @dataclass(frozen=True, kw_only=True)
    class Measuring(Options):
        PANEL = "Measuring"
        threads: int = option(1, "Threads of the runtime while timing.", least=1)

That one field is `--threads` on the command line, `threads=` in Python, and `Request.threads`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeconvnext.errors import OptionError

_Value = TypeVar("_Value")
_KEY = "option"


@dataclass(frozen=True)
class About:
    """What is known of an option beside its name, type and default.

    flag: how the command line writes it, where that is not --name. metavar: its value in the help. parse: from text to value;
    raises ValueError or an EdgeConvNextError. least: the smallest number that is taken. panel: heading in help, where that is not
    the group's. needs: the switch without which it means nothing. was: its former name, which is refused. default_text: what the
    help gives as default, where that is no constant.
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    least: float | None = None
    panel: str | None = None
    needs: str | None = None
    was: str | None = None
    default_text: str | None = None


def about(help: str, **details: Any) -> Mapping[str, About]:
    """Return the metadata of a dataclass field that is an option; details: as in `About`."""
    return {_KEY: About(help, **details)}


def option(default: _Value, help: str, **details: Any) -> _Value:
    """Declare an option with a default; details: as in `About`. One without default is `field(metadata=about(...))`."""
    return field(default=default, metadata=about(help, **details))


@dataclass(frozen=True)
class Declared:
    """An option of a class: its field, what is known of it, the type that the command line reads, and its panel in help."""

    field: Field[Any]
    about: About
    kind: Any
    panel: str

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def required(self) -> bool:
        return self.field.default is MISSING

    @property
    def flag(self) -> str:
        """What a user writes on the command line, as in --num-images."""
        return self.about.flag or "--" + self.name.replace("_", "-")

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that it takes, where they are few; else ()."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def text_kind(self) -> Any:
        """The type of what the command line reads: the members' of a Literal, whose check is `problem`."""
        return type(self.choices[0]) if self.choices else self.kind

    def parsed(self, value: Any) -> Any:
        """Return the value of text, as the command line gives it; other values as they are."""
        parse = self.about.parse
        if parse is None or not isinstance(value, str | Path):
            return value
        try:
            return parse(str(value))
        except ValueError as error:
            raise _wrong_value(self.name, str(error)) from None

    def problem(self, value: Any) -> str | None:
        """Say what is wrong with a value, as in "takes 4 or 8; it is 5.", or None."""
        if value is None:
            return None
        if self.choices and value not in self.choices:
            *others, last = map(str, self.choices)
            return f"takes {', '.join(others)}{' or ' if others else ''}{last}; it is {value}."
        if isinstance(value, float) and not math.isfinite(value):
            return f"takes finite numbers; it is {value}."
        if self.about.least is not None and value < self.about.least:
            return f"takes numbers from {self.about.least:g} on; it is {value:g}."
        return None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of the groups and of what commands take.

    PANEL: heading of the group in help. given: names of the options that were given, also at their default.
    """

    PANEL: ClassVar[str] = "Options"
    given: frozenset[str] = field(default=frozenset(), init=False, compare=False, repr=False)

    @classmethod
    def of(cls, *, given: Mapping[str, Any]) -> Self:
        """Return options with these values, parsed and checked; raises OptionError.

        Options of a former name raise it as well; a name that never was one is a TypeError, as for every Python function.
        """
        declared = declared_options(cls)
        for known in declared.values():
            if known.about.was is not None and known.about.was in given:
                raise _renamed(known.about.was, known.name)
        values = {name: declared[name].parsed(value) if name in declared else value for name, value in given.items()}
        options = cls(**values)
        object.__setattr__(options, "given", frozenset(given))
        options.check()
        return options

    @property
    def stated(self) -> dict[str, Any]:
        """The options that were given, by name."""
        return {name: getattr(self, name) for name in declared_options(type(self)) if name in self.given}

    def is_given(self, name: str) -> bool:
        """Whether an option was given, or differs from its default."""
        default = declared_options(type(self))[name].field.default
        return name in self.given or getattr(self, name) != default

    def check(self) -> None:
        """Raise OptionError for values that an option does not take, and for options that mean nothing without another."""
        declared = declared_options(type(self))
        for name, known in declared.items():
            problem = known.problem(getattr(self, name))
            if problem is not None:
                raise _wrong_value(name, problem)
        for switch in dict.fromkeys(known.about.needs for known in declared.values() if known.about.needs):
            dependent = [name for name, known in declared.items() if known.about.needs == switch and name in self.given]
            if dependent and not getattr(self, switch):
                raise _means_nothing(dependent, switch)


def _wrong_value(name: str, problem: str) -> OptionError:
    return OptionError(lambda spelled: f"{spelled(name)} {problem}")


def _means_nothing(names: list[str], switch: str) -> OptionError:
    verb = "mean" if len(names) > 1 else "means"
    return OptionError(lambda spelled: f"{' and '.join(map(spelled, names))} {verb} nothing without {spelled(switch)}.")


def _renamed(old: str, new: str) -> OptionError:
    return OptionError(lambda spelled: f"There is no option {spelled(old)} any more; use {spelled(new)}.")


def declared_options(options: type[Options]) -> dict[str, Declared]:
    """Return the options of a class by name, in the order that help lists them in."""
    kinds = get_type_hints(options)
    return {
        known.name: _declared(options, known, kinds[known.name]) for known in fields(options) if _KEY in known.metadata
    }


def _declared(options: type[Options], known: Field[Any], hint: Any) -> Declared:
    known_about = known.metadata[_KEY]
    members = [member for member in get_args(hint) if member is not type(None)]
    alternatives = members if get_origin(hint) in (Union, UnionType) else [hint]
    kind = str if known_about.parse is not None or str in alternatives else alternatives[0]
    # An option that a command declares anew stays in the panel of the group that declared it first.
    owners: list[Any] = [base for base in options.__mro__ if known.name in getattr(base, "__dataclass_fields__", {})]
    return Declared(known, known_about, kind, known_about.panel or owners[-1].PANEL)
