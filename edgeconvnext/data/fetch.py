"""Getting a public image set: download with resume, checksum, careful unpacking, one final rename."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path, PurePosixPath

from edgeconvnext.data.sets import ArchiveSection, cache_dir, load_set_file
from edgeconvnext.errors import DownloadError
from edgeconvnext.progress import progress_bar

_CHUNK = 1 << 20
_TIMEOUT_S = 30
_ATTEMPTS = 5
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
    if chosen and Path(chosen).expanduser().is_dir() and os.access(Path(chosen).expanduser(), os.W_OK):
        return Path(chosen).expanduser()
    return cache_dir()


def fetch_archive(archive: ArchiveSection, destination: Path) -> Path:
    """Download, check and unpack one archive below `destination`; what arrived before an interruption is used again."""
    folder = destination / archive.folder
    if folder.is_dir():
        return folder
    part = destination / f".{archive.folder}.part"
    with _disk_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
        with part.open("a+b") as stream:
            _lock(stream, part)
            if folder.is_dir():  # another process has finished since the first look
                part.unlink(missing_ok=True)
                return folder
            _remove_leftovers(archive, destination)
            _check_space(archive, destination, stream)
            _download(archive, stream)
            _check_sum(archive, stream, part)
            stream.seek(0)
            _unpack(archive, stream, folder)
        part.unlink()
    return folder


def _lock(stream: BufferedRandom, part: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DownloadError(
            f"Another process is downloading into {part}. Wait for it to end, then run again."
        ) from error


def _remove_leftovers(archive: ArchiveSection, destination: Path) -> None:
    """Remove what a process that was killed while unpacking left behind; the lock says that none is at work."""
    for leftover in destination.glob(f".{archive.folder}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_space(archive: ArchiveSection, destination: Path, stream: BufferedRandom) -> None:
    needed = int(archive.size_bytes * (1 + _UNPACKED_SHARE)) - _size(stream)
    free = shutil.disk_usage(destination).free
    if free < needed:
        raise DownloadError(
            f"{destination} has {free / 1e6:.0f} MB free; {archive.folder} needs {needed / 1e6:.0f} MB. Free some "
            "space, or set EDGECONVNEXT_DATA to a folder on another disk."
        )


def _download(archive: ArchiveSection, stream: BufferedRandom) -> None:
    """Bring `stream` to the archive's full size, resuming where it ends; a connection that drops is taken up again."""
    if not archive.url.startswith(("http://", "https://")):
        raise DownloadError(
            f"{archive.url} is not an http(s) address. Give the mirror's full address, starting with https://."
        )
    if _size(stream) > archive.size_bytes:
        stream.truncate(0)
    with progress_bar(f"Downloading {archive.folder}", archive.size_bytes, unit="bytes") as advance:
        advance(_size(stream))
        failures = 0
        while (before := _size(stream)) < archive.size_bytes:
            try:
                for amount in _receive(archive, stream):
                    advance(amount)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                failures = 0 if _size(stream) > before else failures + 1
                if failures >= _ATTEMPTS or _is_final(error):
                    raise _download_failed(archive, stream, error) from error
                time.sleep(min(0.1 * 2**failures, 5))
            else:
                failures = 0 if _size(stream) > before else failures + 1
                if failures >= _ATTEMPTS:
                    raise _download_failed(archive, stream, EOFError("the server sends no more bytes"))


def _receive(archive: ArchiveSection, stream: BufferedRandom) -> Iterator[int]:
    """Append what the server sends; yields the bytes added, negative where the server made the download start over."""
    start = _size(stream)
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if start and not resumed:
            stream.truncate(0)
            yield -start
        while chunk := response.read(_CHUNK):
            stream.write(chunk)
            yield len(chunk)
            if _size(stream) > archive.size_bytes:
                stream.truncate(0)
                raise DownloadError(
                    f"{archive.url} is larger than the {archive.size_bytes:,} bytes of the published archive, so it is "
                    "another file. Check the address; nothing was kept."
                )


def _is_final(error: Exception) -> bool:
    """Say whether asking again is pointless: the server understood and refused."""
    return isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429)


def _download_failed(archive: ArchiveSection, stream: BufferedRandom, error: Exception) -> DownloadError:
    reason = getattr(error, "reason", None) or error
    kept = _size(stream)
    resume = f"The {kept / 1e6:.1f} MB that arrived are kept: run the command again to go on." if kept else ""
    return DownloadError(
        f"{archive.url} could not be downloaded: {reason}. {resume} Without network, unpack a copy of the archive in "
        f"the data folder yourself, so that it holds {archive.folder}/.".replace("  ", " ")
    )


def _check_sum(archive: ArchiveSection, stream: BufferedRandom, part: Path) -> None:
    stream.seek(0)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != archive.sha256:
        part.unlink()
        raise DownloadError(
            f"What arrived from {archive.url} has sha256 {digest}, the published archive has {archive.sha256}. It was "
            "deleted; run the command again, and if it happens twice, do not trust that server."
        )


def _unpack(archive: ArchiveSection, stream: BufferedRandom, folder: Path) -> None:
    """Unpack beside the final place and rename, so that the folder is there completely or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{archive.folder}-", dir=folder.parent))
    try:
        with tarfile.open(fileobj=stream, mode="r:*") as tar:
            for member in tar:
                _unpack_member(tar, member, temporary)
        if not (temporary / archive.folder).is_dir():
            raise DownloadError(f"The archive {archive.url} holds no folder {archive.folder}.")
        (temporary / archive.folder).rename(folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DownloadError(f"The archive {archive.url} cannot be unpacked: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    """Write one folder or plain file; a link, a device or a path that leads outside ends the whole unpacking.

    Written out rather than left to tarfile's "data" filter, which Python 3.11 has only from 3.11.4 on.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or not (member.isfile() or member.isdir()):
        raise DownloadError(
            f"The archive holds the member {member.name!r}, which is a link, a device or a path outside its folder. "
            "Nothing was unpacked; do not trust where it came from."
        )
    target = root / path
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # only links and devices give None, and they were refused above
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK)


def _size(stream: BufferedRandom) -> int:
    return stream.seek(0, os.SEEK_END)


@contextmanager
def _disk_errors(destination: Path) -> Iterator[None]:
    """Say a full or read-only disk in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"The disk of {destination} is full. Free some space, or set EDGECONVNEXT_DATA to a folder on another "
                "disk; what was downloaded is kept."
            ) from error
        raise DownloadError(
            f"{error.filename or destination} cannot be written: {error.strerror}. Set EDGECONVNEXT_DATA to a folder "
            "you can write to."
        ) from error
