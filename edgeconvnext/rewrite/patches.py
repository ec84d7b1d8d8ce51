"""What each output position of a conv sees of its input."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn


def windows(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Return the input of each output position, a view: x, (N, C, H, W), as (N, C, output H, output W, kH, kW)."""
    height, width = cast(tuple[int, int], conv.padding)
    padded = nn.functional.pad(x, (width, width, height, height))
    return padded.unfold(2, conv.kernel_size[0], conv.stride[0]).unfold(3, conv.kernel_size[1], conv.stride[1])


def patch_rows(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Return the same for an ungrouped conv as (positions, C * kH * kW), columns in the order of its weights.

    Columns are gathered image by image, positions last in memory, as `torch.nn.functional.unfold` has them.
    """
    columns = windows(conv, x).permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)
    return columns.transpose(1, 2).flatten(0, 1)
