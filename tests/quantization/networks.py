"""A small network and a yardstick that the quantization tests share."""

import torch

from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig


def small_network(version: int = 1, stem: str = "patch") -> ConvNeXt:
    """A two-stage ConvNeXt with weights large enough that every layer matters."""
    torch.manual_seed(0)
    module = ConvNeXt(ConvNeXtConfig((1, 2), (16, 32), num_classes=7, version=version, stem=stem))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
            )
    return module.eval()


def sqnr_db(reference: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (reference - other).square().sum()))
