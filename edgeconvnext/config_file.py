"""TOML files read into typed sections; errors that name the key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeconvnext.errors import ConfigFileError, nearest
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import read_toml

Model = TypeVar("Model", bound=BaseModel)

_MOST_PROBLEMS = 10


class Section(BaseModel):
    """Base of every table in a target file: unknown keys are errors, values are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def parse_toml(path: Path, model: type[Model]) -> Model:
    """Read a TOML file into a pydantic model, turning every problem into one ConfigFileError that names its key."""
    values = read_toml(path, ConfigFileError)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigFileError(f"{path} does not hold: {explain(error, model)}") from error


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Say each problem of a pydantic validation as 'key: what is wrong', with the nearest name for a misspelt one."""
    sentences = []
    for problem in error.errors():
        key = for_terminal(".".join(str(part) for part in problem["loc"]), 80)
        message, found = problem["msg"], problem["input"]
        if problem["type"] == "extra_forbidden":
            known = _section(model, problem["loc"][:-1]).model_fields
            sentence = f"unknown key {key}.{nearest(str(problem['loc'][-1]), known)}"
        elif problem["type"] == "missing":
            sentence = f"{key} is missing."
        elif problem["type"] == "value_error":
            sentence = f"{key + ': ' if key else ''}{problem['ctx']['error']}."
        else:
            # "Input should be 'stem', 'head' or 'depthwise'" lists the choices of a Literal between quotes.
            choices = re.findall(r"'([^']+)'", message) if problem["type"] == "literal_error" else []
            close = nearest(str(found), choices) if choices else ""
            sentence = f"{key}: {message[0].lower()}{message[1:]} (found {_brief(found)}).{close}"
        sentences.append(for_terminal(sentence, 500))
    return " ".join(sentences[:_MOST_PROBLEMS]) + (" ..." if len(sentences) > _MOST_PROBLEMS else "")


def _brief(value: object) -> str:
    try:
        return for_terminal(repr(value), 80)
    except ValueError:  # hexadecimal integers of a TOML file may be longer than Python writes out in decimals
        return "a number of too many digits"


def _section(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the class of the table at `path` of a file read as `model`."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return model
