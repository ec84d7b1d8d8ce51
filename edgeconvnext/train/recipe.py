"""The training recipe: every switch of it, the presets, and its file.

Everything is stated for one optimiser step over `batch_size` images, whatever the number of processes and of accumulated parts, so
that the same recipe gives the same training on one processor and on eight GPUs. 0 turns a switch off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import Field, ValidationError, field_validator, model_validator

from edgeconvnext.config_file import Section, explain, parse_toml
from edgeconvnext.errors import ConfigFileError, TrainingError, nearest
from edgeconvnext.received import MIB, require_regular_file

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "step"]
Precision = Literal["fp32", "bf16", "fp16"]
# Beyond these nobody means the value; without a bound, products of two of them overflow.
_LARGEST = 1e4
Side = Annotated[int, Field(ge=1, le=16_384)]


class Recipe(Section):
    """How a network is trained; the defaults are the paper's (arXiv 2201.03545, table 5, ConvNeXt-T on ImageNet-1k).

    learning_rate: at `rate_batch` images a step; it is scaled linearly with `batch_size`. min_rate: what a cosine ends at.
    schedule: behind a linear warm-up, a cosine, or "step": a tenth from 1/3, a hundredth from 2/3 of the epochs on.
    layer_decay: factor of the learning rate from each unit (stem, block, head) to the one in front of it; 1 is none.
    weight_decay: of matrices and kernels only, never of norms, biases and layer scales. clip_norm: of all gradients together.
    sizes: sides in pixels, of equal shares of the epochs one after the other (progressive resizing); the last is the network's.
    crop_pct: of evaluation, as in Preprocess. smallest_crop: share of the area that a random crop takes at least; 1: centre crop.
    flip: probability of mirroring. rand_augment: magnitude, 0..10, of `operators` random operators; rand_augment_std: its spread.
    erasing: probability that a rectangle becomes noise. mixup, cutmix: alpha of the beta distribution; with both, each batch
    takes one of them at random.
    drop_path: stochastic depth: probability that an image skips the last block; it grows linearly from 0 at the first.
    layer_scale: what ConvNeXt's gammas start at. ema_decay: of the average of the weights that is evaluated and written.
    precision: of the multiplications, by autocast; "auto" is bf16 where the GPU or the processor multiplies in it, else fp32; fp16
    needs a GPU. accumulate: parts a step is computed in.
    """

    epochs: int = Field(default=300, ge=1, le=100_000)
    batch_size: int = Field(default=4096, ge=2, le=65_536)
    accumulate: int = Field(default=1, ge=1, le=65_536)
    optimizer: Optimizer = "adamw"
    learning_rate: float = Field(default=4e-3, gt=0, le=_LARGEST)
    rate_batch: int = Field(default=4096, ge=1, le=1_000_000)
    min_rate: float = Field(default=1e-6, ge=0, le=_LARGEST)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0, le=_LARGEST)
    clip_norm: float = Field(default=0.0, ge=0, le=_LARGEST)
    schedule: Schedule = "cosine"
    warm_up_epochs: float = Field(default=20.0, ge=0, le=100_000)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    sizes: tuple[Side, ...] = Field(default=(224,), min_length=1, max_length=1000)
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    flip: float = Field(default=0.5, ge=0, le=1)
    rand_augment: float = Field(default=9.0, ge=0, le=10)
    rand_augment_std: float = Field(default=0.5, ge=0, le=_LARGEST)
    operators: int = Field(default=2, ge=1, le=15)
    erasing: float = Field(default=0.25, ge=0, le=1)
    mixup: float = Field(default=0.8, ge=0, le=_LARGEST)
    cutmix: float = Field(default=1.0, ge=0, le=_LARGEST)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    layer_scale: float = Field(default=1e-6, gt=0, le=_LARGEST)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    precision: Precision | Literal["auto"] = "auto"
    channels_last: bool = True
    seed: int = Field(default=0, ge=0, lt=2**31)

    @field_validator("sizes", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value  # TOML knows lists only

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        if self.warm_up_epochs >= self.epochs:
            raise ValueError(
                f"warm_up_epochs {self.warm_up_epochs:g} must be fewer than the {self.epochs} epochs; set it to 0, or lower "
                "(--warm-up-epochs 0)"
            )
        return self

    @property
    def step_rate(self) -> float:
        """Learning rate at `batch_size`: 4e-3 at 4096 images is 2.5e-4 at 256."""
        return self.learning_rate * self.batch_size / self.rate_batch

    def size_of_epoch(self, epoch: int) -> int:
        """Side of the training images in this epoch, in pixels. Sizes 64, 96, 128 of 30 epochs change at epochs 10 and 20."""
        return self.sizes[min(len(self.sizes) - 1, epoch * len(self.sizes) // self.epochs)]


PAPER = Recipe()

PRESETS: dict[str, Recipe] = {
    "paper": PAPER,
    # For some ten thousand photographs and a network of a few million weights.
    "small-data": PAPER.model_copy(
        update={
            "epochs": 100,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "rate_batch": 64,
            "warm_up_epochs": 5.0,
            "clip_norm": 1.0,
            "sizes": (64, 96, 128),
            "crop_pct": 1.0,
            "smallest_crop": 0.25,
            "rand_augment": 7.0,
            "erasing": 0.1,
            "mixup": 0.2,
            "cutmix": 1.0,
            "drop_path": 0.05,
            "layer_scale": 0.1,
            "ema_decay": 0.999,
        }
    ),
    # How ResNets were trained before: He et al. (arXiv 1512.03385), with torchvision's random crops.
    "classic": PAPER.model_copy(
        update={
            "epochs": 90,
            "batch_size": 256,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "rate_batch": 256,
            "min_rate": 0.0,
            "weight_decay": 1e-4,
            "schedule": "step",
            "warm_up_epochs": 0.0,
            "rand_augment": 0.0,
            "erasing": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "label_smoothing": 0.0,
            "drop_path": 0.0,
            "ema_decay": 0.0,
        }
    ),
    # From trained weights to other classes: the head is new, and what lies deeper changes less.
    "fine-tune": PAPER.model_copy(
        update={
            "epochs": 20,
            "batch_size": 64,
            "learning_rate": 5e-4,
            "rate_batch": 64,
            "warm_up_epochs": 1.0,
            "clip_norm": 1.0,
            "layer_decay": 0.85,
            "weight_decay": 1e-4,
            "smallest_crop": 0.35,
            "rand_augment": 5.0,
            "erasing": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "drop_path": 0.05,
            "ema_decay": 0.99,
        }
    ),
}


def choose_recipe(name: str, changes: Mapping[str, Any]) -> Recipe:
    """Return a preset, or the recipe of a TOML file, with single switches changed.

    Raises TrainingError for an unknown preset and for values that do not hold, ConfigFileError for a file that does not.
    """
    if name in PRESETS:
        recipe = PRESETS[name]
    elif name.endswith(".toml"):
        recipe = read_recipe(Path(name))
    else:
        raise TrainingError(
            f"There is no preset {name!r}.{nearest(name, PRESETS)} Known are {', '.join(PRESETS)}, or a TOML file such as the "
            "recipe.toml of another training."
        )
    try:
        return Recipe.model_validate(recipe.model_dump() | dict(changes))
    except ValidationError as error:
        raise TrainingError(f"The recipe does not hold: {explain(error, Recipe)}") from error


def read_recipe(path: Path) -> Recipe:
    """Read what `recipe_toml` wrote, or a file with some of its keys; the others are the paper's."""
    require_regular_file(path, ConfigFileError, most=MIB)
    return parse_toml(path, Recipe)


def recipe_toml(recipe: Recipe) -> str:
    """Write every switch as TOML, one a line."""
    return tomlkit.dumps(_plain(recipe))


def differences(one: Recipe, other: Recipe) -> list[str]:
    """Name the switches in which two recipes differ, with both values as TOML."""
    before, after = _plain(one), _plain(other)
    changed = [name for name in before if before[name] != after[name]]
    return [f"{name} {_toml(before[name])} -> {_toml(after[name])}" for name in changed]


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in recipe.model_dump().items()}


def _toml(value: Any) -> str:
    return tomlkit.item(value).as_string()
