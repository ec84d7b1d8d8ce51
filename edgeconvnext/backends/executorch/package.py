"""ExecuTorch's Python package: imported where it is installed, named where it is missing."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

from edgeconvnext.errors import RuntimeMissingError


def import_executorch(module: str) -> Any:
    """Import a module of executorch. Raises RuntimeMissingError where it is not installed."""
    try:
        return import_module(f"executorch.{module}")
    except ImportError as error:
        raise RuntimeMissingError(
            f"ExecuTorch writes and runs .pte files, and executorch.{module} cannot be imported ({error}). Install it with: "
            "pip install 'edgeconvnext[executorch]'."
        ) from error


def installed_version() -> str:
    """Return the version of the package."""
    return metadata.version("executorch")
