"""A feature pyramid and a centre detector on a ConvNeXt's four stage outputs (arXiv 1612.03144, arXiv 1904.07850).

    python docs/examples/fpn.py weights.pth FOLDER_OF_PHOTOGRAPHS

Photographs have no boxes, so they are made: a second photograph, made small, is pasted into the first, and the detector learns to
find its centre. Replace `pasted` by a data set with boxes, and the rest stays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import edgeconvnext
from edgeconvnext.data.loader import batches
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.model.blocks import LayerNorm2d
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.network import Network

STRIDE = 8
"""Pixels per position of the heatmap: the pyramid's second level."""


class FeaturePyramid(nn.Module):
    """Maps of equal width from stage outputs, the deeper added to the shallower ones. Stage outputs bring no norm: it is here."""

    def __init__(self, dims: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm2d(dim) for dim in dims)
        self.lateral = nn.ModuleList(nn.Conv2d(dim, width, kernel_size=1) for dim in dims)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in dims)

    def forward(self, *stages: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """stages: (N, dims[s], H / 2**(s+2), W / 2**(s+2)); returns (N, width, ...) of the same sizes."""
        levels = [lateral(norm(stage)) for norm, lateral, stage in zip(self.norms, self.lateral, stages, strict=True)]
        for index in range(len(levels) - 1, 0, -1):
            levels[index - 1] = levels[index - 1] + F.interpolate(levels[index], scale_factor=2.0, mode="nearest")
        return tuple(smooth(level) for smooth, level in zip(self.smooth, levels, strict=True))


class CentreHead(nn.Module):
    """One number for each position of the second level: the logit of an object's centre lying there, (N, 1, H / 8, W / 8)."""

    def __init__(self, dims: tuple[int, ...], width: int = 32) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(dims, width)
        self.centre = nn.Conv2d(width, 1, kernel_size=1)
        nn.init.constant_(self.centre.bias, -4.0)  # type: ignore[arg-type]  # centres are rare

    def forward(self, *stages: torch.Tensor) -> torch.Tensor:
        heatmap: torch.Tensor = self.centre(F.relu(self.pyramid(*stages)[1]))
        return heatmap


def pasted(photographs: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste each photograph, a quarter as large, into the one before it; return images and heatmaps with a one at each centre."""
    count, _, height, width = photographs.shape
    small = F.interpolate(photographs.roll(-1, dims=0), scale_factor=0.25, mode="bilinear", antialias=True)
    images, heatmaps = photographs.clone(), torch.zeros(count, 1, height // STRIDE, width // STRIDE)
    for index, piece in enumerate(small):
        (high, wide), spare = piece.shape[1:], (height - piece.shape[1], width - piece.shape[2])
        top, left = (int(torch.randint(side + 1, (1,), generator=generator)) for side in spare)
        images[index, :, top : top + high, left : left + wide] = piece
        heatmaps[index, 0, (top + high // 2) // STRIDE, (left + wide // 2) // STRIDE] = 1.0
    return images, heatmaps


def focal_loss(logits: torch.Tensor, heatmaps: torch.Tensor) -> torch.Tensor:
    """Focal loss (arXiv 1708.02002) for each object: positions that are easy count little, because almost all of them are."""
    each = F.binary_cross_entropy_with_logits(logits, heatmaps, reduction="none")
    right = torch.where(heatmaps > 0, logits.sigmoid(), 1 - logits.sigmoid())
    return ((1 - right) ** 2 * each).sum() / heatmaps.sum()


def photographs(model: LoadedModel, folder: str | Path, count: int) -> Iterator[torch.Tensor]:
    """Yield batches of photographs as the model takes them, again and again."""
    images = resolve_image_set(str(folder)).take(count)
    while True:
        for batch in batches(images, model.preprocess, 16):
            yield batch.images


def train(
    backbone: Network, head: CentreHead, images: Iterator[torch.Tensor], steps: int, *, frozen: bool = True
) -> list[float]:
    """Train the head, and the backbone with it unless `frozen`; return the loss of every step."""
    generator = torch.Generator().manual_seed(0)
    trained = [*head.parameters(), *([] if frozen else backbone.parameters())]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.05)
    losses = []
    for _ in range(steps):
        inputs, heatmaps = pasted(next(images), generator)
        with torch.set_grad_enabled(not frozen):
            stages = backbone(inputs)
        loss = focal_loss(head(*stages), heatmaps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    loaded = edgeconvnext.load_model(sys.argv[1], head="features")
    detector = CentreHead(loaded.config.dims)
    told = train(loaded.module, detector, photographs(loaded, sys.argv[2], 256), steps=100)
    print("loss", ", ".join(f"{loss:.2f}" for loss in told[::10]))
    torch.save(detector.state_dict(), "centre_head.pth")
