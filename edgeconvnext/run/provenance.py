"""Which stages this user's own toolkit made: a key that only the user can read, and a code over each record made with it.

A record's hashes say that files are what the record says; anybody can write such a record. The code (HMAC-SHA256) says that the
record was written with the key of this user on this machine, so a folder from somebody else cannot carry it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.resources import state_dir

KEY_BYTES = 32
_PURPOSE = b"edgeconvnext stage record 1\0"


def key_file() -> Path | None:
    """Return where the key lies; None where there is no home."""
    folder = state_dir()
    return None if folder is None else folder / "key"


def user_key() -> bytes | None:
    """Return this user's key, made when there is none; None where none can be kept: then no stage counts as one's own.

    Raises RunDirectoryError for a key that others can read or that belongs to somebody else.
    """
    path = key_file()
    if path is None:
        return None
    try:
        return _read(path)
    except OSError as error:
        if path.is_symlink():
            raise RunDirectoryError(
                f"{path} is a link, not a key of edgeconvnext. Remove it; a new one is made."
            ) from error
        if not isinstance(error, FileNotFoundError):
            return None
    try:
        _create(path)
        return _read(path)
    except OSError:  # a home that is read-only
        return None
    except RunDirectoryError:  # a file system that keeps no permissions
        path.unlink()
        return None


def code_of(content: bytes, key: bytes) -> str:
    """Return the code of a record's content, in hex."""
    return hmac.new(key, _PURPOSE + content, hashlib.sha256).hexdigest()


def is_code_of(code: str | None, content: bytes, key: bytes | None) -> bool:
    """Say whether `code` was made of this content with this key, in a time that tells nothing of the right code."""
    if code is None or key is None:
        return False
    return hmac.compare_digest(code.encode(errors="surrogatepass"), code_of(content, key).encode())


def _read(path: Path) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != KEY_BYTES:
            raise RunDirectoryError(f"{path} is not a key of edgeconvnext. Remove it; a new one is made.")
        if not _is_private(status):
            raise RunDirectoryError(
                f"{path} says which runs are your own, and others can read or own it (mode {stat.S_IMODE(status.st_mode):04o}). "
                "Remove it; a new one is made, and runs made so far are reused with --reuse only."
            )
        return os.read(descriptor, KEY_BYTES)
    finally:
        os.close(descriptor)


def _is_private(status: os.stat_result) -> bool:
    if os.name != "posix":  # Windows keeps a user's folder from others by other means than these bits
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _create(path: Path) -> None:
    """Write a new key beside `path` and link it there whole: of two processes one wins, and both read the same key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"key.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
