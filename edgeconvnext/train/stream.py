"""The training images, step after step: in a new order each epoch, augmented in worker processes while the network computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.images import BrokenImage
from edgeconvnext.data.loader import (
    SkippedImage,
    check_broken,
    default_workers,
    from_workers,
    leave_signals_to_the_parent,
)
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import ImageSetError, TrainingError
from edgeconvnext.escape import for_terminal
from edgeconvnext.train.augment import augment, image_generator
from edgeconvnext.train.recipe import Recipe
from edgeconvnext.train.small_images import SmallImages
from edgeconvnext.train.world import World


@dataclass(frozen=True)
class TrainingBatch:
    """Part of a step. pixels: uint8 (N, H, W, C). labels: int64 (N,)."""

    pixels: torch.Tensor
    labels: torch.Tensor


@dataclass
class TrainingStream:
    """All steps of a training, for one process of `world`. Where an epoch's last images do not fill a step they are left out."""

    images: SmallImages
    recipe: Recipe
    preprocess: Preprocess
    world: World
    skipped: dict[int, SkippedImage] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images.image_set) // self.recipe.batch_size

    def from_step(self, step: int) -> Iterator[list[TrainingBatch]]:
        """Yield the parts of each step from number `step` to the last of the training.

        Raises ImageSetError where more than 1 % of the images are broken, or all of a part.
        """
        image_set = self.images.image_set
        workers = default_workers(image_set, len(image_set))
        loader = DataLoader(
            _Augmenter(self.images, self.recipe, self.preprocess),
            batch_sampler=_Sampler(self, step),
            num_workers=-(-workers // self.world.size),
            collate_fn=_collate,
            worker_init_fn=leave_signals_to_the_parent,
            # Without its own generator the loader would draw from torch's, and change what the caller draws next.
            generator=torch.Generator(),
        )
        parts = (self._checked(part) for part in from_workers(loader, image_set, self.recipe.batch_size))
        while step_parts := list(itertools.islice(parts, self.recipe.accumulate)):
            yield step_parts

    def _checked(self, part: _Part) -> TrainingBatch:
        image_set = self.images.image_set
        if part.broken:
            self.skipped |= {i: SkippedImage(image_set.ids[i], reason) for i, reason in part.broken}
            check_broken(image_set, list(self.skipped.values()))
        if part.pixels is None:
            raise ImageSetError(
                f"A whole batch of {for_terminal(image_set.name)} is broken: {part.broken[0][1]}. Replace these files."
            )
        return TrainingBatch(torch.from_numpy(part.pixels), torch.from_numpy(part.labels))


def check_trainable(image_set: ImageSet, recipe: Recipe, world: World) -> None:
    """Raise TrainingError unless the set has labels, at least one batch of images, and the batch parts evenly."""
    name = for_terminal(image_set.name)
    if image_set.labels is None:
        raise TrainingError(
            f"{name} has no labels to learn. Use a folder with a subfolder for each class, or add a labels.csv with one "
            "'file,class' per line beside the images."
        )
    if len(image_set.class_names) < 2:
        only = for_terminal(image_set.class_names[0])
        raise TrainingError(f"{name} has only the class {only}; at least two are needed.")
    if len(image_set) < recipe.batch_size:
        raise TrainingError(
            f"{name} has {len(image_set)} images, fewer than one batch of {recipe.batch_size}. Use a smaller --batch-size."
        )
    parts = recipe.accumulate * world.size
    if recipe.batch_size % parts:
        raise TrainingError(
            f"A batch of {recipe.batch_size} does not part evenly into {recipe.accumulate} accumulated parts on {world.size} "
            f"processes. Use a --batch-size that is a multiple of {parts}."
        )


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch takes the images."""
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True)
class _Sampler:
    """The (epoch, index) of each image of each part, in order, for one process."""

    stream: TrainingStream
    first_step: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        recipe, world, steps = self.stream.recipe, self.stream.world, self.stream.steps_per_epoch
        share = recipe.batch_size // (recipe.accumulate * world.size)
        for epoch in range(self.first_step // steps, recipe.epochs):
            order = epoch_order(len(self.stream.images.image_set), recipe.seed, epoch)
            for step in range(max(0, self.first_step - epoch * steps), steps):
                for part in range(recipe.accumulate):
                    start = step * recipe.batch_size + (part * world.size + world.rank) * share
                    yield [(epoch, int(index)) for index in order[start : start + share]]


@dataclass(frozen=True)
class _Augmenter(Dataset):
    """Reads and augments one image at a time, in a worker process."""

    images: SmallImages
    recipe: Recipe
    preprocess: Preprocess

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, int, np.ndarray | str]:
        epoch, index = place
        labels = self.images.image_set.labels
        assert labels is not None
        try:
            image = self.images.read(index)
        except BrokenImage as broken:
            return index, labels[index], str(broken)
        generator = image_generator(self.recipe.seed, epoch, index)
        size = self.recipe.size_of_epoch(epoch)
        return index, labels[index], augment(image, size, self.recipe, self.preprocess, generator)


@dataclass(frozen=True)
class _Part:
    """A part on its way from a worker. Arrays travel through a pipe; tensors would need /dev/shm, small in containers."""

    pixels: np.ndarray | None
    labels: np.ndarray
    broken: list[tuple[int, str]]


def _collate(items: list[tuple[int, int, np.ndarray | str]]) -> _Part:
    good = [(label, pixels) for _, label, pixels in items if isinstance(pixels, np.ndarray)]
    broken = [(index, reason) for index, _, reason in items if isinstance(reason, str)]
    pixels = np.stack([pixels for _, pixels in good]) if good else None
    return _Part(pixels, np.array([label for label, _ in good], dtype=np.int64), broken)
