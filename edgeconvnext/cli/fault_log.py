"""The log of a fault: what a user sends so that it can be mended. It holds no environment variables and no file contents."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from edgeconvnext.escape import lines_for_terminal
from edgeconvnext.resources import state_dir


def write_fault_log(error: BaseException) -> Path | None:
    """Write traceback, command and versions into the state folder, else the system's folder for temporary files.

    Returns the file, or None where neither can be written.
    """
    now = datetime.now(UTC)
    text = _text(error, now)
    name = f"fault-{now:%Y%m%d-%H%M%S}-{os.getpid()}.log"
    for folder in (state_dir(), Path(tempfile.gettempdir())):
        if folder is None:
            continue
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            return folder / name
    return None


def _text(error: BaseException, now: datetime) -> str:
    try:
        from edgeconvnext.machine import package_versions

        versions = "\n".join(f"{name} {version}" for name, version in package_versions().items())
    except Exception as failure:  # the fault may be that a package cannot be imported
        versions = f"not known: {failure!r}"
    lines = (
        f"edgeconvnext fault, {now:%Y-%m-%d %H:%M:%S} UTC",
        f"command: {' '.join(sys.argv)}",
        f"platform: {sys.platform}, Python {sys.version}",
        versions,
        "".join(traceback.format_exception(error)),
    )
    return lines_for_terminal("\n\n".join(lines))
