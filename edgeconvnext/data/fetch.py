"""Getting a public image set: download with resume, checksum, careful unpacking, one final rename."""

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

from edgeconvnext.data.download import download
from edgeconvnext.data.sets import ArchiveSection, cache_dir, load_set_file
from edgeconvnext.data.unpack import unpack
from edgeconvnext.errors import DownloadError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import user_path

# JPEGs hardly compress, so the unpacked files need about what the archive does, plus their last blocks.
_UNPACKED_SHARE = 1.2


def fetch(name: str, destination: Path | None = None, url: str | None = None) -> Path:
    """Download and unpack a public image set; returns its folder, at once where it is there already.

    destination: data folder to unpack into; EDGECONVNEXT_DATA where that is a writable folder, else
    ~/.cache/edgeconvnext.
    url: a mirror of the same archive; its checksum has to be the published one all the same.
    Raises DownloadError for sets that cannot be fetched (ImageNet, embedded ones), a failed download, a wrong checksum,
    an archive with unsafe members, or a full disk.
    """
    description = load_set_file(name)
    if description.archive is None:
        reason = description.how_to_get or "It is part of the package: use it by its name."
        raise DownloadError(f"The image set {name} cannot be downloaded. {reason}")
    archive = description.archive if url is None else description.archive.model_copy(update={"url": url})
    return fetch_archive(archive, destination or default_destination())


def default_destination() -> Path:
    """Return the data folder that downloads go to."""
    chosen = os.environ.get("EDGECONVNEXT_DATA")
    folder = user_path(chosen, DownloadError) if chosen else None
    return folder if folder is not None and folder.is_dir() and os.access(folder, os.W_OK) else cache_dir()


def fetch_archive(archive: ArchiveSection, destination: Path) -> Path:
    """Download, check and unpack one archive below `destination`; what arrived before an interruption is used again."""
    folder = destination / archive.folder
    if folder.is_dir():
        return folder
    part = destination / f".{archive.folder}.part"
    with _disk_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
        with _locked(part):
            if folder.is_dir():  # another process has finished since the first look
                part.unlink(missing_ok=True)
                return folder
            with _opened(part) as stream:
                _remove_leftovers(archive, destination)
                _check_space(archive, destination, stream)
                download(
                    archive.url,
                    archive.size_bytes,
                    stream,
                    description=f"Downloading {archive.folder}",
                    way_out=f"Without network, unpack a copy of the archive in the data folder yourself, so that it holds "
                    f"{archive.folder}/.",
                )
                _check_sum(archive, stream, part)
                unpack(stream, archive.size_bytes, folder, archive.url)
            part.unlink()
    return folder


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Hold the lock file beside `part`, and delete it at the end; raises DownloadError where another process holds it."""
    path = part.with_suffix(".lock")
    _refuse_what_is_no_file(path)
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


def _opened(part: Path) -> BufferedRandom:
    """Open the file that a download goes to, made where there is none; never through a link."""
    _refuse_what_is_no_file(part)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(part, flags, 0o666), "r+b")


def _refuse_what_is_no_file(path: Path) -> None:
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


def _remove_leftovers(archive: ArchiveSection, destination: Path) -> None:
    """Remove what a process that was killed while unpacking left behind; the lock says that none is at work."""
    for leftover in destination.glob(f".{archive.folder}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_space(archive: ArchiveSection, destination: Path, stream: BufferedRandom) -> None:
    needed = int(archive.size_bytes * (1 + _UNPACKED_SHARE)) - stream.seek(0, os.SEEK_END)
    free = shutil.disk_usage(destination).free
    if free < needed:
        place = for_terminal(destination)
        raise DownloadError(
            f"{place} has {free / 1e6:.0f} MB free; {archive.folder} needs {needed / 1e6:.0f} MB. Free some "
            "space, or set EDGECONVNEXT_DATA to a folder on another disk."
        )


def _check_sum(archive: ArchiveSection, stream: BufferedRandom, part: Path) -> None:
    stream.seek(0)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != archive.sha256:
        part.unlink()
        raise DownloadError(
            f"What arrived from {for_terminal(archive.url)} has sha256 {digest}, the published archive has {archive.sha256}. It "
            "was deleted; run the command again, and if it happens twice, do not trust that server."
        )


@contextmanager
def _disk_errors(destination: Path) -> Iterator[None]:
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
