"""An artifact copied out of its run, where a user wants it."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeconvnext.errors import ExportError
from edgeconvnext.escape import for_terminal
from edgeconvnext.files import TEMPORARY_PREFIX, storage_errors


def check_copy(path: Path, artifact: str) -> None:
    """Raise ExportError, before any work, where an artifact cannot be copied to `path`. artifact: its name in the run."""
    suffix = Path(artifact).suffix
    if path.suffix != suffix:
        raise ExportError(
            f"The artifact of this target ends in {suffix}; name a path that does, not {for_terminal(path)}."
        )


def copy_artifact(artifact: Path, path: Path) -> Path:
    """Copy an artifact, a file or a folder, to `path`, over an earlier one; return the path. Raises ExportError."""
    path = path.expanduser()
    if path.exists() and path.is_dir() != artifact.is_dir():
        kinds = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise ExportError(f"{for_terminal(path)} is {kinds[0]}, and the artifact is {kinds[1]}. Choose another name.")
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if artifact.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(artifact, temporary)
            if path.exists():
                shutil.rmtree(path)
        else:
            shutil.copyfile(artifact, temporary)
        temporary.replace(path)
    return path
