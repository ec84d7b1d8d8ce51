"""Files that are never half written, their hashes, and what to say when the disk refuses."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeconvnext.errors import EdgeConvNextError, RunDirectoryError
from edgeconvnext.escape import for_terminal

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

TEMPORARY_PREFIX = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EEXIST: "it is a file, and a folder is needed there",
    errno.ENOTDIR: "a part of its path is a file",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "it is a link, or links lead in a circle",
}


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one, never a part.

    Text is written as UTF-8. Raises RunDirectoryError where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    with storage_errors(path):
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            temporary.replace(path)
        except FileNotFoundError as error:  # of the folder: /proc, say, or one that was removed meanwhile
            raise RunDirectoryError(
                f"{for_terminal(path)} cannot be written: its folder is not there, or takes no files. Choose another one with "
                "--output."
            ) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def tree_files(path: Path) -> dict[str, Path]:
    """Return the files under a folder by their relative path with forward slashes, sorted."""
    files = (file for file in path.rglob("*") if file.is_file())
    return dict(sorted((file.relative_to(path).as_posix(), file) for file in files))


def tree_sha256(path: Path) -> str:
    """Hash a file, or a folder as a tree: sha256 over each file's relative path and sha256, in sorted order."""
    if path.is_dir():
        lines = (f"{name}\0{tree_sha256(file)}\n" for name, file in tree_files(path).items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_size(path: Path) -> int:
    """Return the bytes of a file, or the sum over the files of a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in tree_files(path).values())
    return path.stat().st_size


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a refused write below `path` into one RunDirectoryError that says the way out.

    Errors about files elsewhere (an image that may not be read) pass through unchanged.
    """
    try:
        yield
    except EdgeConvNextError:
        raise
    except Exception as error:
        if _is_disk_full(error, path):
            free = shutil.disk_usage(_existing(path)).free
            raise RunDirectoryError(
                f"The disk is full while writing {path} ({free / 2**20:.1f} MiB free). Free some space or choose a "
                "folder on another disk with --output, then run the same command again: finished stages are reused."
            ) from error
        if _is_too_large(error):
            raise RunDirectoryError(
                f"{_at_the_limit(path)} cannot be written: it is larger than files may be here (see ulimit -f, or the file "
                "system's own limit). Raise the limit, or choose a folder on another disk with --output."
            ) from error
        if isinstance(error, OSError) and error.errno in _REFUSED and _concerns(error, path):
            named = None if error.filename is None else Path(os.fsdecode(error.filename))
            file = path if named is None or named.name.startswith(TEMPORARY_PREFIX) else named
            raise RunDirectoryError(
                f"{file} cannot be written: {_REFUSED[error.errno]}. Choose a folder you can write to with --output."
            ) from error
        raise


def _is_disk_full(error: Exception, path: Path) -> bool:
    """Say whether `error` comes from a full disk; C++ and Rust writers report it as text, or not at all."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    if "No space left on device" in str(error) or "os error 28" in str(error):
        return True
    # torch.save says no more than "iostream error"; with nothing left on the disk that was the reason.
    return isinstance(error, RuntimeError) and shutil.disk_usage(_existing(path)).free < 2**16


def _is_too_large(error: Exception) -> bool:
    """Say whether a write went over the limit of a file's size."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.EFBIG
    return "File too large" in str(error) or "os error 27" in str(error)


def _at_the_limit(path: Path) -> Path:
    """Return the file below `path` that was written up to the limit, else `path`: an error about a write names no file."""
    if resource is None or not path.is_dir():
        return path
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    name = next((name for name, file in tree_files(path).items() if file.stat().st_size == limit), None)
    if name is None:
        return path
    first, _, rest = name.partition("/")
    return path / (rest if first.startswith(TEMPORARY_PREFIX) and rest else name)


def _concerns(error: OSError, path: Path) -> bool:
    """Say whether `error` is about a file in the folder of `path`, that folder, or a parent that could not be made."""
    if error.filename is None:  # writes to an open file name none
        return error.errno == errno.EROFS
    folder = (path if path.is_dir() else path.parent).absolute()
    file = Path(os.fsdecode(error.filename)).absolute()
    return file.is_relative_to(folder) or folder.is_relative_to(file)


def _existing(path: Path) -> Path:
    """Return `path` or its nearest parent that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
