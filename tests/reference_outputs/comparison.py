"""Compare two recordings, case by case and file by file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .coreml_programs import coreml_differences
from .figures import report_differences, toml_differences
from .onnx_graphs import onnx_differences
from .recording import RECORD
from .renamed import may_be_added, renamed_file
from .tensors import npz_differences, safetensors_differences

Differences = Callable[[Path, Path], list[str]]
"""Takes a file of the first and of the second recording; returns a line for each difference."""


@dataclass(frozen=True)
class Row:
    """One thing that was compared."""

    case: str
    what: str
    differences: list[str]

    @property
    def result(self) -> str:
        """The first difference, and how many there are."""
        if not self.differences:
            return "equal"
        count = len(self.differences)
        return self.differences[0] if count == 1 else f"{self.differences[0]} (and {count - 1} more)"


def compare_recordings(first: Path, second: Path, names: list[str]) -> list[Row]:
    """Compare the cases of these names; one that either recording lacks is a difference."""
    rows = []
    for name in names:
        rows += _compare_case(name, first / name, second / name)
    return rows


def _compare_case(name: str, first: Path, second: Path) -> list[Row]:
    absent = [str(folder) for folder in (first, second) if not (folder / RECORD).is_file()]
    if absent:
        return [Row(name, "case", [f"not recorded: {', '.join(absent)}"])]
    exit_codes = [json.loads((folder / RECORD).read_text())["exit_code"] for folder in (first, second)]
    rows = [Row(name, "exit code", [] if exit_codes[0] == exit_codes[1] else [f"{exit_codes[0]} -> {exit_codes[1]}"])]
    ours = {renamed_file(path): first / path for path in _compared_files(first)}
    theirs = {path: second / path for path in _compared_files(second)}
    for path in sorted(ours.keys() | theirs.keys()):
        if path in ours and path in theirs:
            rows.append(Row(name, path, _comparison(path)(ours[path], theirs[path])))
        elif path in ours or not may_be_added(path):
            rows.append(Row(name, path, [f"only in the {'first' if path in ours else 'second'} recording"]))
    return rows


def _compared_files(folder: Path) -> list[str]:
    """Return paths below a folder; records of stages repeat what is in the report, beside hashes and times."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "stages"]
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if any(name.endswith(ending) for ending in _BY_ENDING)]


def _comparison(name: str) -> Differences:
    return next(compare for ending, compare in _BY_ENDING.items() if name.endswith(ending))


def _byte_differences(first: Path, second: Path) -> list[str]:
    ours, theirs = first.read_bytes(), second.read_bytes()
    if ours == theirs:
        return []
    if len(ours) != len(theirs):
        return [f"{len(ours):,} bytes -> {len(theirs):,} bytes"]
    at = next(index for index, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
    return [f"byte {at:,}: {ours[at]} -> {theirs[at]}"]


def _row_differences(first: Path, second: Path) -> list[str]:
    """Compare the layers that TensorRT's parser lists, in their order."""
    ours, theirs = (list(csv.reader(path.read_text().splitlines())) for path in (first, second))
    if len(ours) != len(theirs):
        return [f"{len(ours)} rows -> {len(theirs)} rows"]
    return [
        f"row {number}: {one} -> {other}"
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True), start=1)
        if one != other
    ]


# Pages, scripts and records hold times, paths and hashes. Engines hold timings: their ONNX and layers.csv stand for them.
_BY_ENDING: dict[str, Differences] = {
    ".safetensors": safetensors_differences,
    ".npz": npz_differences,
    ".onnx": onnx_differences,
    ".mlmodel": coreml_differences,
    ".bin": _byte_differences,
    "report.json": report_differences,
    "roadmap.json": report_differences,
    "plan.toml": toml_differences,
    "layers.csv": _row_differences,
}
