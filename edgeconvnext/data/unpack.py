"""Unpacking a .tar or .tar.gz from outside: plain files and folders only, bounded in bytes, members and what is read at a time."""

from __future__ import annotations

import errno
import gzip
import io
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from edgeconvnext.data.names import unsafe_name
from edgeconvnext.errors import DownloadError, EdgeConvNextError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import reason

# Photographs are packed already: an archive of them unpacks to about its own size, headers and last blocks included.
MOST_EXPANSION = 3
_SLACK_BYTES = 2**20
# Imagenette has 13,413.
MOST_MEMBERS = 200_000
# ImageNet's training images are 1.3 million, Open Images' 9 million.
MOST_LISTED = 20_000_000
_CHUNK = 2**20
_GZIP = b"\x1f\x8b"
_DAMAGES = (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, OSError)
# What the archive itself is to blame for: a file where it has a folder, or a name that this system does not take.
_ARCHIVE_FAULTS = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


def unpack(stream: BinaryIO, size_bytes: int, folder: Path, source: str) -> None:
    """Unpack the archive's folder `folder.name` beside its final place and rename it, so that it is there whole or not at all.

    size_bytes: of the packed archive; it may unpack to three times that. source: what errors call the archive.
    Raises DownloadError for an archive that is damaged, that unpacks to too much, or that holds anything but plain files and
    folders below itself. An error of the disk passes as OSError.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _opened(stream, size_bytes) as tar:
            for member in _members(tar, MOST_MEMBERS):
                _unpack_member(tar, member, temporary)
        if not (temporary / folder.name).is_dir():
            raise DownloadError(f"The archive {for_terminal(source)} holds no folder {for_terminal(folder.name)}.")
        (temporary / folder.name).rename(folder)
    except _DAMAGES as error:
        raise _damaged(error, source, DownloadError) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def archive_files(
    stream: BinaryIO, size_bytes: int, source: str, kind: type[EdgeConvNextError]
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each plain file of an archive, by the rules of `unpack`; raises `kind` where it breaks them."""
    try:
        with _opened(stream, size_bytes) as tar:
            for member in _members(tar, MOST_MEMBERS):
                if (fault := _fault(member)) is not None:
                    raise kind(f"{for_terminal(source)} holds {for_terminal(member.name)[:200]}, which {fault}.")
                if member.isreg():
                    yield PurePosixPath(member.name).as_posix(), _content(tar, member)
    except _DAMAGES as error:
        raise _damaged(error, source, kind) from error


def archive_places(
    stream: BinaryIO, size_bytes: int, source: str, kind: type[EdgeConvNextError]
) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and size of each plain file of a .tar that is not packed, by the rules of `unpack`.

    Only headers are read, and none is kept. The stream may be read between two files. Raises `kind` where a rule is broken, also
    for a file that ends beyond the archive.
    """
    try:
        with _opened(stream, size_bytes) as tar:
            for member in _members(tar, MOST_LISTED):
                if (fault := _fault(member)) is not None:
                    raise kind(f"{for_terminal(source)} holds {for_terminal(member.name)[:200]}, which {fault}.")
                if member.isreg():
                    if member.offset_data + member.size > size_bytes:
                        raise tarfile.ReadError(f"it ends within {member.name[:200]}")
                    yield PurePosixPath(member.name).as_posix(), member.offset_data, member.size
    except _DAMAGES as error:
        raise _damaged(error, source, kind, "read") from error


def _opened(stream: BinaryIO, size_bytes: int) -> tarfile.TarFile:
    stream.seek(0)
    packed = stream.read(2) == _GZIP
    stream.seek(0)
    plain = cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if packed else stream
    most = MOST_EXPANSION * size_bytes + _SLACK_BYTES
    return tarfile.open(fileobj=cast(Any, _Bounded(plain, most)), mode="r:")


def _members(tar: tarfile.TarFile, most: int) -> Iterator[tarfile.TarInfo]:
    for number, member in enumerate(tar):
        if number >= most:
            raise tarfile.TarError(f"it has more than {most:,} members")
        yield member
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep a kilobyte for each


def _damaged(error: Exception, source: str, kind: type[EdgeConvNextError], verb: str = "unpacked") -> Exception:
    """Return what to raise: an error of the disk itself, else `kind`."""
    if isinstance(error, OSError) and error.errno is not None and error.errno not in _ARCHIVE_FAULTS:
        return error
    return kind(f"The archive {for_terminal(source)} cannot be {verb}: {reason(error).rstrip('.')}.")


def _fault(member: tarfile.TarInfo) -> str | None:
    """Say why a member is not taken, in words that follow "which"; None for a folder or plain file."""
    if member.isdir() and not PurePosixPath(member.name).parts:
        return None  # "./", the archive's own top
    if fault := unsafe_name(member.name):
        return fault
    if member.issparse() or not (member.isreg() or member.isdir()):
        return "is a link, a device or a sparse file"
    return "has a negative size" if member.size < 0 else None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    source = tar.extractfile(member)
    assert source is not None  # only links and devices give None, and they were refused above
    content = io.BytesIO()
    with source:
        shutil.copyfileobj(source, content, _CHUNK)
    return content.getvalue()


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    """Write one folder or plain file; a link, a device or a path that leads outside ends the whole unpacking.

    Written out rather than left to tarfile's "data" filter, which Python 3.11 has only from 3.11.4 on.
    """
    if (fault := _fault(member)) is not None:
        raise DownloadError(
            f"The archive holds the member {for_terminal(member.name)[:200]}, which {fault}. Nothing was unpacked; do not "
            "trust where it came from."
        )
    target = root / PurePosixPath(member.name)
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # only links and devices give None, and they were refused above
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK)


class _Bounded(io.RawIOBase):
    """A seekable stream that ends in an error after `most` bytes, and where more than a chunk is wanted at once.

    tarfile reads a header of any length into memory; files are copied chunk by chunk.
    """

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream, self._most = stream, most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise tarfile.ReadError("a header in it is too large")
        content = self._stream.read(size)
        self._check(self._stream.tell())
        return content

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or place < 0:
            raise tarfile.ReadError("a size in it is negative")
        self._check(place)
        return self._stream.seek(place)

    def tell(self) -> int:
        return self._stream.tell()

    def _check(self, place: int) -> None:
        if place > self._most:
            raise tarfile.ReadError(f"it unpacks to more than {self._most:,} bytes")
