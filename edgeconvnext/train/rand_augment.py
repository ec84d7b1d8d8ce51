"""RandAugment (arXiv 1909.13719) on Pillow images, with the increasing strengths that the ConvNeXt recipe takes.

Written here because what libraries offer does not serve: kornia's draws one policy for a whole batch of float tensors, and
torchvision's and timm's come with torchvision.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

Fill = tuple[int, int, int]
Operator = Callable[[Image.Image, float, Fill], Image.Image]
"""(image, strength, fill) -> image. strength: -1..1, or 0..1 where a sign says nothing; 0 changes nothing. fill: what enters."""

_LARGEST_SHIFT, _LARGEST_SHEAR, _LARGEST_ANGLE, _LARGEST_ENHANCEMENT = 0.45, 0.3, 30.0, 0.9
LARGEST_MAGNITUDE = 10.0


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)


def _shear_x(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(image, (1, _LARGEST_SHEAR * strength, 0, 0, 1, 0), fill)


def _shear_y(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(image, (1, 0, 0, _LARGEST_SHEAR * strength, 1, 0), fill)


def _shift_x(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(image, (1, 0, _LARGEST_SHIFT * strength * image.width, 0, 1, 0), fill)


def _shift_y(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, _LARGEST_SHIFT * strength * image.height), fill)


def _rotate(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return image.rotate(_LARGEST_ANGLE * strength, Image.Resampling.BILINEAR, fillcolor=fill)


def _posterize(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """8 bits a channel down to 4."""
    return ImageOps.posterize(image, 8 - round(4 * abs(strength)))


def _solarize(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Invert what is brighter than 256 (nothing) down to 0 (everything)."""
    return ImageOps.solarize(image, 256 - round(256 * abs(strength)))


def _solarize_add(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Brighten the dark half by up to 110."""
    added = round(110 * abs(strength))
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operator:
    def change(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
        return kind(image).enhance(1 + _LARGEST_ENHANCEMENT * strength)

    return change


def _whole(change: Callable[[Image.Image], Image.Image]) -> Operator:
    """An operator without a strength; it is left out at 0, so that 0 changes nothing."""
    return lambda image, strength, fill: change(image) if strength else image


OPERATORS: dict[str, Operator] = {
    "autocontrast": _whole(ImageOps.autocontrast),
    "equalize": _whole(ImageOps.equalize),
    "invert": _whole(ImageOps.invert),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "shift_x": _shift_x,
    "shift_y": _shift_y,
}


def rand_augment(
    image: Image.Image, magnitude: float, spread: float, operators: int, fill: Fill, generator: random.Random
) -> Image.Image:
    """Apply random operators, each with probability a half, as the recipe's `rand-m9-mstd0.5` does.

    magnitude: 0..10, the mean of each operator's strength in tenths; spread: its standard deviation. image: 8-bit RGB.
    """
    for name in generator.choices(list(OPERATORS), k=operators):
        if generator.random() < 0.5:
            continue
        drawn = min(LARGEST_MAGNITUDE, max(0.0, generator.gauss(magnitude, spread)))
        sign = 1 if generator.random() < 0.5 else -1
        image = OPERATORS[name](image, sign * drawn / LARGEST_MAGNITUDE, fill)
    return image
