"""manifest.json: what a finished run is made of, where it came from, and whether it is still what was written."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.escape import for_terminal
from edgeconvnext.files import atomic_write
from edgeconvnext.machine import package_versions
from edgeconvnext.received import parse_json, read_bytes
from edgeconvnext.run.stage_record import (
    CONFIG_FILE,
    FORMAT,
    MANIFEST_FILE,
    MOST_FILES,
    STAGES_FOLDER,
    file_sha256,
    is_inside,
    is_plain_file,
    json_text,
    lies_in,
)
from edgeconvnext.schema.report import StageCost

MOST_STAGES = 1000


class _Manifest(BaseModel):
    """What manifest.json must hold to be read; other keys are passed on as they are."""

    model_config = ConfigDict(extra="allow")

    format: Literal[1]
    config: dict[str, Any]
    stages: list[StageCost] = Field(max_length=MOST_STAGES)
    files: dict[str, str] = Field(max_length=MOST_FILES)


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that ended, with every file as it was written.

    config: what was asked, as resolved. files: sha256 by relative path.
    """

    path: Path
    config: dict[str, Any]
    files: dict[str, str]
    manifest: dict[str, Any]


def write_manifest(
    path: Path, config: dict[str, Any], files: dict[str, str], costs: list[StageCost], details: dict[str, Any]
) -> Path:
    """Write manifest.json into the run directory `path`. files: sha256 by relative path."""
    manifest = {
        "format": FORMAT,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "versions": package_versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "git": git_revision(Path.cwd()),
        "stages": [cost.model_dump() for cost in costs],
        "files": dict(sorted(files.items())),
    }
    clash = set(manifest) & set(details)
    if clash:
        raise ValueError(f"details may not use the manifest's own keys: {', '.join(sorted(clash))}")
    target = path / MANIFEST_FILE
    atomic_write(target, json_text(manifest | details))
    return target


def load_run(path: Path) -> FinishedRun:
    """Read a finished run and check its files against the manifest.

    Raises RunDirectoryError where `path` is no run, the run was not finished, or files changed or are gone.
    """
    manifest_file = path / MANIFEST_FILE
    if not manifest_file.is_file():
        raise RunDirectoryError(_why_no_manifest(path))
    content = read_bytes(manifest_file, RunDirectoryError)
    try:
        manifest = parse_json(content, manifest_file, RunDirectoryError)
        checked = _Manifest.model_validate(manifest)
    except (RunDirectoryError, ValueError, OverflowError) as error:
        raise RunDirectoryError(
            f"{manifest_file} is not a manifest that this version reads. Make the run again with the same command."
        ) from error
    files = checked.files
    outside = [name for name in files if not is_inside(name) or not lies_in(path, name)]
    missing = [name for name in files if name not in outside and not is_plain_file(path, name)]
    wrong = {*outside, *missing}
    changed = [name for name in files if name not in wrong and file_sha256(path, name) != files[name]]
    problems = {"lie outside it": outside, "are gone": missing, "changed after the run was finished": changed}
    for what, names in problems.items():
        if names:
            listed = for_terminal(", ".join(names[:5]))[:500] + (", ..." if names[5:] else "")
            raise RunDirectoryError(
                f"The run {path} is not what its manifest says: {listed} {what}. "
                f"Make it again with the same command and --output {path}; stages that still hold are reused."
            )
    return FinishedRun(path, checked.config, files, manifest)


def _why_no_manifest(path: Path) -> str:
    if not path.exists():
        return f"There is no run directory {path}. Runs are made by edgeconvnext quantize and edgeconvnext export."
    if (path.parent / MANIFEST_FILE).is_file():
        return f"{path} lies inside the run directory {path.parent}; name that folder instead."
    if (path / CONFIG_FILE).is_file() and (path / STAGES_FOLDER).is_dir():
        return (
            f"The run {path} was not finished. Run the command that started it again with --output {path}: "
            "its finished stages are reused."
        )
    return f"{path} is not a run directory: it holds no {MANIFEST_FILE}. A run is what quantize or export wrote."


def git_revision(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout around `folder` and whether files differ from it; None where there is none."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "modified": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
