"""ConvNeXt V1 and V2: the network, the checkpoints it comes in, and what it costs.

Names are imported where they are first used: the network alone needs torch and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeconvnext.data.label_names import Labels
    from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
    from edgeconvnext.model.load import load_model
    from edgeconvnext.model.loaded import LoadedModel

__all__ = ["ConvNeXt", "ConvNeXtConfig", "Labels", "LoadedModel", "load_model"]

_HOMES = {
    "ConvNeXt": "edgeconvnext.model.convnext.network",
    "ConvNeXtConfig": "edgeconvnext.model.convnext.network",
    "Labels": "edgeconvnext.data.label_names",
    "LoadedModel": "edgeconvnext.model.loaded",
    "load_model": "edgeconvnext.model.load",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgeconvnext.model' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
