"""Compare the figures of reports and descriptions, where keys may have moved or changed their names."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .renamed import is_same_figure, renamed_key

# What differs from run to run, or with the words of a file and not with its numbers.
IGNORED = {
    "environment",
    "format",
    "peak_mib",
    "seconds",
    "size_bytes",
    "size_fp32_bytes",
    "size_int8_bytes",
    "stages",
}

KEYS_THAT_COUNT = 2
"""A figure that is nowhere under its whole path is looked for by so many of its last keys: `fp32.top1`."""

KeyPath = tuple[str, ...]
Leaves = dict[KeyPath, str]


def report_differences(first: Path, second: Path) -> list[str]:
    """Compare all numbers of two JSON reports; times, sizes and texts aside."""
    ours, theirs = (_figures(json.loads(path.read_text())) for path in (first, second))
    return _differences(_renamed(ours), theirs, KEYS_THAT_COUNT)


def description_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Compare all values of two descriptions. A value under another path is the same value; texts of JSON are read."""
    return _differences(_renamed(dict(_leaves(first))), dict(_leaves(second)), 0)


def toml_differences(first: Path, second: Path) -> list[str]:
    """Compare all values of two TOML files, comments aside."""
    return description_differences(*(tomllib.loads(path.read_text()) for path in (first, second)))


def _figures(report: Any) -> Leaves:
    return {
        path: value
        for path, value in _leaves(report)
        if not value.startswith('"') and value != "null" and IGNORED.isdisjoint(path)
    }


def _renamed(leaves: Leaves) -> Leaves:
    return {tuple(renamed_key(key) for key in path): value for path, value in leaves.items()}


def _differences(first: Leaves, second: Leaves, keys_that_count: int) -> list[str]:
    """Compare values under the same path, then those that are left by their last keys, each as often as it occurs."""
    both = [path for path in first if path in second]
    changed = [
        f"{name}: {first[path]} -> {second[path]}"
        for path in both
        if not is_same_figure(name := "/".join(path), first[path], second[path])
    ]
    ours, theirs = (_left_over(leaves, set(both), keys_that_count) for leaves in (first, second))
    absent = [f"{name} {value} only in the first".lstrip() for name, value in (ours - theirs).elements()]
    added = [f"{name} {value} only in the second".lstrip() for name, value in (theirs - ours).elements()]
    return changed + absent + added


def _left_over(leaves: Leaves, paired: set[KeyPath], keys_that_count: int) -> Counter[tuple[str, str]]:
    names: Counter[tuple[str, str]] = Counter()
    for path, value in leaves.items():
        if path not in paired:
            keys = [key for key in path if not key.startswith("[")]
            names["/".join(keys[len(keys) - keys_that_count :]), value] += 1
    return names


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield each scalar as JSON, with the keys and the [positions] that lead to it."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        value = json.loads(value)
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _leaves(item, (*path, f"[{position}]"))
    else:
        yield path, json.dumps(value)
