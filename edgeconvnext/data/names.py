"""Names of files that come from outside, checked as text before any of them reaches the file system."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePosixPath

# What the usual file systems allow.
_MOST_PART_BYTES = 255
_MOST_NAME_BYTES = 4096


def unsafe_name(name: str) -> str | None:
    """Say why `name` is no relative path below a folder, in words that follow "it"; None where it is one."""
    path = PurePosixPath(name)
    if "\\" in name or Path(name).drive:
        return "holds a backslash or a drive"
    if path.is_absolute() or ".." in path.parts:
        return "leads outside its folder"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        return "holds control characters"
    parts = [len(os.fsencode(part)) for part in path.parts]
    if max(parts, default=0) > _MOST_PART_BYTES or sum(parts) + len(parts) > _MOST_NAME_BYTES:
        return "is too long"
    return None if parts else "is empty"
