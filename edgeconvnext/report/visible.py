"""Records made safe to show: names of classes, files, tensors and machines may hold control characters and line breaks."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from pydantic import BaseModel

from edgeconvnext.escape import for_terminal

Shown = TypeVar("Shown")


def visible(value: Shown) -> Shown:
    """Return a record with every text in it, keys too, on one line and without control characters.

    Every renderer begins with this; what its own language would obey (Rich markup, HTML, Markdown) it escapes where it writes.
    Records are pydantic models and dataclasses, in lists, tuples and dicts of any depth; anything else stays as it is.
    """
    return _visible(value)


def _visible(value: Any) -> Any:
    if type(value) is str:
        return value if value.isprintable() else for_terminal(value)
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _visible(getattr(value, name)) for name in type(value).model_fields})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _visible(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **fields)
    if type(value) is list:
        return [_visible(item) for item in value]
    if type(value) is tuple:
        return tuple(_visible(item) for item in value)
    if type(value) is dict:
        return {_visible(key): _visible(item) for key, item in value.items()}
    return value
