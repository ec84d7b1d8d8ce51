"""Batches of preprocessed images: decoded in worker processes, in the order asked for, broken ones left out by name."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.images import BrokenImage
from edgeconvnext.data.prepared import PreparedReader
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.data.size import Size
from edgeconvnext.errors import ImageSetError
from edgeconvnext.escape import for_terminal
from edgeconvnext.progress import progress_bar

BROKEN_LIMIT = 0.01

# Images that run at once: activations need memory by the pixel, and on a CPU 4 photographs of 224x224 are as fast as 8 or 32.
PIXELS_AT_ONCE = 4 * 224 * 224
MOST_AT_ONCE = 32

# Starting workers costs more than decoding this many photographs.
_FEW_IMAGES = 64
_MAX_WORKERS = 8
# So many broken images are collected before a set over the limit is given up, so that the error can name a few.
_NAMED_BEFORE_GIVING_UP = 10
_NAMED = 5


@dataclass(frozen=True)
class Batch:
    """images: float32 (N, C, H, W), channels_last. indices: position of each image in the image set."""

    images: torch.Tensor
    indices: list[int]


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be decoded, and why."""

    id: str
    reason: str


@dataclass
class BatchStream:
    """One pass, or several, over images of a set; `skipped` lists the broken images of the latest pass."""

    image_set: ImageSet
    preprocess: Preprocess
    batch_size: int
    indices: list[int]
    workers: int
    description: str
    skipped: list[SkippedImage] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order; a batch with broken images is smaller, one of broken images alone is left out.

        Raises ImageSetError when none of the images can be read, when more than 1 % of the set are broken, or when a
        worker process dies.
        """
        self.skipped = []
        with progress_bar(self.description, len(self.indices)) as advance:
            for decoded in self._decoded_batches():
                self.skipped += [SkippedImage(self.image_set.ids[index], reason) for index, reason in decoded.broken]
                if len(self.skipped) >= _NAMED_BEFORE_GIVING_UP:
                    check_broken(self.image_set, self.skipped)
                if decoded.pixels is not None:
                    values = self._normalize(decoded.pixels)
                    yield Batch(torch.from_numpy(values).permute(0, 3, 1, 2), decoded.indices)
                advance(len(decoded.indices) + len(decoded.broken))
        check_broken(self.image_set, self.skipped, len(self.indices))

    def _normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Return the network's values for pixels (N, H, W, C), or for values that were prepared before."""
        reader = self.image_set.reader
        if isinstance(reader, PreparedReader):
            return reader.normalize(pixels, self.preprocess)
        return self.preprocess.normalize(pixels)

    def _decoded_batches(self) -> Iterator[_Decoded]:
        loader = DataLoader(
            _Decoder(self.image_set, self.preprocess, self.indices),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=_collate,
            prefetch_factor=2 if self.workers else None,
            worker_init_fn=leave_signals_to_the_parent,
            # Without its own generator the loader would draw from torch's, and change what the caller draws next.
            generator=torch.Generator(),
        )
        yield from from_workers(loader, self.image_set, self.batch_size)


def from_workers(loader: DataLoader, image_set: ImageSet, batch_size: int) -> Iterator[Any]:
    """Yield what a loader gives; a worker that was killed becomes an ImageSetError."""
    batches = iter(loader)
    while True:
        try:
            decoded = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise ImageSetError(
                f"A worker process that decoded images of {for_terminal(image_set.name)} was killed, most likely because "
                "the memory ran out. Close other programs or use a smaller batch (this one was "
                f"{batch_size}), then run again."
            ) from error
        yield decoded


def leave_signals_to_the_parent(_worker: int) -> None:
    """Let the parent end a worker when Ctrl-C, SIGTERM or SIGHUP go to the whole group.

    A worker that dies of Ctrl-C while it holds a queue's lock would leave the parent waiting; one that dies of SIGTERM raises an
    error in the midst of what the parent computes. The second SIGTERM, which Python sends at its exit, ends it.
    """

    def pass_once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, pass_once)


