"""What happens to one photograph before it is trained on: random crop, mirroring, RandAugment, random erasing.

Everything is drawn from a generator of the image's own, seeded by recipe, epoch and image: it depends neither on the process that
computes it nor on what was computed before, so that interrupted training goes on exactly.
"""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.train.rand_augment import rand_augment
from edgeconvnext.train.recipe import Recipe

_ASPECTS = (3 / 4, 4 / 3)
_ERASED_SHARE = (0.02, 1 / 3)
_ERASED_ASPECTS = (0.3, 1 / 0.3)
_TRIES = 10


def image_generator(seed: int, epoch: int, index: int) -> random.Random:
    """Return the generator of one image in one epoch. A text seed is hashed by Python the same way on every machine."""
    return random.Random(f"{seed}/{epoch}/{index}")


def augment(
    image: Image.Image, size: int, recipe: Recipe, preprocess: Preprocess, generator: random.Random
) -> np.ndarray:
    """Return one training image, uint8 (size, size, C). image: 8-bit RGB of any size. preprocess: mean, std and channels."""
    image = random_crop(image, size, recipe.smallest_crop, generator)
    if generator.random() < recipe.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if recipe.rand_augment:
        mean = [round(255 * value) for value in preprocess.mean]
        fill = (mean[0], mean[len(mean) // 2], mean[-1])
        image = rand_augment(image, recipe.rand_augment, recipe.rand_augment_std, recipe.operators, fill, generator)
    pixels = np.array(image if preprocess.in_channels == 3 else image.convert("L"), dtype=np.uint8)
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    if generator.random() < recipe.erasing:
        erase(pixels, preprocess, generator)
    return pixels


def random_crop(image: Image.Image, size: int, smallest: float, generator: random.Random) -> Image.Image:
    """Cut out a random part of at least `smallest` of the area and an aspect ratio of 3/4..4/3, and resize it to `size`.

    smallest 1 takes the largest centred square. Where no part fits in ten tries it is the largest centred one that does.
    """
    width, height = image.size
    box = None
    for _ in range(_TRIES if smallest < 1 else 0):
        area = width * height * generator.uniform(smallest, 1.0)
        aspect = math.exp(generator.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1])))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left, top = generator.randint(0, width - across), generator.randint(0, height - down)
            box = (left, top, left + across, top + down)
            break
    if box is None:
        narrow, wide = (1.0, 1.0) if smallest == 1 else _ASPECTS
        aspect = min(max(width / height, narrow), wide)
        across, down = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - across) // 2, (height - down) // 2
        box = (left, top, left + across, top + down)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def erase(pixels: np.ndarray, preprocess: Preprocess, generator: random.Random) -> None:
    """Fill one random rectangle with noise of the mean and deviation that preprocessing states. pixels: uint8 (H, W, C)."""
    height, width = pixels.shape[:2]
    for _ in range(_TRIES):
        area = height * width * generator.uniform(*_ERASED_SHARE)
        aspect = math.exp(generator.uniform(math.log(_ERASED_ASPECTS[0]), math.log(_ERASED_ASPECTS[1])))
        down, across = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < down < height and 0 < across < width:
            top, left = generator.randint(0, height - down), generator.randint(0, width - across)
            noise = np.random.default_rng(generator.getrandbits(64)).standard_normal((down, across, pixels.shape[2]))
            values = 255 * (np.asarray(preprocess.mean) + np.asarray(preprocess.std) * noise)
            pixels[top : top + down, left : left + across] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
            return
