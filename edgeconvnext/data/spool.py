"""Arrays written to a temporary file one after the other, so that memory holds one at a time."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from edgeconvnext.files import storage_errors


class Spool:
    """A temporary file of arrays, which goes with the last reference to it. hashes, shapes, offsets: of each array."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.NamedTemporaryFile(prefix="edgeconvnext-")  # noqa: SIM115 - it lasts as long as this object
        self._bytes = 0
        self.hashes: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.offsets: list[int] = []

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def path(self) -> Path:
        return Path(os.fsdecode(self._file.name))

    def append(self, array: np.ndarray) -> None:
        """Write an array. Raises RunDirectoryError where the disk is full."""
        content = np.ascontiguousarray(array)
        self.hashes.append(array_sha256(content))
        self.shapes.append(content.shape)
        self.offsets.append(self._bytes)
        with storage_errors(self.path):
            self._file.write(content.data)
            self._file.flush()
        self._bytes += content.nbytes

    def array(self, position: int, dtype: type[np.generic]) -> np.ndarray:
        """Return one array as the file has it."""
        return np.memmap(self.path, dtype, mode="r", offset=self.offsets[position], shape=self.shapes[position])

    def rows(self, dtype: type[np.generic]) -> np.ndarray:
        """Return arrays of one shape as the rows of one, (N, ...), which takes no memory."""
        return np.memmap(self.path, dtype, mode="r", shape=(len(self), *self.shapes[0]))


def array_sha256(array: np.ndarray) -> str:
    """Hash shape, type and values of an array."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
