"""What a finished stage leaves behind: its record, and the hash that says when it may be used again."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import stat
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.files import TEMPORARY_PREFIX, tree_files, tree_sha256
from edgeconvnext.received import MIB, read_json
from edgeconvnext.resources import PACKAGE
from edgeconvnext.run.provenance import code_of, is_code_of

FORMAT = 1
CONFIG_FILE = "config.json"
MANIFEST_FILE = "manifest.json"
STAGES_FOLDER = "stages"
LOCK_FILE = ".lock"
# A package for Core ML has a dozen files, and a stage writes at most two of them.
MOST_FILES = 10_000
# The largest file of a ConvNeXt-XL: 1.4 GB of float32 weights.
MOST_FILE_BYTES = 16 * 2**30
MOST_RECORD_BYTES = 64 * MIB
# Files that parsers read. Scripts, pages and engines run code of whoever wrote them.
DATA_SUFFIXES = frozenset({".safetensors", ".npz", ".json", ".csv", ".toml", ".txt", ".onnx", ".mlmodel", ".bin"})


class StageValues(BaseModel):
    """Base of what a stage returns beside its files; a stage that returns nothing has this one."""

    model_config = ConfigDict(extra="forbid")


Values = TypeVar("Values", bound=StageValues)


class StageRecord(BaseModel):
    """A finished stage, as `stages/<name>.json` says. files: sha256 by path relative to the run directory.

    code: HMAC of all the rest with the key of the user whose toolkit made the stage (see edgeconvnext.run.provenance); None where
    there was no key, or where the stage goes back to files of somebody else.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: int = FORMAT
    stage: str
    key: str
    inputs: dict[str, Any]
    files: dict[str, str] = Field(max_length=MOST_FILES)
    seconds: float
    peak_mib: float
    values: dict[str, Any]
    code: str | None = None

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, str]) -> dict[str, str]:
        outside = [name for name in files if not is_stage_file(name)]
        if outside:
            raise ValueError(f"{', '.join(outside)} lies outside the run directory, or is not a stage's to write")
        return files

    @property
    def is_data(self) -> bool:
        """Whether no file is one that runs code when it is opened: a script, a page, an engine."""
        return all(PurePosixPath(name).suffix in DATA_SUFFIXES for name in self.files)

    def signed(self, key: bytes | None) -> StageRecord:
        """Return the record with its code, or without one where there is no key."""
        return self.model_copy(update={"code": None if key is None else code_of(self._content(), key)})

    def is_own(self, key: bytes | None) -> bool:
        """Say whether this user's toolkit made the stage: nobody else can write this code."""
        return is_code_of(self.code, self._content(), key)

    def values_as(self, kind: type[Values]) -> Values | None:
        """Return the stage's values, checked; None where they are anything else than `kind` takes."""
        try:
            return kind.model_validate(self.values)
        except (ValueError, RecursionError, OverflowError):
            return None

    def holds_in(self, folder: Path) -> bool:
        """Say whether every file is in `folder` with the recorded content."""
        return all(file_sha256(folder, name) == sha256 for name, sha256 in self.files.items())

    def _content(self) -> bytes:
        return json.dumps(self.model_dump(mode="json", exclude={"code"}), sort_keys=True).encode()


def is_inside(name: str) -> bool:
    """Say whether a relative path stays below its folder: a run handed over by someone else may claim anything."""
    path = PurePosixPath(name)
    # A backslash parts folders on Windows, as in "..\\x", and no file of a run has one.
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set(name) & set("\0\\:")


def is_stage_file(name: str) -> bool:
    """Say whether a stage may write a file of that relative path: below the run, and none that a run writes about itself."""
    first = PurePosixPath(name).parts[:1]
    about = first in ((STAGES_FOLDER,), (LOCK_FILE,), (CONFIG_FILE,), (MANIFEST_FILE,))
    return is_inside(name) and not about and not first[0].startswith(TEMPORARY_PREFIX)


def file_sha256(folder: Path, name: str) -> str | None:
    """Return the sha256 of a file of a run; None where it is gone, no regular file, too large, or reached by a link."""
    try:
        return tree_sha256(folder / name) if is_plain_file(folder, name) else None
    except OSError:
        return None


def is_plain_file(folder: Path, name: str) -> bool:
    """Say whether a run has a regular file of that relative path, not too large, and no link on the way to it."""
    try:
        status = (folder / name).lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size <= MOST_FILE_BYTES and lies_in(folder, name)


def lies_in(folder: Path, name: str) -> bool:
    """Say whether the folders on the way from `folder` to a file of that relative path are folders, not links to elsewhere."""
    return not any((folder / parent).is_symlink() for parent in PurePosixPath(name).parents if parent.parts)


def read_record(folder: Path, stage: str) -> StageRecord | None:
    """Read a stage's record; None where there is none, or one that is not whole or of another format."""
    path = folder / STAGES_FOLDER / f"{stage}.json"
    try:
        record = StageRecord.model_validate(read_json(path, RunDirectoryError, most=MOST_RECORD_BYTES))
    except (RunDirectoryError, ValueError):
        return None
    return record if record.format == FORMAT and record.stage == stage else None


@cache
def code_version() -> str:
    """Hash this package's sources with the versions of torch and torchao: a result of other code is not reused."""
    files = tree_files(PACKAGE).items()
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
