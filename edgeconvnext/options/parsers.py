"""From the text of an option to its value."""

from __future__ import annotations

import math
from pathlib import Path

from edgeconvnext.errors import UnusablePathError
from edgeconvnext.received import user_path


def path(text: str) -> Path:
    """Return a path; `~` and `~user` at its start are expanded, also in --output=~/x, which no shell expands."""
    if "\0" in text:
        raise ValueError("takes a path, and a path holds no NUL character.")
    return user_path(text, UnusablePathError)


def finite(text: str) -> float:
    """Return a number; "nan" and "inf", which float() takes and no comparison stops, are refused."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"takes a number; {text[:80]!r} is none.") from None
    if not math.isfinite(number):
        raise ValueError(f"takes finite numbers; it is {number}.")
    return number


def numbers(text: str) -> tuple[float, ...]:
    """Return numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"takes numbers separated by commas, as in 0.485,0.456,0.406; it is {text!r}.") from None


def counts(text: str) -> tuple[int, ...]:
    """Return whole numbers from 1 on, separated by commas; one that is named twice counts once."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"takes whole numbers separated by commas, as in 1,2; it is {text[:80]!r}.") from None
    if min(numbers) < 1:
        raise ValueError(f"takes numbers from 1 on; it is {text[:80]}.")
    return numbers


def names(text: str) -> tuple[str, ...]:
    """Return names separated by commas; one that is named twice counts once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
