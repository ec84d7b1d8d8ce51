"""Networks that the tests of LayerNorm replacement share."""

from __future__ import annotations

import torch

from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.rewrite.exact import fold_layer_scale, fold_norm_affine

SMALL = {"depths": (1, 2), "dims": (8, 16), "num_classes": 5, "layer_scale": False}
CONFIGS = {
    "v1": ConvNeXtConfig(**SMALL),
    "v2": ConvNeXtConfig(**SMALL, version=2),
    "overlap": ConvNeXtConfig(**SMALL, stem="overlap"),
    "head norm first": ConvNeXtConfig(**SMALL, head_norm="before_pool"),
}


def folded_network(config: ConvNeXtConfig, seed: int = 0) -> ConvNeXt:
    """A folded network with weights large enough that every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    module = ConvNeXt(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            spread = 0.3 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
        for name, parameter in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return fold_norm_affine(fold_layer_scale(module))
