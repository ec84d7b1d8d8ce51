"""Block inputs on disk: what a network computed so far for every calibration image, without holding it in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

# A unit gets 16 images at a time, or fewer where their rows are larger than 96 channels of 56x56 (stage 1 of a Tiny at 224x224):
# the hidden channels of a block are four times as large.
MOST_ROWS = 16
MOST_ELEMENTS = MOST_ROWS * 96 * 56 * 56


def rows_at_once(shape: Sequence[int]) -> int:
    """Return how many rows of `shape` run through a unit at a time."""
    return max(1, min(MOST_ROWS, MOST_ELEMENTS // max(1, int(np.prod(shape)))))


class TensorFile:
    """Rows of equal shape, float32, one for each image, appended once and read in any order.

    Plain reads and writes instead of a memory map: mapped pages would count as the process's memory.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._path = path
        self._shape: tuple[int, ...] = ()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()

    def append(self, rows: torch.Tensor) -> None:
        """Write rows (N, ...) behind those already there."""
        self._shape = tuple(rows.shape[1:])
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(rows.detach().float().numpy()).data)
        self._count += len(rows)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return the rows from `start` up to `stop`, or to the end."""
        stop = min(stop, self._count)
        size = 4 * int(np.prod(self._shape))
        self._file.seek(start * size)
        data = np.fromfile(self._file, dtype=np.float32, count=(stop - start) * size // 4)
        return torch.from_numpy(data).view(stop - start, *self._shape)

    @property
    def rows_at_once(self) -> int:
        """How many rows `batches` reads at a time."""
        return rows_at_once(self._shape)

    def batches(self, start: int, stop: int, step: int | None = None) -> Iterator[torch.Tensor]:
        """Read the rows from `start` up to `stop`, `step` or `rows_at_once` at a time."""
        step = step or self.rows_at_once
        for first in range(start, stop, step):
            yield self.read(first, min(first + step, stop))

    def pick(self, rows: Sequence[int]) -> torch.Tensor:
        """Return single rows in the order asked for."""
        return torch.cat([self.read(row, row + 1) for row in rows])

    def delete(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def pairs_of(
    first: TensorFile, second: TensorFile, start: int, stop: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Read rows `start` up to `stop` of two files of the same length together."""
    step = min(first.rows_at_once, second.rows_at_once)
    yield from zip(first.batches(start, stop, step), second.batches(start, stop, step), strict=True)
