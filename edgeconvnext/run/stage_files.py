"""Files of a stage on the way into its run: written aside, moved to their place, and only then recorded.

They are written to `.tmp-<stage>-<pid>`. `stages/<stage>.moving` lists what a move touches, so that the next opening of the run
can undo one that was killed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.files import TEMPORARY_PREFIX, atomic_write, storage_errors
from edgeconvnext.received import read_json
from edgeconvnext.run.stage_record import (
    MANIFEST_FILE,
    STAGES_FOLDER,
    StageRecord,
    is_stage_file,
    json_text,
    lies_in,
    read_record,
)


@contextmanager
def temporary_folder(path: Path, stage: str) -> Iterator[Path]:
    """Give a folder of the run directory `path` to write a stage's files to; it is removed after the block."""
    folder = path / f"{TEMPORARY_PREFIX}{stage}-{os.getpid()}"
    try:
        with storage_errors(path):
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit(path: Path, record: StageRecord, folder: Path) -> None:
    """Move a stage's files from `folder` to their place in the run directory `path`, then record it."""
    old = read_record(path, record.stage)
    moving = path / STAGES_FOLDER / f"{record.stage}.moving"
    atomic_write(moving, json_text(sorted({*record.files, *(old.files if old else {})})))
    try:
        (path / MANIFEST_FILE).unlink(missing_ok=True)  # from here on the run is no longer what it was
        if old is not None:
            _remove(path, record.stage, list(old.files))
        _move(folder, path)
        atomic_write(path / STAGES_FOLDER / f"{record.stage}.json", json_text(record.model_dump(mode="json")))
    except BaseException:
        _settle(path, moving)
        raise
    moving.unlink()


def remove_leftovers(path: Path) -> None:
    """Remove what a killed process left; this process has the lock, so nobody is writing it."""
    temporary = f"{TEMPORARY_PREFIX}*"
    for leftover in [*path.glob(temporary), *(path / STAGES_FOLDER).glob(temporary)]:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    for moving in (path / STAGES_FOLDER).glob("*.moving"):
        _settle(path, moving)


def _settle(path: Path, moving: Path) -> None:
    """End a move: keep the stage where its record holds, else remove every file the move may have touched."""
    record = read_record(path, moving.stem)
    if record is None or not record.holds_in(path):
        _remove(path, moving.stem, _listed(moving))
    moving.unlink()


def _remove(path: Path, stage: str, files: list[str]) -> None:
    (path / STAGES_FOLDER / f"{stage}.json").unlink(missing_ok=True)
    for file in files:
        if not lies_in(path, file):
            continue
        (path / file).unlink(missing_ok=True)
        for folder in list((path / file).parents):
            if folder == path or not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()


def _move(source: Path, destination: Path) -> None:
    """Move all that is in `source` into `destination`; a folder that is new there arrives in one rename."""
    for item in list(source.iterdir()):
        target = destination / item.name
        if target.is_symlink():  # it would lead out of the run
            target.unlink()
        if item.is_dir() and target.is_dir():
            _move(item, target)
        else:
            item.replace(target)


def _listed(moving: Path) -> list[str]:
    """Read which files a move touches; those that a stage may not write, and what is no list, are left out."""
    try:
        names = read_json(moving, RunDirectoryError)
    except RunDirectoryError:
        return []
    return [
        name for name in (names if isinstance(names, list) else []) if isinstance(name, str) and is_stage_file(name)
    ]
