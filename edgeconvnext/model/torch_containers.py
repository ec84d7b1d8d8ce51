"""What torch.save wraps around its pickle: the zip archives of today, and the plain files before torch 1.6.

Other containers (TorchScript, torch.package, torch.export, tar files of torch 0.1) can hold code; they are refused unread.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from typing import Any, BinaryIO, Protocol

import numpy as np

from edgeconvnext.escape import for_terminal
from edgeconvnext.model.torch_pickle import MalformedError, Storage, read_pickle
from edgeconvnext.received import MIB

# The pickle of a training checkpoint of ConvNeXt-Huge (weights, average, AdamW's two moments) has 0.3 MiB.
MOST_PICKLE_BYTES = 16 * MIB
MOST_MEMBERS = 100_000
_MOST_DIRECTORY_BYTES = 16 * MIB
_ZIP_START, _PICKLE_START = b"PK\x03\x04", b"\x80"
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_OTHER_STARTS = {b"\x93NUMPY": "a NumPy array", b"\x89HDF": "an HDF5 file", b"\x1f\x8b": "a gzip file"}
# Members that only other containers have.
_OTHER_MEMBERS = (
    ("constants.pkl", "a TorchScript archive"),
    ("code/", "a TorchScript archive"),
    (".data/extern_modules", "a torch.package archive"),
    (".data/python_version", "a torch.package archive"),
    ("models/", "an archive of torch.export"),
    ("archive_format", "an archive of torch.export"),
)
# The end of a zip archive: signature, disks, members, bytes and place of the directory; 32-bit, then 64-bit with its locator.
_END, _END_64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")


class OtherContainerError(ValueError):
    """The file is of a kind that is not read. The message is the kind."""


class Container(Protocol):
    """value: what was saved. content: the bytes of a storage, none of which are read before."""

    value: Any

    def content(self, storage: Storage) -> bytearray: ...


def open_container(stream: BinaryIO, size: int) -> Container:
    """Read the pickle of a file of `size` bytes; raises MalformedError, ForbiddenCallError and OtherContainerError."""
    start = stream.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))
    if start.startswith(_ZIP_START):
        return _Archive(stream, size)
    if start.endswith(_TAR_MAGIC):
        raise OtherContainerError("a tar file of torch 0.1")
    for magic, kind in _OTHER_STARTS.items():
        if start.startswith(magic):
            raise OtherContainerError(kind)
    if not start.startswith(_PICKLE_START):
        raise MalformedError("it starts with neither an archive nor a pickle")
    return _Legacy(stream, size)


class _Archive:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        _check_directory(stream, size)
        self._archive = zipfile.ZipFile(stream)
        members = self._archive.infolist()
        self._members = {member.filename: member for member in members}
        self._prefix = members[0].filename.partition("/")[0] + "/" if members else ""
        for name in self._members:
            for other, kind in _OTHER_MEMBERS:
                if name.removeprefix(self._prefix).startswith(other):
                    raise OtherContainerError(kind)
        if len(self._members) < len(members) or len(members) > MOST_MEMBERS:
            raise MalformedError("members occur twice, or there are too many")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise MalformedError(
                    f"{member.filename} is compressed, {member.compress_size:,} bytes for {member.file_size:,}; torch.save does "
                    "not compress"
                )
        if sum(member.file_size for member in members) > size:
            raise MalformedError("its members overlap")
        if self._size("data.pkl") > MOST_PICKLE_BYTES:
            raise MalformedError(
                f"its data.pkl has {self._size('data.pkl'):,} bytes, and {MOST_PICKLE_BYTES:,} are read"
            )
        self._swapped = self._order() != sys.byteorder
        pickled = self._read("data.pkl")
        self.value = read_pickle(io.BytesIO(pickled), {})

    def content(self, storage: Storage) -> bytearray:
        content = self._read(f"data/{storage.key}")
        if self._swapped and storage.dtype is not None:
            width = storage.dtype.itemsize // (2 if storage.dtype.is_complex else 1)
            np.frombuffer(content, dtype=f"u{width}").byteswap(inplace=True)
        return content

    def _order(self) -> str:
        if self._prefix + "byteorder" not in self._members:
            return "little"
        return self._read("byteorder").decode("ascii") if self._size("byteorder") < 8 else ""

    def _size(self, record: str) -> int:
        member = self._members.get(self._prefix + record)
        if member is None:
            raise MalformedError(f"it has no {record}")
        return member.file_size

    def _read(self, record: str) -> bytearray:
        size = self._size(record)
        content = bytearray(self._archive.read(self._prefix + record))
        if len(content) != size:
            raise MalformedError(f"{record} ends too early")
        return content


def _check_directory(stream: BinaryIO, size: int) -> None:
    """Raise MalformedError unless the archive ends as torch.save ends it, with a directory of a size that can be read at once."""
    tail = _END.size + _LOCATOR.size + _END_64.size
    stream.seek(max(0, size - tail))
    ending = stream.read(tail).rjust(tail, b"\0")
    signature, *_, directory, _, comment = _END.unpack(ending[-_END.size :])
    if signature != b"PK\5\6" or comment:
        raise MalformedError("its end is missing")
    locator = ending[_END_64.size : -_END.size]
    if _LOCATOR.unpack(locator)[0] == b"PK\6\7":
        signature, *_, directory, _ = _END_64.unpack(ending[: _END_64.size])
        if signature != b"PK\6\6":
            raise MalformedError("its end is damaged")
    if directory > _MOST_DIRECTORY_BYTES:
        raise MalformedError(f"its list of members has {directory:,} bytes")


class _Legacy:
    """A file of torch before 1.6: magic number, version and system, then what was saved, the storages' keys and their bytes."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        stream.seek(0)
        pickles = io.BytesIO(stream.read(MOST_PICKLE_BYTES))
        try:
            magic = read_pickle(pickles, {})
        except MalformedError as error:
            raise OtherContainerError("a file of Python's pickle") from error
        if magic != _LEGACY_MAGIC:
            raise OtherContainerError("a file of Python's pickle")
        if read_pickle(pickles, {}) != _LEGACY_VERSION:
            raise MalformedError("its version is unknown")
        read_pickle(pickles, {})
        storages: dict[str, Storage] = {}
        self.value = read_pickle(pickles, storages)
        keys = read_pickle(pickles, {})
        self._stream, self._places = stream, _places(stream, size, pickles.tell(), keys, storages)

    def content(self, storage: Storage) -> bytearray:
        root, start, length = storage.view or (storage.key, 0, None)
        if root not in self._places or storage.dtype is None:
            raise MalformedError(f"storage {for_terminal(root)[:80]} is missing")
        place, held = self._places[root]
        offset = start * storage.dtype.itemsize
        count = held if length is None else length * storage.dtype.itemsize
        if offset + count > held:
            raise MalformedError("a view reaches beyond its storage")
        self._stream.seek(place + offset)
        content = bytearray(self._stream.read(count))
        if len(content) != count:
            raise MalformedError("a storage ends too early")
        return content


def _places(
    stream: BinaryIO, size: int, position: int, keys: Any, storages: dict[str, Storage]
) -> dict[str, tuple[int, int]]:
    """Return where each storage begins and how many bytes it has: eight bytes with the number of elements precede them."""
    if not isinstance(keys, list) or len(keys) > MOST_MEMBERS:
        raise MalformedError("it does not list its storages")
    places = {}
    for key in keys:
        storage = storages.get(str(key))
        if storage is None:
            raise MalformedError("it lists a storage that no tensor has")
        stream.seek(position)
        (elements,) = struct.unpack("<q", stream.read(8))
        # A quantized storage has one byte an element, or four; its tensors are refused, so its end is all that counts.
        held = elements * (storage.dtype.itemsize if storage.dtype else 1)
        position += 8 + held
        if elements < 0 or position > size:
            raise MalformedError("a storage reaches beyond the end")
        places[str(key)] = (position - held, held)
    return places
