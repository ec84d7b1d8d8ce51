"""Two networks run over the same images unit by unit, so that one can be fitted to the other piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from edgeconvnext.model.network import Network
from edgeconvnext.model.units import Unit
from edgeconvnext.rewrite.tensor_file import TensorFile, pairs_of

Compute = Callable[[torch.Tensor], torch.Tensor]


class StoredImages:
    """Preprocessed images on disk: those to fit on first, then the held-out ones. A context manager; deletes its file.

    file: rows (C, H, W). fit_images, held_out_images: how many of each.
    """

    def __init__(self, folder: Path, fit: Iterable[torch.Tensor], held_out: Iterable[torch.Tensor]) -> None:
        """fit, held_out: batches (N, C, H, W), each read once."""
        self.file = TensorFile(folder / "images.bin")
        try:
            self.fit_images, self.held_out_images = (self._store(batches) for batches in (fit, held_out))
        except BaseException:
            self.file.delete()
            raise

    def __enter__(self) -> StoredImages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.delete()

    def fit(self) -> Iterator[torch.Tensor]:
        """Read the images to fit on."""
        return self.file.batches(0, self.fit_images)

    def held_out(self) -> Iterator[torch.Tensor]:
        """Read the held-out images."""
        return self.file.batches(self.fit_images, self.fit_images + self.held_out_images)

    def _store(self, batches: Iterable[torch.Tensor]) -> int:
        before = len(self.file)
        for batch in batches:
            self.file.append(batch)
        return len(self.file) - before


class PairedActivations:
    """Activations of two computations over all images so far, on disk. A context manager; deletes its files, never the images'.

    reference_file, working_file: one row an image; one and the same file as long as nothing was computed otherwise.
    """

    def __init__(self, images: StoredImages, folder: Path) -> None:
        self.fit_images = images.fit_images
        self.held_out_images = images.held_out_images
        self._folder = folder
        self._stack = ExitStack()
        self._images = images.file
        self.reference_file = self.working_file = images.file
        self._steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def fit(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Read both, (N, C, H, W) each, of the images to fit on."""
        return self._batches(0, self.fit_images)

    def held_out(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The same of the held-out images."""
        return self._batches(self.fit_images, self.fit_images + self.held_out_images)

    @property
    def same(self) -> bool:
        """Whether both are the same so far, because nothing was computed otherwise yet."""
        return self.reference_file is self.working_file

    def step(self, reference: Compute, working: Compute | None = None) -> None:
        """Put what `reference` and `working` compute of the rows in their place. working: None where it computes the same."""
        together = self.same and working is None
        names = ("reference",) if together else ("reference", "working")
        files = [self._stack.enter_context(TensorFile(self._folder / f"{name}{self._steps % 2}.bin")) for name in names]
        for x, y in self._batches(0, self.fit_images + self.held_out_images):
            files[0].append(reference(x))
            if not together:
                files[1].append((working or reference)(y))
        for file in {self.reference_file, self.working_file} - {self._images}:
            file.delete()
        self.reference_file, self.working_file = files[0], files[-1]
        self._steps += 1

    def _batches(self, start: int, stop: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.same:
            yield from ((both, both) for both in self.reference_file.batches(start, stop))
        else:
            yield from pairs_of(self.reference_file, self.working_file, start, stop)


class PairedNetworks(PairedActivations):
    """Where two networks are: the inputs of the next unit in each, of all images.

    reference: the network as it was. working: is changed on the way, one unit at a time, before `advance` passes it.
    """

    def __init__(self, reference: Network, working: Network, images: StoredImages, folder: Path) -> None:
        super().__init__(images, folder)
        self.reference = reference
        self.working = working

    def advance(self, unit: Unit, *, changed: bool = True) -> None:
        """Run the unit in both networks; its outputs become the inputs of the next one.

        changed: whether the unit computes something else in the working network; where not, and `same`, it is run once.
        """
        together = self.same and not changed
        self.step(partial(unit.run, self.reference), None if together else partial(unit.run, self.working))
