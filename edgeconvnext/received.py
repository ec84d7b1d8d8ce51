"""Content from outside: regular files only, sizes bounded before anything is read, every failure one clear error.

A checkpoint, run, kit, image set or board result may come from anybody. What a parser raises on it is the user's to know, not a
bug: `reading` turns it into the error of the caller's choice, and `reason` words it.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeconvnext.errors import EdgeConvNextError
from edgeconvnext.escape import for_terminal

MIB = 2**20
# Records, plans, reports and configs are small; the largest seen (a report with 1,000 classes) has 2 MiB.
MOST_TEXT_BYTES = 64 * MIB
# Python's own parsers end at about 1,000 levels with RecursionError, and so does whatever walks their result.
MOST_NESTED = 100
# Characters of a parser's own message that are shown.
MOST_REASON = 300
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def user_path(text: Path | str, error: type[EdgeConvNextError]) -> Path:
    """Return a path that a user typed, with `~` or `~user` at its start expanded; raises `error` for an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as failure:
        raise error(
            f"{for_terminal(text)} begins with the home folder of a user that this machine does not know. Write the path in full, "
            "or ./~ for a folder of that name."
        ) from failure


def reason(error: BaseException) -> str:
    """Say in half a sentence why content could not be read, whatever a parser raised."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than this process may use"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8 text"
    if isinstance(error, json.JSONDecodeError | tomllib.TOMLDecodeError):
        kind = "JSON" if isinstance(error, json.JSONDecodeError) else "TOML"
        return f"it is not valid {kind}: {for_terminal(error)[:MOST_REASON]}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    if isinstance(error, struct.error | EOFError):
        return "it ends too early or is damaged"
    if isinstance(error, ValueError) and "integer string conversion" in str(error):
        return "a number in it has too many digits"
    text = for_terminal(str(error).strip().split("\n", 1)[0])[:MOST_REASON]
    return text or f"it is damaged ({type(error).__name__})"


@contextmanager
def reading(path: Path | str, error: type[EdgeConvNextError], fix: str = "") -> Iterator[None]:
    """Turn whatever is raised while content of `path` is read into `error`: "PATH cannot be read: WHY. FIX".

    Put only parsers inside: a bug in there would be called the user's. An EdgeConvNextError passes as it is.
    """
    try:
        yield
    except EdgeConvNextError:
        raise
    except Exception as failure:
        raise error(f"{for_terminal(path)} cannot be read: {reason(failure).rstrip('.')}. {fix}".rstrip()) from failure


def require_regular_file(path: Path, error: type[EdgeConvNextError], *, most: float = math.inf) -> int:
    """Return the size of a regular file, links followed, before a library opens it by its path.

    Raises `error` where it is anything else (a pipe would be waited for, a device read without end) or has over `most` bytes.
    """
    with reading(path, error):
        status = path.stat()
    return _checked_size(path, status, error, most)


def read_bytes(path: Path, error: type[EdgeConvNextError], *, most: int = MOST_TEXT_BYTES) -> bytes:
    """Read a regular file of at most `most` bytes; raises `error` for anything else."""
    with reading(path, error):
        # Without O_NONBLOCK the mere opening of a named pipe waits for its other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            _checked_size(path, os.fstat(descriptor), error, most)
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                content = stream.read(most + 1)
        finally:
            os.close(descriptor)
    if len(content) > most:  # a file of /proc says 0 bytes and has more; another may grow while it is read
        raise error(_too_large(path, len(content), most))
    return content


def read_text(path: Path, error: type[EdgeConvNextError], *, most: int = MOST_TEXT_BYTES) -> str:
    """Read a regular file of at most `most` bytes as UTF-8, with or without a byte order mark."""
    content = read_bytes(path, error, most=most)
    with reading(path, error):
        return content.decode("utf-8-sig")


def read_json(path: Path, error: type[EdgeConvNextError], *, most: int = MOST_TEXT_BYTES) -> Any:
    """Read a JSON file; raises `error` where it is no JSON, too large, not all text, or nested deeper than MOST_NESTED."""
    return parse_json(read_bytes(path, error, most=most), path, error)


def parse_json(content: str | bytes, source: Path | str, error: type[EdgeConvNextError]) -> Any:
    """Parse JSON that came from `source`; raises `error` as `read_json` does."""
    with reading(source, error):
        value = json.loads(content)
        _walk(value)
    return value


def read_toml(path: Path, error: type[EdgeConvNextError], *, most: int = MOST_TEXT_BYTES) -> dict[str, Any]:
    """Read a TOML file; raises `error` where it is no TOML, too large, or nested deeper than MOST_NESTED."""
    text = read_text(path, error, most=most)
    with reading(path, error):
        value = tomllib.loads(text)
        _walk(value)
    return value


def _checked_size(path: Path, status: os.stat_result, error: type[EdgeConvNextError], most: float) -> int:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "something else")
        raise error(f"{for_terminal(path)} is {kind}, not a regular file. Name a file.")
    if status.st_size > most:
        raise error(_too_large(path, status.st_size, int(most)))
    return status.st_size


def _too_large(path: Path, size: int, most: int) -> str:
    return (
        f"{for_terminal(path)} has {size:,} bytes or more, and at most {most:,} are read. It is not what its name says."
    )


def _walk(value: Any) -> None:
    """Walk lists and objects without recursion, since nothing after this may have to.

    Raises RecursionError where they lie more than MOST_NESTED deep in one another, and UnicodeEncodeError for half a character
    ("\\ud800"), which JSON can say and no file can hold. Names of files that are not UTF-8 are text: Python writes their bytes as
    \\udc80 to \\udcff.
    """
    level = [value]
    for depth in range(MOST_NESTED + 1):
        children: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode(errors="surrogateescape")
            elif isinstance(item, dict | list):
                if depth == MOST_NESTED:
                    raise RecursionError
                children += item.keys() if isinstance(item, dict) else ()
                children += item.values() if isinstance(item, dict) else item
        level = children
