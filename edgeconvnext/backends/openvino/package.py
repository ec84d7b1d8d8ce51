"""OpenVINO's Python package: imported where it is installed, named where it is missing."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from edgeconvnext.errors import RuntimeMissingError


def import_openvino() -> ModuleType:
    """Import openvino. Raises RuntimeMissingError where it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise RuntimeMissingError(
            "OpenVINO writes and runs IR files, and it is not installed. Install it with: pip install 'edgeconvnext[openvino]'."
        ) from error
    return openvino  # type: ignore[no-any-return]


@cache
def core() -> Any:
    """Return the one Core of this process; it is never dropped.

    OpenVINO 2026.4's CPU plugin sets the signal stack of the thread that loads it, and frees that memory with the last Core. Where
    another thread drops that Core (the garbage collector runs in any), the first thread's next signal is a segmentation fault.
    """
    return import_openvino().Core()
