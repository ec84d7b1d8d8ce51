"""Where the files that travel with the package lie: `calib/` and `targets/`, in a checkout or in an installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(kind: Literal["calib", "targets"]) -> Path:
    """Return the folder of shipped calibration sets or targets: the checkout's top-level one, else the wheel's copy."""
    installed = _PACKAGE / f"_{kind}"
    return installed if installed.is_dir() else _PACKAGE.parent / kind
