"""Where files lie that travel with the package (`calib/`, `targets/`) and those that it keeps for its user."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).resolve().parent


def resource_dir(kind: Literal["calib", "targets"]) -> Path:
    """Return the folder of shipped calibration sets or targets: the checkout's top-level one, else the wheel's copy."""
    installed = PACKAGE / f"_{kind}"
    return installed if installed.is_dir() else PACKAGE.parent / kind


def state_dir() -> Path | None:
    """Return the folder for this user's key and fault logs, in $XDG_STATE_HOME or ~/.local/state; None without a home."""
    chosen = os.environ.get("XDG_STATE_HOME")
    if chosen and Path(chosen).is_absolute():  # the XDG specification: a relative path is to be ignored
        return Path(chosen) / "edgeconvnext"
    try:
        return Path.home() / ".local" / "state" / "edgeconvnext"
    except RuntimeError:
        return None
