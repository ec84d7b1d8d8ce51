"""Files of torch.save, read without torch.load: what was saved, and the tensors that are asked for.

Every size is compared with the bytes the file holds before anything of it is allocated.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from edgeconvnext.errors import EdgeConvNextError
from edgeconvnext.escape import for_terminal
from edgeconvnext.model.torch_containers import OtherContainerError, open_container
from edgeconvnext.model.torch_pickle import ForbiddenCallError, MalformedError, OtherTensor, Storage, StoredTensor
from edgeconvnext.received import MOST_NESTED, reading, require_regular_file

MOST_DIMENSIONS = 8
MOST_VALUES = 1_000_000
_AGAIN = "Download or save it again."


class TorchFile(AbstractContextManager["TorchFile"]):
    """An open file of torch.save. value: what was saved, with StoredTensor or OtherTensor in place of tensors.

    Raises `error` for what is no such file or is damaged, for what names code, and for tensors that claim more than is stored.
    """

    def __init__(self, path: Path, error: type[EdgeConvNextError]) -> None:
        self._path, self._error, self._shown = path, error, for_terminal(path)
        self._size = require_regular_file(path, error)
        self._given = 0
        self._contents: dict[str, bytearray] = {}
        with self._checked():
            self._stream = path.open("rb")
        try:
            with self._checked():
                self._container = open_container(self._stream, self._size)
        except BaseException:
            self._stream.close()
            raise
        self.value: Any = self._container.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def tensor(self, claim: StoredTensor | OtherTensor, name: str) -> torch.Tensor:
        """Read one tensor; tensors of one storage share memory. name: for messages."""
        shown = f"{self._shown}: {for_terminal(name)[:200]}"
        if isinstance(claim, OtherTensor) or claim.dtype is None:
            kind = claim.kind if isinstance(claim, OtherTensor) else "quantized"
            raise self._error(
                f"{shown} cannot be read, because it is {kind}. Save dense tensors: `model.state_dict()` of the float network."
            )
        if len(claim.size) != len(claim.stride) or len(claim.size) > MOST_DIMENSIONS:
            raise self._error(
                f"{shown} has {len(claim.size)} dimensions and {len(claim.stride)} strides; at most {MOST_DIMENSIONS} are read. "
                f"{_AGAIN}"
            )
        with self._checked():
            content = self._content(claim.storage)
        elements, held = math.prod(claim.size), len(content) // claim.dtype.itemsize
        if elements > held:
            raise self._error(
                f"{shown} is expanded: {elements:,} elements over a storage of {held:,}. Save it with `.contiguous()`."
            )
        last = claim.offset + sum((count - 1) * step for count, step in zip(claim.size, claim.stride, strict=True))
        if elements and last >= held:
            raise self._error(f"{shown} reaches to element {last:,} of a storage that has {held:,}. {_AGAIN}")
        self._given += elements * claim.dtype.itemsize
        if self._given > 2 * self._size:
            raise self._error(
                f"{shown} and the tensors before it claim more than twice the {self._size:,} bytes of the file. Save each with a "
                "storage of its own (`.clone()`)."
            )
        with self._checked():
            if not elements:
                return torch.empty(claim.size, dtype=claim.dtype)
            values = torch.frombuffer(content, dtype=torch.uint8, count=held * claim.dtype.itemsize).view(claim.dtype)
            return values.as_strided(claim.size, claim.stride, claim.offset)

    def everything(self) -> Any:
        """Return what was saved with all its tensors read; raises `error` for more than MOST_VALUES values."""
        left = MOST_VALUES

        def read(value: Any, name: str, depth: int) -> Any:
            nonlocal left
            left -= 1
            if left < 0 or depth > MOST_NESTED:
                raise self._error(f"{self._shown} holds too many values, or nests them too deeply. {_AGAIN}")
            if isinstance(value, StoredTensor | OtherTensor):
                return self.tensor(value, name)
            if isinstance(value, dict):
                return {key: read(item, str(key), depth + 1) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return type(value)(read(item, name, depth + 1) for item in value)
            return value

        return read(self.value, "it", 0)

    def _content(self, storage: Storage) -> bytearray:
        if storage.key not in self._contents:
            self._contents[storage.key] = self._container.content(storage)
        return self._contents[storage.key]

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Turn what reading raises into the caller's error, with words for damage and for code."""
        with reading(self._path, self._error, _AGAIN):
            try:
                yield
            except ForbiddenCallError as forbidden:
                place = "" if forbidden.key is None else f", at key {for_terminal(forbidden.key, 80)!r}"
                advice = (
                    "save `model.state_dict()` instead of the whole model"
                    if forbidden.key is None
                    else "save it again without that value, or save `model.state_dict()`"
                )
                raise self._error(
                    f"{self._shown} was refused because loading it would run code (it names "
                    f"{for_terminal(forbidden)[:200]}{place}): only plain tensors and values are read. If you trust the file, "
                    f"load it where it came from and {advice}."
                ) from forbidden
            except OtherContainerError as other:
                raise self._error(
                    f"{self._shown} was refused unread: it is {other} and no file of torch.save, and may hold code. If you trust "
                    "it, load it where it came from and save `model.state_dict()` with torch.save."
                ) from other
            except (MalformedError, zipfile.BadZipFile, struct.error, EOFError, NotImplementedError) as damage:
                raise self._error(self._damaged(str(damage))) from damage

    def _damaged(self, why: str) -> str:
        if "Bad CRC-32" in why:
            member = for_terminal(why.rpartition("file ")[2])
            return f"{self._shown} is damaged: the checksum of {member} does not match. {_AGAIN}"
        problem = f"it is truncated, damaged or of another kind ({for_terminal(why)[:200]})"
        return f"{self._shown} is no complete PyTorch checkpoint: {problem}. {_AGAIN}"
