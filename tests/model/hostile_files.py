"""Files of torch.save and safetensors written by hand, so that they can claim what no library would write."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001


def name(module: str, attribute: str) -> bytes:
    """The opcode that names a global."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def storage(elements: int, key: str = "0", kind: str = "FloatStorage", legacy: bool = False) -> bytes:
    view = b"N" if legacy else b""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(elements) + view + b"tQ"


def tensor(stored: bytes, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    values = (
        stored + number(offset) + numbers(size) + numbers(stride) + b"\x89" + name("collections", "OrderedDict") + b")R"
    )
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + values + b"tR"


def dictionary(key: str, value: bytes) -> bytes:
    """A whole pickle of one key."""
    return b"\x80\x02}" + text(key) + value + b"s."


def write_archive(
    path: Path, pickled: bytes, members: Mapping[str, bytes] = {}, compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for member, content in members.items():
            archive.writestr(f"archive/{member}", content)
    return path


def write_legacy(path: Path, pickled: bytes, keys: list[str], storages: bytes = b"") -> Path:
    start = b"".join(pickle.dumps(value, 2) for value in (LEGACY_MAGIC, LEGACY_VERSION, {"little_endian": True}))
    path.write_bytes(start + pickled + pickle.dumps(keys, 2) + storages)
    return path


def write_safetensors(path: Path, header: object, content: bytes = b"", length: int | None = None) -> Path:
    described = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(described) if length is None else length) + described + content)
    return path
