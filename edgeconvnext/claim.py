"""Claim a folder for a run: nothing of the user's is overwritten, and one process at a time writes there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.files import storage_errors
from edgeconvnext.records import MANIFEST_FILE, STAGES_FOLDER

LOCK_FILE = ".lock"


def is_run(path: Path) -> bool:
    """Say whether a folder was made by this package, finished or not."""
    return any((path / name).exists() for name in (MANIFEST_FILE, STAGES_FOLDER, LOCK_FILE))


def claim_folder(path: Path) -> bool:
    """Make the run directory, or check that it is one; True where it is new."""
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(
            f"{path} is a file, so no run directory can be made there. Choose a folder with --output."
        )
    in_the_way = next((parent for parent in path.absolute().parents if parent.exists() and not parent.is_dir()), None)
    if in_the_way is not None:
        raise RunDirectoryError(
            f"{path} cannot be made, because {in_the_way} is a file. Choose a folder with --output."
        )
    with storage_errors(path):
        new = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        if not is_run(path) and any(path.iterdir()):
            raise RunDirectoryError(
                f"{path} holds files that are not a run of edgeconvnext, and they are left alone. "
                "Choose an empty or a new folder with --output."
            )
    return new


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go when the process ends, however it ends."""
    descriptor = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise RunDirectoryError(
                f"{path} is in use by another process (pid {owner}). "
                "Wait until it ends, or choose another folder with --output."
            ) from error
        if os.fstat(descriptor).st_nlink == 0:
            raise RunDirectoryError(
                f"{path} was removed by the process that used it until now. Run the same command again."
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
