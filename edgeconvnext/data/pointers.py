"""Files that stand for others: pointers that Git LFS and git-annex leave where the content was not fetched."""

from __future__ import annotations

import os
from pathlib import Path

MOST_POINTER_BYTES = 1024
"""Git LFS takes no larger file for a pointer; git-annex writes a path and a newline."""
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = b"/annex/objects/"
_LFS_WORDS = "it is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"
_ANNEX_WORDS = "it is a pointer of git-annex, and its content is not on this machine; fetch it with `git annex get`"


def pointer_in(head: bytes) -> str | None:
    """Say what a file is whose first bytes are `head`, and how to get the content; None where it is no pointer."""
    if head.startswith(_LFS):
        return _LFS_WORDS
    first_line = head[:MOST_POINTER_BYTES].split(b"\n", 1)[0].replace(b"\\", b"/")
    return _ANNEX_WORDS if first_line.startswith((_ANNEX, b"../")) and _ANNEX in first_line else None


def annex_link(path: Path) -> str | None:
    """Say so where `path` is a link into git-annex whose content is not there; None for anything else."""
    try:
        target = os.readlink(path)  # noqa: PTH115
    except OSError:
        return None
    return _ANNEX_WORDS if "/annex/objects/" in target.replace(os.sep, "/") and not path.exists() else None
