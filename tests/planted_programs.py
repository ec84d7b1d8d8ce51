"""torch.export archives with code in each place where torch runs it, and the proof that it does."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PLACES = ("pickled weight", "expression", "guard", "full unpickling")


class _Touch:
    """What unpickling it does: it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


class _Product(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def planted(place: str, marker: Path) -> bytes:
    """Return an archive that makes the file `marker` where torch loads and runs it."""
    edits: dict[str, dict[str, Callable[[bytes], bytes]]] = {
        "pickled weight": {
            "model_weights_config.json": lambda content: content.replace(b'"use_pickle": false', b'"use_pickle": true'),
            "weight_0": lambda _: pickled(marker),
        },
        "expression": {
            "model.json": lambda content: content.replace(
                b"Symbol('s77', positive=True, integer=True)", _expression(marker).encode()
            )
        },
        "guard": {"model.json": lambda content: _with_guard(content, marker)},
        "full unpickling": {"model.pt": lambda _: pickled(marker)},
    }
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(_Product(), (torch.zeros(2, 2),), dynamic_shapes=({0: batch},))
    saved, changed = io.BytesIO(), io.BytesIO()
    torch.export.save(program, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            edit = edits[place].get(entry.filename.rpartition("/")[2], lambda content: content)
            target.writestr(entry.filename, edit(source.read(entry)))
    return changed.getvalue()


def run(archive: bytes) -> None:
    """Load and run an archive as anybody would who trusts it."""
    try:
        torch.export.load(io.BytesIO(archive)).module()(torch.zeros(2, 2))
    except Exception:
        return  # whatever torch makes of the rest: the code has run or has not


def pickled(marker: Path) -> bytes:
    """Return what torch.save writes of an object that makes a file when it is unpickled."""
    buffer = io.BytesIO()
    torch.save((_Touch(marker),), buffer, pickle_module=pickle)
    return buffer.getvalue()


def _expression(marker: Path) -> str:
    return f"__import__('pathlib').Path('{marker}').touch()"


def _with_guard(content: bytes, marker: Path) -> bytes:
    model = json.loads(content)
    model["guards_code"] = [f"{_expression(marker)} is None"]
    return json.dumps(model).encode()
