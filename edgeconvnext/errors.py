"""What a user can do wrong, and what to do about it.

Every class below stands for one thing the user can fix. Messages say what is wrong, where, and how to
fix it, in one paragraph. The command line prints them without a traceback and ends with `exit_code`.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable


class EdgeConvNextError(Exception):
    """Base of every error a user can fix; bugs raise something else and keep their traceback."""

    exit_code = 1


class OptionError(EdgeConvNextError):
    """A value that an option does not take, or options that contradict each other.

    wording: the message, from how an option's name is written: --num-images on the command line, num_images in Python.
    """

    def __init__(self, wording: Callable[[Callable[[str], str]], str]) -> None:
        super().__init__(wording(str))
        self.wording = wording


class CheckpointError(EdgeConvNextError):
    """The weights file, directory or hub name cannot be read as a ConvNeXt."""


class HubUnreachableError(CheckpointError):
    """The hub does not answer, and the file is not in the local cache."""


class ModelConfigError(EdgeConvNextError):
    """An architecture that cannot be built: sizes, version, stem or input size."""


class ImageSetError(EdgeConvNextError):
    """A calibration or evaluation set cannot be found, read or used."""


class LabelMismatchError(ImageSetError):
    """The classes of an image set do not match the classes of the model."""


class TargetError(EdgeConvNextError):
    """An unknown target, or a target file that does not hold."""


class ConfigFileError(EdgeConvNextError):
    """A TOML or JSON file with an unknown key, a wrong type or a missing value."""


class RewriteError(EdgeConvNextError):
    """A rewrite that is not exact enough on this model, or cannot be done on it."""


class TrainingError(EdgeConvNextError):
    """A recipe that does not hold, images that cannot be trained on, or training that diverged."""


class QuantizationError(EdgeConvNextError):
    """The model cannot be quantised as asked."""


class ExportError(EdgeConvNextError):
    """The artifact cannot be written for this target."""


class RunDirectoryError(EdgeConvNextError):
    """A run directory that cannot be used: in use, not writable, full, or not a run."""


class DownloadError(EdgeConvNextError):
    """A download failed or what arrived is not what was promised."""


class DeviceResultsError(EdgeConvNextError):
    """A device.json that cannot be read, or that belongs to another run."""


class RemoteError(EdgeConvNextError):
    """A device that cannot be reached, or that has no room for the kit."""


class RuntimeMissingError(EdgeConvNextError):
    """What was asked needs the target's runtime, and it is not on this machine."""

    exit_code = 4


class UnusablePathError(EdgeConvNextError):
    """A path, disk or output stream that the system refuses."""


class OutOfMemoryError(EdgeConvNextError):
    """The process may not use as much memory as the work needs."""


GATE_MISSED_EXIT_CODE = 3
FAULT_EXIT_CODE = 70

# What a path or disk of the user's can be refused for wherever it is touched; any other system error is a bug.
_USERS_TO_FIX = frozenset(
    {
        *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ETXTBSY, errno.EMFILE, errno.ENFILE),
    }
)
# torch, onnxruntime, the dynamic linker and threading report a memory limit as text only.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment from shared object",
    "std::bad_alloc",
    "out of memory",
    "can't start new thread",
    "failed to allocate memory",
    "unable to allocate",
)


def user_error(error: BaseException) -> EdgeConvNextError | None:
    """Return what a user can fix about an exception that reached the top; None for a fault of the package."""
    if isinstance(error, EdgeConvNextError):
        return error
    text = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError | RuntimeError | ImportError) and any(word in text.lower() for word in _OUT_OF_MEMORY)
    ):
        return OutOfMemoryError(
            "The memory ran out, or a limit on it (ulimit -v, a container's) is too small for this work. Close other programs, "
            "raise the limit, or use smaller images, fewer threads or --effort quick; finished stages are reused."
        )
    if isinstance(error, OSError) and error.errno in _USERS_TO_FIX:
        return UnusablePathError(f"{error.filename or 'The output'} cannot be used: {error.strerror}.")
    return None


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean a, b?' for the known names closest to `word`, or '' where none is close."""
    known = list(known)
    # Where one is all but the same, the merely similar ones are noise.
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.85) or difflib.get_close_matches(
        word, known, n=3, cutoff=0.5
    )
    return f" Did you mean {' or '.join(close)}?" if close else ""
