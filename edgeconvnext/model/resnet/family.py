"""ResNets with bottlenecks, and the steps from there to ConvNeXt, as a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from edgeconvnext.model.family import Architecture, Family, NormRow
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network, NetworkConfig
from edgeconvnext.model.renamed import Renamed
from edgeconvnext.model.resnet.checkpoint import infer_resnet, rename_resnet
from edgeconvnext.model.resnet.network import ResNet, ResNetConfig
from edgeconvnext.model.resnet.roadmap import RESNET_ATTO, STEPS, as_convnext, match_step


class ResNetFamily(Family):
    """ResNet-50 and deeper, wide ones, ResNeXt, and every step of the roadmap but the last, which is a ConvNeXt."""

    name = "resnet"
    title = "ResNet"
    readable = "ResNet-50 and ResNeXt as saved by torchvision and timm"
    config = ResNetConfig
    network = ResNet
    architectures: ClassVar[Mapping[str, Architecture]] = {
        **{
            name: Architecture(name, step.config, step.published_gflops)
            for name, step in STEPS.items()
            if as_convnext(step.config) is None
        },
        "resnet_atto": Architecture("resnet_atto", RESNET_ATTO, None),
    }
    norm_kind = "BatchNorms"

    def rename(self, tensors: Mapping[str, torch.Tensor], source: str) -> Renamed | None:
        return rename_resnet(tensors, source)

    def infer(self, renamed: Renamed, source: str) -> ResNetConfig:
        return infer_resnet(renamed, source)

    def canonical(self, config: ResNetConfig) -> NetworkConfig:
        return as_convnext(config) or config

    def match(self, config: ResNetConfig) -> Architecture | None:
        step = match_step(config)
        return None if step is None else self.architectures.get(step.name)

    def stem_and_head(self, config: ResNetConfig) -> str:
        stem = "4x4 patches" if config.stem == "patch" else "7x7 conv and pooling"
        return f"{stem}; {'norm after pooling' if config.separate_downsampling else 'no norm'}"

    def norm_rows(self, module: Network) -> list[NormRow]:
        """Return the BatchNorms; LayerNorms keep their affine."""
        kinds = weighted_layers(module)
        rows = []
        for layer, norm in module.norms_behind():
            channels = module.get_parameter(f"{norm}.weight").numel()
            followed = "addition" if kinds[layer] in ("projection", "pointwise2") else "activation or next layer"
            rows.append(NormRow(norm, channels, followed, layer, "only this layer's output reaches it"))
        return rows
