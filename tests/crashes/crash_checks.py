"""What a disturbed and repeated run must equal, and what nothing may leave behind."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path
from typing import Any

# Times, memory, dates and the checkout around the folder differ between two runs, and so do hashes of files that hold them.
# "reused" says whether a stage was made in this run.
_VARYING = {
    "git",
    "seconds",
    "peak_mib",
    "finished",
    "reused",
    "minutes",
    "spent_s",
    "mac",
    "code",
    "at",
    "images_per_second",
}
_TIMED_FILES = ("report.html", "MODEL_CARD.md", "README.md", "curves.svg", "front.svg", "search.json", "measured.jsonl")


def leftovers(folder: Path) -> list[str]:
    """Return temporary files, marks of moves and held locks in a folder."""
    names = []
    for path in folder.rglob("*") if folder.exists() else []:
        if path.name.startswith(".tmp-") or path.suffix in (".moving", ".part"):
            names.append(path.relative_to(folder).as_posix())
    return sorted(names)


def differences(expected: Path, actual: Path) -> list[str]:
    """Say in which files two folders differ, times and what follows from them aside."""
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for folder in (expected, actual)
    ]
    # The lock's file says who held it; recovery's checkpoint goes when it has served.
    odd = sorted(name for name in names[0] ^ names[1] if not name.endswith(".lock"))
    problems = [f"{name} is there in one of them only" for name in odd]
    for name in sorted(names[0] & names[1]):
        if name.endswith((".lock", *_TIMED_FILES)):
            continue
        one, other = expected / name, actual / name
        if one.read_bytes() != other.read_bytes() and _content(one) != _content(other):
            problems.append(f"{name} differs")
    return problems


def _content(path: Path) -> Any:
    """Return what of a file has to be the same: of JSON and CSV all but times."""
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text()))
    if path.suffix == ".csv":
        return [_without_times(row) for row in csv.DictReader(path.read_text().splitlines())]
    if path.suffix == ".toml":  # comments tell what was measured
        return tomllib.loads(path.read_text())
    if path.suffix == ".ckpt":
        import torch

        state = torch.load(path, weights_only=True)
        return {name: _plain(value) for name, value in state.items() if name not in ("spent_s", "notes")}
    return path.read_bytes()


def _plain(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.cpu().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_times(item)
            for key, item in value.items()
            if key not in _VARYING and not _is_hash_of_times(key)
        }
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return value


def _is_hash_of_times(key: str) -> bool:
    return key.startswith("stages/") or key.endswith(_TIMED_FILES) or key in ("report.json", "key", "report")
