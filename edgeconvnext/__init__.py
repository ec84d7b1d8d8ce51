"""From a trained ConvNeXt to measured INT8 artifacts for TensorRT, Core ML and ONNX Runtime.

The functions below do what the commands of the same names do. They are imported where they are first used, so that
`import edgeconvnext` is fast.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeconvnext.api import (
        analyze,
        compare,
        compress,
        export,
        fold,
        load_model,
        predict,
        prune,
        quantize,
        quantize_within,
        quantized_program,
        search,
        validate,
    )
    from edgeconvnext.prediction.artifact import load_artifact
    from edgeconvnext.tuning.compress import CompressOptions

__all__ = [
    "CompressOptions",
    "__version__",
    "analyze",
    "compare",
    "compress",
    "export",
    "fold",
    "load_artifact",
    "load_model",
    "predict",
    "prune",
    "quantize",
    "quantize_within",
    "quantized_program",
    "search",
    "validate",
]

_HOMES = {
    "CompressOptions": "edgeconvnext.tuning.compress",
    "load_artifact": "edgeconvnext.prediction.artifact",
} | dict.fromkeys(
    (
        "analyze",
        "compare",
        "compress",
        "export",
        "fold",
        "load_model",
        "predict",
        "prune",
        "quantize",
        "quantize_within",
        "quantized_program",
        "search",
        "validate",
    ),
    "edgeconvnext.api",
)


def __getattr__(name: str) -> Any:
    if name == "__version__":  # asked of the installation, which a checkout on PYTHONPATH has not
        return metadata.version("edgeconvnext")
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeconvnext' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
