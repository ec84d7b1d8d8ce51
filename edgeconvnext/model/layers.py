"""Names and kinds of the layers that carry weights, in forward order."""

from __future__ import annotations

from edgeconvnext.model.convnext import ConvNeXt
from edgeconvnext.targets import Operator


def weighted_layers(module: ConvNeXt) -> dict[str, Operator]:
    """Return every conv and linear of `module` by its path, with its kind, in the order data passes them."""
    layers: dict[str, Operator] = {}
    stem_convs = len(module.downsample_layers[0]) - 1
    for index in range(stem_convs):
        layers[f"downsample_layers.0.{index}"] = "stem"
    for stage, blocks in enumerate(module.stages):
        if stage:
            layers[f"downsample_layers.{stage}.1"] = "downsample"
        for block in range(len(blocks)):
            path = f"stages.{stage}.{block}"
            layers[f"{path}.dwconv"] = "depthwise"
            layers[f"{path}.pwconv1"] = "pointwise1"
            layers[f"{path}.pwconv2"] = "pointwise2"
    if module.config.num_classes:
        layers["head"] = "head"
    return layers
