"""Where downloads arrive: part files that are locked, never links, and disks that are full said in one sentence."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

import filelock

from edgeconvnext.errors import DownloadError
from edgeconvnext.escape import for_terminal


@contextmanager
def locked(part: Path) -> Iterator[None]:
    """Hold the lock file beside `part`, and delete it at the end; raises DownloadError where another process holds it."""
    path = part.with_suffix(".lock")
    refuse_what_is_no_file(path)
    lock = filelock.FileLock(path, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise DownloadError(
            f"Another process is downloading into {for_terminal(part)}. Wait for it to end, then run again."
        ) from error
    try:
        yield
    finally:
        # A process that waits for this very file sees that it has no name any more. Windows deletes no open file.
        with suppress(OSError):
            path.unlink()
        lock.release()


def opened(part: Path) -> BufferedRandom:
    """Open the file that a download goes to, made where there is none; never through a link."""
    refuse_what_is_no_file(part)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(part, flags, 0o666), "r+b")


def refuse_what_is_no_file(path: Path) -> None:
    """Raise DownloadError where there is something at `path` that is no regular file: a link would lead writing elsewhere."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise DownloadError(
            f"{for_terminal(path)} is a link, a folder, a pipe or a device, and the download needs a file there. Look at what it "
            "is and remove it."
        )


def require_sha256(stream: BufferedRandom, expected: str, part: Path, url: str, what: str) -> None:
    """Delete `part` and raise DownloadError where its content, `stream`, has another hash than `what` is published with."""
    stream.seek(0)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != expected:
        part.unlink()
        raise DownloadError(
            f"What arrived from {for_terminal(url)} has sha256 {digest}, the published {what} has {expected}. It "
            "was deleted; run the command again, and if it happens twice, do not trust that server."
        )


def require_space(needed: int, destination: Path, what: str) -> None:
    """Raise DownloadError where the disk of `destination` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(destination).free
    if free < needed:
        raise DownloadError(
            f"{for_terminal(destination)} has {free / 1e6:.0f} MB free; {what} needs {needed / 1e6:.0f} MB. Free some "
            "space, or set EDGECONVNEXT_DATA to a folder on another disk."
        )


@contextmanager
def disk_errors(destination: Path) -> Iterator[None]:
    """Say a full or read-only disk in one sentence."""
    place = for_terminal(destination)
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"The disk of {place} is full. Free some space, or set EDGECONVNEXT_DATA to a folder on another "
                "disk; what was downloaded is kept."
            ) from error
        raise DownloadError(
            f"{for_terminal(error.filename) if error.filename else place} cannot be written: {error.strerror}. Set "
            "EDGECONVNEXT_DATA to a folder you can write to."
        ) from error
