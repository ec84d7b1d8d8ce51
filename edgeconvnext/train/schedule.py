"""How the learning rate changes while a network is trained."""

from __future__ import annotations

import math

from edgeconvnext.train.recipe import Recipe


def rate_factor(progress: float, warm_up: float, floor: float = 0.0) -> float:
    """Return the factor of the learning rate: linear over the first `warm_up`, then a cosine down to `floor`.

    progress: how much of training is done, 0..1. warm_up: its share of that. It starts at a fiftieth rather than at nothing.
    """
    if progress < warm_up:
        return max(progress / warm_up, 0.02)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))


def step_factor(progress: float, warm_up: float) -> float:
    """Return the factor of the learning rate: linear over `warm_up`, then 1, a tenth from 1/3 and a hundredth from 2/3 on."""
    if progress < warm_up:
        return max(progress / warm_up, 0.02)
    # Epoch 30 of 90 is a hair below one third in binary.
    return 0.1 ** min(2, math.floor(3 * progress + 1e-9))


def recipe_factor(recipe: Recipe, progress: float) -> float:
    """Return the factor of `recipe.step_rate` when `progress` (0..1) of training is done."""
    warm_up = recipe.warm_up_epochs / recipe.epochs
    if recipe.schedule == "step":
        return step_factor(progress, warm_up)
    return rate_factor(progress, warm_up, min(1.0, recipe.min_rate / recipe.step_rate))
