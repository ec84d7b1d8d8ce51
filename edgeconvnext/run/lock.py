"""The folder of a run and its lock: nothing of the user's is overwritten, and one process at a time writes there."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.escape import for_terminal
from edgeconvnext.files import storage_errors
from edgeconvnext.received import reason
from edgeconvnext.run.stage_record import LOCK_FILE, MANIFEST_FILE, STAGES_FOLDER

_MOST_PID_DIGITS = 20


def is_run(path: Path) -> bool:
    """Say whether a folder was made by this package, finished or not."""
    return any((path / name).exists() for name in (MANIFEST_FILE, STAGES_FOLDER, LOCK_FILE))


def create_run_folder(path: Path) -> bool:
    """Create the folder of a run, or check that it is one; True where it is new.

    Raises RunDirectoryError where it cannot be created, is a file, or holds files that are not a run's.
    """
    try:
        with storage_errors(path):
            return _created(path)
    except OSError as error:
        raise RunDirectoryError(
            f"{for_terminal(path)} cannot be made or read: {reason(error)}. Choose another folder with --output."
        ) from error


def _created(path: Path) -> bool:
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(
            f"{path} is a file, so no run directory can be made there. Choose a folder with --output."
        )
    file = next((parent for parent in path.absolute().parents if parent.exists() and not parent.is_dir()), None)
    if file is not None:
        raise RunDirectoryError(f"{path} cannot be made, because {file} is a file. Choose a folder with --output.")
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    if not is_run(path) and any(path.iterdir()):
        raise RunDirectoryError(
            f"{path} holds files that are not a run of edgeconvnext, and they are left alone. "
            "Choose an empty or a new folder with --output."
        )
    return new


@contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Lock the folder for this process; the system releases the lock when the process ends, however it ends.

    Raises RunDirectoryError where another process has the lock.
    """
    file = path / LOCK_FILE
    lock = FileLock(file, mode=0o644)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not file.exists():
            raise RunDirectoryError(
                f"{path} was removed by the process that used it until now. Run the same command again."
            ) from error
        raise RunDirectoryError(
            f"{path} is in use by another process (pid {_owner(file)}). "
            "Wait until it ends, or choose another folder with --output."
        ) from error
    try:
        _write_owner(file)
        yield
    finally:
        lock.release()


def _owner(file: Path) -> str:
    """Return the pid in a lock file, for a message."""
    with contextlib.suppress(OSError), _lock_file(file, os.O_RDONLY) as descriptor:
        owner = os.read(descriptor, _MOST_PID_DIGITS).decode(errors="replace").strip()
        if owner.isascii() and owner.isdecimal():
            return owner
    return "unknown"


def _write_owner(file: Path) -> None:
    """Write this process's pid into the lock file, which it has locked."""
    with contextlib.suppress(OSError), _lock_file(file, os.O_WRONLY) as descriptor:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())


@contextmanager
def _lock_file(file: Path, mode: int) -> Iterator[int]:
    """Open a lock file that is a file of its own: a link in a run of others may lead to any file of the user's."""
    descriptor = os.open(file, mode | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError(f"{file} is no file of its own")
        yield descriptor
    finally:
        os.close(descriptor)
