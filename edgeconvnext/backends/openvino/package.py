"""OpenVINO's Python package: imported where it is installed, named where it is missing."""

from __future__ import annotations

from types import ModuleType

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
