"""What a finished stage leaves behind: its record, and the hash that says when it may be used again."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from edgeconvnext.files import tree_files, tree_sha256

FORMAT = 1
CONFIG_FILE = "config.json"
MANIFEST_FILE = "manifest.json"
STAGES_FOLDER = "stages"


class StageRecord(BaseModel):
    """A finished stage, as `stages/<name>.json` says. files: sha256 by path relative to the run directory."""

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    stage: str
    key: str
    inputs: dict[str, Any]
    files: dict[str, str]
    seconds: float
    peak_mib: float
    values: dict[str, Any]

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, str]) -> dict[str, str]:
        outside = [name for name in files if not is_inside(name)]
        if outside:
            raise ValueError(f"{', '.join(outside)} lies outside the run directory")
        return files

    def holds_in(self, folder: Path) -> bool:
        """Say whether every file is in `folder` with the recorded content."""
        return all(
            (folder / name).is_file() and tree_sha256(folder / name) == sha256 for name, sha256 in self.files.items()
        )


def is_inside(name: str) -> bool:
    """Say whether a relative path stays below its folder: a run handed over by someone else may claim anything."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def read_record(folder: Path, stage: str) -> StageRecord | None:
    """Read a stage's record; None where there is none, or one that is not whole or of another format."""
    try:
        record = StageRecord.model_validate_json((folder / STAGES_FOLDER / f"{stage}.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return record if record.format == FORMAT and record.stage == stage else None


@cache
def code_version() -> str:
    """Hash this package's sources with the versions of torch and torchao: a result of other code is not reused."""
    files = tree_files(Path(__file__).parent).items()
    sources = {
        name: tree_sha256(path) for name, path in files if path.suffix in {".py", ".jinja", ".css", ".swift", ".txt"}
    }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchao")}
    return json_sha256({"sources": sources, "versions": versions})


def plain_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return `value` as JSON would give it back."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=_encode))
    return plain


def _encode(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON")


def json_sha256(value: object) -> str:
    """Hash a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def json_text(value: object) -> str:
    """Write a JSON value as the files of a run hold it."""
    return json.dumps(value, indent=1) + "\n"
