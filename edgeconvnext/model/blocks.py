"""Parts that networks of several families share."""

from __future__ import annotations

import torch
from torch import nn

from edgeconvnext.errors import ModelConfigError
from edgeconvnext.model.network import EndsWith


def check_end(ends_with: EndsWith, num_classes: int) -> None:
    """Raise ModelConfigError where a network that ends with its stages is to have a classifier."""
    if ends_with != "head" and num_classes:
        raise ModelConfigError(
            f'ends_with "{ends_with}" leaves the classifier out, so num_classes must be 0; it is {num_classes}.'
        )


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each position. x: (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def initialise_truncated_normal(module: nn.Module) -> None:
    """Truncated normal, sigma 0.02, biases zero (paper, table 5)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
