"""Names that differ between two recordings although what they name is the same; add what a version renames.

All are read as: name in the first recording -> name in the second.
"""

from __future__ import annotations

import re

FILES: dict[str, str] = {}
"""Paths below the case's folder, as in "run/logits.npz"."""

TENSORS: dict[str, str] = {}
"""Patterns of names of tensors and arrays, with their replacements as in `re.sub`; the whole name must match."""

KEYS: dict[str, str] = {}
"""Single keys of report.json and of other descriptions."""


def renamed_file(name: str) -> str:
    return FILES.get(name, name)


def renamed_tensor(name: str) -> str:
    for pattern, replacement in TENSORS.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def renamed_key(key: str) -> str:
    return KEYS.get(key, key)
