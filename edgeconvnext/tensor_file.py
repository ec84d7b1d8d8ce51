"""Block inputs on disk: what a network computed so far for every calibration image, without holding it in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch


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

    def pick(self, rows: Sequence[int]) -> torch.Tensor:
        """Return single rows in the order asked for."""
        return torch.cat([self.read(row, row + 1) for row in rows])

    def delete(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)
