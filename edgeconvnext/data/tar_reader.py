"""Images in .tar files that are not packed, read where they lie: each by its file, first byte and size."""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgeconvnext.data.images import MOST_FILE_BYTES, BrokenImage, decode_image


@dataclass(frozen=True, eq=False)
class TarReader:
    """Images in tar files. ids: in sorted order; file_numbers, offsets, sizes: where each lies, int64 (N,).

    file_stamps: size and time of each file when it was listed.
    """

    files: tuple[Path, ...]
    file_stamps: tuple[str, ...]
    ids: Sequence[str]
    file_numbers: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    in_memory: bool = False

    def read(self, image_id: str, shorter_side: int | None = None) -> Image.Image:
        position = self._position(image_id)
        size = int(self.sizes[position])
        if size > MOST_FILE_BYTES:
            raise BrokenImage(f"it has {size:,} bytes; at most {MOST_FILE_BYTES:,} are read")
        try:
            with self.files[self.file_numbers[position]].open("rb", buffering=0) as stream:
                stream.seek(int(self.offsets[position]))
                content = stream.read(size)
        except OSError as error:
            raise BrokenImage("its archive cannot be read") from error
        if len(content) < size:
            raise BrokenImage("its archive became shorter since it was listed")
        return decode_image(io.BytesIO(content), shorter_side)

    def stamp(self, image_id: str) -> str:
        position = self._position(image_id)
        stamp = self.file_stamps[self.file_numbers[position]]
        return f"{stamp}:{self.offsets[position]}:{self.sizes[position]}"

    def _position(self, image_id: str) -> int:
        position = bisect_left(self.ids, image_id)
        if position == len(self.ids) or self.ids[position] != image_id:
            raise KeyError(image_id)
        return position
