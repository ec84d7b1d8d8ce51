"""A set of images: which ones, in which order, of which class. Decoding happens on read, so a set is small."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image

from edgeconvnext.data.images import open_image
from edgeconvnext.data.subset import spread
from edgeconvnext.errors import ImageSetError
from edgeconvnext.escape import for_terminal

FEW_IMAGES = 100
ClassesFrom = Literal["folders", "file"]


class ImageReader(Protocol):
    """Where the images of a set come from. Readers travel to worker processes, so they must be picklable."""

    @property
    def in_memory(self) -> bool:
        """Whether reading is so quick that worker processes would not pay."""

    def read(self, image_id: str, shorter_side: int | None = None) -> Image.Image:
        """Decode one image, 8-bit; shorter_side: as in `open_image`. Raises BrokenImage."""

    def stamp(self, image_id: str) -> str:
        """Return a text that changes when the image behind the id changes."""


@dataclass(frozen=True)
class FolderReader:
    """Images in files below `root`; ids are paths relative to it, with forward slashes."""

    root: Path
    in_memory: bool = False

    def read(self, image_id: str, shorter_side: int | None = None) -> Image.Image:
        return open_image(self.root / image_id, shorter_side)

    def stamp(self, image_id: str) -> str:
        try:
            status = (self.root / image_id).stat()
        except OSError:
            return "missing"
        return f"{status.st_size}:{status.st_mtime_ns}"


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, with their classes where these are known.

    ids: one per image, the same on every machine (relative paths for folders).
    labels: index into class_names for each image, or None. Without class_names they are the model's outputs.
    class_names: folder names, synsets or what a labels file says. descriptions: readable names of the classes, where
    known.
    remarks: what a reader of the results should know about how the set was put together.
    classes_from: where class_names come from; numbers in a label file are the network's outputs, those of folders are names.
    skip_broken: whether images that cannot be read are left out, however many; else more than 1 % are an error.
    """

    name: str
    ids: tuple[str, ...]
    reader: ImageReader
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    descriptions: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()
    classes_from: ClassesFrom = "folders"
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if not self.ids:
            raise ImageSetError(f"The image set {for_terminal(self.name)} holds no images.")
        if self.labels is not None and len(self.labels) != len(self.ids):
            raise ImageSetError(f"{for_terminal(self.name)} has {len(self.ids)} images and {len(self.labels)} labels.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should be told: the remarks, and a warning where there are few images."""
        if len(self) >= FEW_IMAGES:
            return self.remarks
        plural = "image" if len(self) == 1 else "images"
        return (
            *self.remarks,
            f"{for_terminal(self.name)} gives only {len(self)} {plural}: ranges and accuracies from fewer than {FEW_IMAGES} are "
            "uncertain.",
        )

    @property
    def list_sha256(self) -> str:
        """Hash of the list: each id with its class, in order. The same list has the same hash on every machine."""
        return self._hash(stamps=False)

    @property
    def fingerprint(self) -> str:
        """Hash of the list and each file's size and modification time; it changes when any image does."""
        return self._hash(stamps=True)

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """Decode one image to 8-bit RGB; shorter_side: as in `open_image`. Raises BrokenImage."""
        return self.reader.read(self.ids[index], shorter_side)

    def class_of(self, index: int) -> str | None:
        """Return the class name of an image, its number where classes have no names, None where the set has no labels."""
        if self.labels is None:
            return None
        return self.class_names[self.labels[index]] if self.class_names else str(self.labels[index])

    def select(self, indices: list[int]) -> ImageSet:
        """Return the set of these images, in this order; classes keep their indices."""
        return replace(
            self,
            ids=tuple(self.ids[index] for index in indices),
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
        )

    def take(self, count: int) -> ImageSet:
        """Return at most `count` images, always the same: equally many of each class, spread evenly over the list."""
        if count < 1:
            raise ImageSetError(f"{count} images were asked of {for_terminal(self.name)}; at least 1 is needed.")
        return self if count >= len(self) else self.select(spread(len(self), count, self.labels))

    def _hash(self, *, stamps: bool) -> str:
        digest = hashlib.sha256()
        for index, image_id in enumerate(self.ids):
            line = f"{image_id}\t{self.class_of(index) or ''}"
            if stamps:
                line += f"\t{self.reader.stamp(image_id)}"
            digest.update(f"{line}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def split_held_out(image_set: ImageSet) -> tuple[list[int], list[int]]:
    """Split a set into the indices to fit on and the third held out from fitting, both ascending.

    Every third image is held out, counted class by class, so that both parts see every class that has enough images. A
    set of one image cannot be split: it is then in both parts.
    """
    order = list(range(len(image_set)))
    if len(order) == 1:
        return order, order
    if image_set.labels is not None:
        order.sort(key=image_set.labels.__getitem__)
    held_out = set(order[1::3])
    return [index for index in range(len(order)) if index not in held_out], sorted(held_out)
