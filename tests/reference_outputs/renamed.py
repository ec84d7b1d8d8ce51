"""What may differ between two recordings: names, figures that were rounded to float32, and files that a version adds.

Names are read as: name in the first recording -> name in the second.
"""

from __future__ import annotations

import re

FILES: dict[str, str] = {}
"""Paths below the case's folder, as in "run/logits.npz"."""

TENSORS: dict[str, str] = {r"(.*)\binput_affine\b(.*)": r"\1channel_scaling\2"}
"""Patterns of names of tensors and arrays, with their replacements as in `re.sub`; the whole name must match."""

KEYS: dict[str, str] = {
    "top1_drop_pp": "score_drop_pp",
    "fp32_top1": "fp32_score",
    "preparation": "smoothing",
    "top1": "value",
    "top1_high": "high",
    "top1_low": "low",
}
"""Single keys of report.json and of other descriptions."""

FLOAT32_DECIBELS = (
    r"(.*/)?quantization/layers/\[\d+\]/\w*sqnr_db",
    r"plan/decisions/.*",
)
"""Paths of decibels that the first recording rounded to float32: they may differ by one unit in its last place."""

ADDED_FILES = (r"roadmap/.*/device/layer_values\.bin",)
"""Patterns of files of the second recording alone: blocks of ResNets are compared as well."""


def renamed_file(name: str) -> str:
    return FILES.get(name, name)


def renamed_tensor(name: str) -> str:
    for pattern, replacement in TENSORS.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def renamed_key(key: str) -> str:
    return KEYS.get(key, key)


def may_be_added(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in ADDED_FILES)


def is_same_figure(path: str, first: str, second: str) -> bool:
    """Say whether two figures, as JSON, are equal, or decibels that agree as far as float32 holds them."""
    if first == second:
        return True
    if not any(re.fullmatch(pattern, path) for pattern in FLOAT32_DECIBELS):
        return False
    try:
        one, other = float(first), float(second)
    except ValueError:
        return False
    return abs(one - other) <= 2**-23 * max(abs(one), abs(other))
