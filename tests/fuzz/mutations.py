"""Inputs made hostile: bytes at random, and JSON, TOML, zip and safetensors by their structure, so that parsers let them in."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

MOST_BYTES = 4 * 2**20
_CHUNKS = (
    b"\x00" * 8,
    b"\xff" * 8,
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"%!PS-Adobe-3.0\n",
    b"../../../etc/passwd",
    b"\x80\x04\x95",
    b"cposix\nsystem\n(S'true'\ntR.",
    b"[" * 3000,
    b"9" * 5000,
    b"\xed\xa0\x80",
    b"\r\n\r\n",
)
_STRINGS = (
    "",
    "\x00",
    "\x1b[2J",
    "[/bold]",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 70_000,
    "\ud800",
    "é\u202e",
    "nan",
    "__import__('os').system('true')",
    "{{7*7}}",
    "<script>",
    "a\nb",
    "~nosuchuser/x",
)
_NUMBERS = (0, -1, 1, 2**31, -(2**63), 2**64, 10**30, 0.5, 1e308, -1e308, 1e-320, 10**400)
_RAW = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 2000 + "]" * 2000)


def any_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat or copy bytes at a few random places."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 8, 200))]
        elif kind == 4:
            data[at:at] = rng.choice(_CHUNKS)
        elif kind == 5:
            data[at:at] = data[at : at + rng.choice((1, 8, 300))]
        elif data:
            data[at % len(data) :] = data[at % len(data) :] * rng.choice((2, 3))
    return bytes(data[:MOST_BYTES])


def any_json(content: bytes, rng: random.Random) -> bytes:
    """Replace, remove, rename or repeat values of a JSON document; now and then write what JSON has no type for."""
    document = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        document = changed(document, rng)
    text = json.dumps(document)
    if rng.random() < 0.15:
        text = text.replace("1", rng.choice(_RAW), 1) if "1" in text else rng.choice(_RAW)
    return text.encode("utf-8", "surrogatepass")


def changed(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one random place in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        copy, key = dict(value), rng.choice(list(value))
        kind = rng.random()
        if kind < 0.08:
            del copy[key]
        elif kind < 0.14:
            copy[rng.choice(_STRINGS)] = copy.pop(key)
        elif kind < 0.2:
            copy[rng.choice(_STRINGS)] = hostile(rng)
        else:
            copy[key] = changed(value[key], rng)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.85:
        items, at, kind = list(value), rng.randrange(len(value)), rng.random()
        if kind < 0.1:
            del items[at]
        elif kind < 0.2:
            items = items * rng.choice((2, 50))
        elif kind < 0.25:
            items = []
        else:
            items[at] = changed(items[at], rng)
        return items[:100_000]
    return hostile(rng, value)


def hostile(rng: random.Random, old: Any = None) -> Any:
    """Return a value that nobody meant, often of the type that was there."""
    if isinstance(old, bool):
        return rng.choice((not old, None, 2, "true"))
    if isinstance(old, int | float) and rng.random() < 0.6:
        return rng.choice((*_NUMBERS, -old, old * 1000, old + 1, old / 3 if abs(old) < 1e300 else 0))
    if isinstance(old, str) and rng.random() < 0.6:
        return rng.choice((*_STRINGS, old + "x", old[:-1], old.upper(), old * 2))
    return rng.choice((None, True, [], {}, *_NUMBERS, *_STRINGS, [[]], {"a": {"b": []}}, _deep(rng)))


def _deep(rng: random.Random) -> Any:
    value: Any = 1
    for _ in range(rng.choice((50, 150, 600))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def any_toml(content: bytes, rng: random.Random) -> bytes:
    """Change a line of a TOML file: its value, its key, its table, or its place."""
    lines = content.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines)) if lines else 0
        kind = rng.random()
        if kind < 0.6 and lines and "=" in lines[at]:
            key = lines[at].partition("=")[0]
            value = rng.choice(
                (json.dumps(rng.choice(_STRINGS)), str(rng.choice(_NUMBERS)), *_RAW, "nan", "inf", "true", "[]", "{}", "''",
                 "1979-05-27", "[1, 'a']", "0x7fffffffffffffff", "")
            )  # fmt: skip
            lines[at] = f"{key}= {value}"
        elif kind < 0.7 and lines:
            del lines[at]
        elif kind < 0.8 and lines:
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif kind < 0.9:
            lines.insert(at, rng.choice(("[a.b]", "[[quantize]]", "x = 1", "[layers.head]", "= 1", '"\\u0000" = 1')))
        else:
            return any_bytes("\n".join(lines).encode("utf-8", "surrogatepass"), rng)
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def any_zip(content: bytes, rng: random.Random) -> bytes:
    """Change, rename, drop, repeat or compress members of a zip archive, with their checksums in order."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(rng.choice((1, 1, 2))):
        at, kind = rng.randrange(len(members)), rng.random()
        name, data = members[at]
        if kind < 0.6:
            # The pickle decides what becomes of the rest, so it is changed most often.
            at = next((i for i, (n, _) in enumerate(members) if n.endswith(".pkl")), at) if rng.random() < 0.7 else at
            members[at] = (members[at][0], any_bytes(members[at][1], rng))
        elif kind < 0.7:
            members[at] = (name + rng.choice(("x", "/../x", "\\x", "/")), data)
        elif kind < 0.8 and len(members) > 1:
            del members[at]
        elif kind < 0.9:
            members.append(members[at])
        else:
            members[at] = (name, data + bytes(rng.choice((10, 2**20))))
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in members:
                archive.writestr(name, data)
    return buffer.getvalue()[:MOST_BYTES]


def any_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file: names, types, shapes, offsets and metadata, which itself may be JSON."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    metadata = header.get("__metadata__")
    if metadata and rng.random() < 0.6:
        key = rng.choice(list(metadata))
        try:
            metadata[key] = any_json(metadata[key].encode(), rng).decode("utf-8", "replace")
        except ValueError:
            metadata[key] = rng.choice(_STRINGS)
    else:
        name = rng.choice(list(header))
        if rng.random() < 0.3:
            # Shapes that agree with their bytes reach further than those that do not.
            entry = header[name]
            if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
                rng.shuffle(entry["shape"])
                entry["shape"] = rng.choice((entry["shape"], [*entry["shape"], 1], [1, *entry["shape"]]))
        else:
            header[name] = changed(header[name], rng)
    text = json.dumps(header).encode("utf-8", "replace")
    length = len(text) if rng.random() < 0.95 else rng.choice((0, 2**63, len(text) + 8, len(content)))
    return (struct.pack("<Q", length) + text + content[8 + size :])[:MOST_BYTES]


Mutation = Callable[[bytes, random.Random], bytes]


def mostly(structured: Mutation) -> Mutation:
    """Return a mutation that changes the structure four times of five, and bytes at random else."""

    def mutate(content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.2:
            return any_bytes(content, rng)
        try:
            return structured(content, rng)
        except (ValueError, zipfile.BadZipFile, OverflowError):
            return any_bytes(content, rng)

    return mutate
