"""ConvNeXt V1 and V2 as a family: their checkpoints, published networks and descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from edgeconvnext.model.convnext.infer import hint, infer_config
from edgeconvnext.model.convnext.layouts import rename
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.convnext.presets import PRESETS, Preset, find_preset, match_preset, preset_hub_name
from edgeconvnext.model.family import Architecture, Family, NormRow
from edgeconvnext.model.network import Network
from edgeconvnext.model.renamed import Renamed

_STEM_REASON = "feeds the residual stream and a zero-padded depthwise conv: a shift would reach the borders differently"
_REASONS = {
    "downsample": "the 2x2 conv has no padding",
    "block": "a linear layer follows",
    "before_pool": "the mean over positions is linear",
}


class ConvNeXtFamily(Family):
    """Both versions, with the stems and heads of every library that trains them."""

    name = "convnext"
    title = "ConvNeXt"
    readable = "ConvNeXt V1 and V2 as saved by facebookresearch, timm, torchvision and transformers"
    config = ConvNeXtConfig
    network = ConvNeXt
    architectures: ClassVar[Mapping[str, Architecture]] = {
        name: Architecture(name, preset.config, preset.gflops) for name, preset in PRESETS.items()
    }
    norm_kind = "LayerNorms"

    def rename(self, tensors: Mapping[str, torch.Tensor], source: str) -> Renamed | None:
        return rename(tensors)

    def infer(self, renamed: Renamed, source: str) -> ConvNeXtConfig:
        return infer_config(renamed, source)

    def hint(self, missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
        return hint(missing, unexpected, misshapen)

    def find(self, name: str) -> Architecture | None:
        return self._known(find_preset(name))

    def hub_name(self, name: str) -> str | None:
        return preset_hub_name(name)

    def match(self, config: ConvNeXtConfig) -> Architecture | None:
        return self._known(match_preset(config))

    def _known(self, preset: Preset | None) -> Architecture | None:
        return None if preset is None else self.architectures[preset.name]

    def variant(self, config: ConvNeXtConfig) -> str:
        return f"V{config.version}"

    def stem_and_head(self, config: ConvNeXtConfig) -> str:
        patches = f"{config.patch_size}x{config.patch_size} patches"
        stem = patches if config.stem == "patch" else f"two 3x3 convs ({config.stem})"
        return f"{stem}; norm {config.head_norm.replace('_', ' ')}ing"

    def norm_rows(self, module: Network) -> list[NormRow]:
        """Return the LayerNorms that are there or were replaced, in the order data passes them."""
        assert isinstance(module, ConvNeXt)
        config, layers = module.config, dict(module.norms_in_front())
        stem, *others = config.norm_paths
        rows = [NormRow(stem, config.dims[0], "stages.0.0 (residual and dwconv)", None, _STEM_REASON)]
        for path in others:
            if path == "norm":
                rows.append(_head_row(module))
                continue
            kind, stage = path.split(".")[:2]
            if kind == "stages":
                rows.append(_row(module, path, config.dims[int(stage)], layers[path], _REASONS["block"]))
            else:
                rows.append(_row(module, path, config.dims[int(stage) - 1], layers[path], _REASONS["downsample"]))
        return rows


def _head_row(module: ConvNeXt) -> NormRow:
    pooled_after = module.config.head_norm == "before_pool"
    channels = module.config.dims[-1]
    if not module.config.num_classes:
        followed = "average pooling, output" if pooled_after else "output"
        return NormRow("norm", channels, followed, None, "its result is the output; there is no classifier")
    if pooled_after:
        return _row(module, "norm", channels, "head", _REASONS["before_pool"], "average pooling, head")
    return _row(module, "norm", channels, "head", _REASONS["block"])


def _row(module: ConvNeXt, name: str, channels: int, into: str, reason: str, followed_by: str | None = None) -> NormRow:
    norm = module.get_submodule(name)
    if isinstance(norm, nn.LayerNorm) and _is_identity(norm):
        return NormRow(name, channels, followed_by or into, None, "already folded: scale 1, shift 0")
    return NormRow(name, channels, followed_by or into, into, reason)


def _is_identity(norm: nn.LayerNorm) -> bool:
    plain_scale = norm.weight is None or bool(torch.all(norm.weight == 1))
    return plain_scale and (norm.bias is None or bool(torch.all(norm.bias == 0)))
