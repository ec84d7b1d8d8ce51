"""The header of a safetensors file: written in one order, so that equal tensors give equal bytes."""

from __future__ import annotations

import json


def in_one_order(content: bytes) -> bytes:
    """Return a safetensors file with its metadata sorted by key; safetensors itself writes them in the order of a hash table.

    content: 8 bytes with the header's length, little-endian; the header, JSON; the tensors.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", None)
    ordered = header if metadata is None else {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[start:]