def check_broken(image_set: ImageSet, skipped: Sequence[SkippedImage], asked: int | None = None) -> None:
    """Raise ImageSetError where more than 1 % of a set is broken, or all of the images that were asked for.

    A set with `skip_broken` has no limit, but one image has to be left.
    The limit is a share of the set, whatever part of it was read: one broken image among the sixteen that a fold is
    proven on says nothing about the other hundreds. asked: how many were read; None while reading goes on.
    """
    broken, total = len(skipped), len(image_set)
    none_left = broken > 0 and broken == asked
    if not none_left and (image_set.skip_broken or broken <= BROKEN_LIMIT * total):
        return
    named = "; ".join(f"{for_terminal(image.id)} ({image.reason})" for image in skipped[:_NAMED])
    more = f"; and {broken - _NAMED} more" if broken > _NAMED else ""
    what = f"None of the {asked} images" if none_left else f"{broken} of {total} images"
    could = "could be read" if none_left else "could not be read, more than the 1 % that is tolerated"
    leave_out = "" if none_left else ", leave them out with --skip-broken (skip_broken=True)"
    raise ImageSetError(
        f"{what} of {for_terminal(image_set.name)} {could}: {named}{more}. Replace or delete these files{leave_out}, or use "
        "another set."
    )


def batches(
    image_set: ImageSet,
    preprocess: Preprocess,
    batch_size: int | None = None,
    indices: Sequence[int] | None = None,
    workers: int | None = None,
    description: str = "Calibrating",
) -> BatchStream:
    """Return the batches of a set, or of the images at `indices`, in that order.

    batch_size: None is `images_at_once`. workers: decoding processes; None chooses by the number of images and processor cores,
    0 decodes in this process.
    description: what the progress bar says.
    """
    preprocess.check_channels()
    chosen = list(range(len(image_set))) if indices is None else list(indices)
    if not chosen:
        raise ImageSetError(f"No images of {for_terminal(image_set.name)} were asked for; at least one is needed.")
    batch_size = images_at_once(preprocess.input_size) if batch_size is None else batch_size
    if batch_size < 1:
        raise ImageSetError(f"The batch size must be at least 1; it is {batch_size}.")
    workers = default_workers(image_set, len(chosen)) if workers is None else workers
    return BatchStream(image_set, preprocess, batch_size, chosen, workers, description)


def images_at_once(size: Size) -> int:
    """Return how many images of `size`, height and width, a pass over a set takes at a time."""
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // (size[0] * size[1])))


def default_workers(image_set: ImageSet, count: int) -> int:
    """Return how many processes decode `count` images: none for few or embedded ones, else cores - 1, at most 8."""
    # Daemonic processes (a worker of someone's own pool) may not have children.
    if image_set.reader.in_memory or count < _FEW_IMAGES or multiprocessing.current_process().daemon:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MAX_WORKERS, cores - 1))


@dataclass(frozen=True)
class _Decoded:
    """A batch on its way from a worker. Arrays travel through a pipe; tensors would need /dev/shm, small in containers.

    pixels: uint8 (N, H, W, C), a quarter of the bytes of float32; float32 of prepared images; None where all images were broken.
    """

    pixels: np.ndarray | None
    indices: list[int]
    broken: list[tuple[int, str]]


@dataclass(frozen=True)
class _Decoder(Dataset):
    """Decodes, resizes and crops one image at a time, in a worker process."""

    image_set: ImageSet
    preprocess: Preprocess
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, np.ndarray | str]:
        index = self.indices[position]
        reader = self.image_set.reader
        if isinstance(reader, PreparedReader):
            return index, reader.values(self.image_set.ids[index])
        try:
            return index, self.preprocess.pixels(self.image_set.read(index))
        except BrokenImage as broken:
            return index, str(broken)


def _collate(items: list[tuple[int, np.ndarray | str]]) -> _Decoded:
    good = [(index, value) for index, value in items if isinstance(value, np.ndarray)]
    broken = [(index, value) for index, value in items if isinstance(value, str)]
    pixels = np.stack([value for _, value in good]) if good else None
    return _Decoded(pixels, [index for index, _ in good], broken)
