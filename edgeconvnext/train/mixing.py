"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899): a batch mixed with itself, images and classes alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgeconvnext.train.recipe import Recipe


@dataclass(frozen=True)
class Mixed:
    """images: (N, C, H, W). weights: how much of each class is in each image, (N, classes); each row sums to 1."""

    images: torch.Tensor
    weights: torch.Tensor


def mix(
    images: torch.Tensor, labels: torch.Tensor, classes: int, recipe: Recipe, generator: np.random.Generator
) -> Mixed:
    """Mix each image with the one at the mirrored place of the batch, as the recipe says, and smooth the labels.

    images: (N, C, H, W), unchanged; labels: (N,).
    """
    share, box = _draw((images.shape[2], images.shape[3]), recipe, generator)
    if box is not None:
        top, bottom, left, right = box
        images = images.clone(memory_format=torch.preserve_format)
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    elif share < 1:
        images = images * share + images.flip(0) * (1 - share)
    targets = smooth_targets(labels, classes, recipe.label_smoothing)
    return Mixed(images, share * targets + (1 - share) * targets.flip(0))


def smooth_targets(labels: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """Return 1 - smoothing for the image's class and `smoothing` spread over all classes, (N, classes)."""
    targets = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / classes)


def _draw(
    size: tuple[int, int], recipe: Recipe, generator: np.random.Generator
) -> tuple[float, tuple[int, int, int, int] | None]:
    """Return the share of each image's own class, and the rectangle (top, bottom, left, right) that cutmix replaces."""
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(recipe, kind)]
    if not kinds:
        return 1.0, None
    kind = kinds[int(generator.integers(len(kinds)))]
    share = float(generator.beta(*[getattr(recipe, kind)] * 2))
    if kind == "mixup":
        return share, None
    height, width = size
    sides = [round(side * (1 - share) ** 0.5) for side in size]
    middle = [int(generator.integers(side)) for side in size]
    top, bottom = (min(height, max(0, middle[0] + half)) for half in (-(sides[0] // 2), sides[0] - sides[0] // 2))
    left, right = (min(width, max(0, middle[1] + half)) for half in (-(sides[1] // 2), sides[1] - sides[1] // 2))
    # The rectangle was cut at the border: what it really covers is what counts.
    return 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right)
