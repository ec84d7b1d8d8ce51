"""ConvNeXt V1 and V2: the network, the checkpoints it comes in, and what it costs."""

from edgeconvnext.model.convnext import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import Labels, LoadedModel

__all__ = ["ConvNeXt", "ConvNeXtConfig", "Labels", "LoadedModel", "load_model"]
