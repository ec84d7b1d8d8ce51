"""The reader of weights in an exported network file: the same tensors as safetensors' own, and no more than the file holds."""

from __future__ import annotations

import importlib
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from edgeconvnext.model import load_model
from edgeconvnext.model.load import shipped_models
from edgeconvnext.model.torch_code import write_torch_code

Reader = Callable[[Path], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    path = tmp_path_factory.mktemp("code") / "network_of_digits.py"
    write_torch_code(load_model("digits"), shipped_models()["digits"], path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        yield importlib.import_module("network_of_digits").read_safetensors
        patch.delitem(sys.modules, "network_of_digits")


def test_tensors_are_those_of_safetensors(read: Reader, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(
        save({"x": torch.randn(3, 4), "y": torch.ones(()), "z": torch.zeros(0, 2)})
    )
    for path in (tmp_path / "a.safetensors", shipped_models()["digits"]):
        ours, theirs = read(path), load_file(path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _file(header: object, content: bytes = bytes(16), length: int | None = None) -> bytes:
    described = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(described) if length is None else length) + described + content


def _entry(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        _file({}, length=2**63),
        _file(b"{}" + b" " * 2**24),
        _file(b"[" * 100_000),
        _file(b'{"a":' + b"9" * 5000 + b"}"),
        _file(b"\xff{}"),
        _file([1]),
        _file({"x": 1}),
        _file({"x": {}}),
        _file(_entry([2**40], [0, 2**42])),
        _file(_entry([4], [8, 24])),
        _file(_entry([4], [-16, 0])),
        _file(_entry([4], [16, 0])),
        _file(_entry([5], [0, 16])),
        _file(_entry([-2, -2], [0, 16])),
        _file(_entry([4.0], [0, 16])),
        _file(_entry("4", [0, 16])),
        _file(_entry([4], [0])),
        _file(_entry([4], [0, 16], "F16")),
        _file(_entry([4], [0, 16], [1])),
        _file(_entry([0, 2**62, 2**62], [0, 0])),
    ],
    ids=range(22),
)
def test_what_claims_more_than_there_is_is_a_value_error(content: bytes, read: Reader, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        read(tmp_path / "a.safetensors")


def test_only_files_are_read(read: Reader) -> None:
    with pytest.raises(ValueError, match="is no file"):
        read(Path("/dev/zero"))
