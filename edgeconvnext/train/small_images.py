"""Photographs at the size that training needs: decoded and scaled down once, then read from one file of plain pixels.

A photograph of 500x375 pixels takes milliseconds to decode in every epoch; its 160 pixels high copy is read in a tenth of one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.images import MOST_PIXELS, BrokenImage
from edgeconvnext.data.loader import default_workers, from_workers, leave_signals_to_the_parent
from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.files import TEMPORARY_PREFIX, atomic_write, storage_errors
from edgeconvnext.progress import progress_bar
from edgeconvnext.received import read_json

LARGEST_FILE = 4 * 2**30
_MARGIN = 1.25
_TYPICAL_ASPECT = 1.4
_BATCH = 32


@dataclass(frozen=True)
class SmallImages:
    """Images of a set, scaled down to a shorter side of `side` pixels where they are larger.

    file: where their pixels lie one after the other, uint8 (H, W, 3) each; None decodes at each read.
    shapes: height and width of each in the file; (0, 0) is a broken image. The same pixels come from the file and without it.
    """

    image_set: ImageSet
    side: int
    file: Path | None = None
    shapes: tuple[tuple[int, int], ...] = ()
    offsets: tuple[int, ...] = ()

    def read(self, index: int) -> Image.Image:
        """Return one image, 8-bit RGB; raises BrokenImage."""
        if self.file is None:
            return read_small(self.image_set, index, self.side)
        height, width = self.shapes[index]
        if not height:
            raise BrokenImage("it could not be decoded")
        pixels = np.fromfile(self.file, np.uint8, height * width * 3, offset=self.offsets[index])
        if len(pixels) != height * width * 3:
            raise BrokenImage("its decoded pixels were cut off while training")
        return Image.fromarray(pixels.reshape(height, width, 3))


def side_for(size: int) -> int:
    """Return the shorter side from which parts are cut for training at `size`: 160 pixels for 128, the usual ratio."""
    return round(_MARGIN * size)


def read_small(image_set: ImageSet, index: int, side: int) -> Image.Image:
    """Decode an image and scale it down to a shorter side of `side` pixels, never up; raises BrokenImage."""
    image = image_set.read(index, side)
    shorter = min(image.size)
    if shorter <= side:
        return image
    width, height = (max(side, round(length * side / shorter)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def small_images(image_set: ImageSet, side: int, file: Path) -> SmallImages:
    """Decode all images into `file`, or find them there; without a file where the set is in memory or too large for one.

    Too large: more than 4 GiB as pixels, or half of the disk's free space. Raises RunDirectoryError where the disk is full.
    """
    expected = len(image_set) * side * round(side * _TYPICAL_ASPECT) * 3
    fits = expected <= LARGEST_FILE and 2 * expected <= shutil.disk_usage(file.parent).free
    if image_set.reader.in_memory or not fits:
        return SmallImages(image_set, side)
    identity = f"{image_set.fingerprint} at {side}"
    listing = file.with_suffix(".json")
    shapes = _listed(listing, identity, len(image_set), side)
    if shapes is None or not file.is_file() or file.stat().st_size != sum(3 * h * w for h, w in shapes):
        shapes = _decode_all(image_set, side, file)
        atomic_write(listing, json.dumps({"identity": identity, "shapes": shapes}))
    sizes = [3 * height * width for height, width in shapes]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()
    return SmallImages(image_set, side, file, tuple(shapes), tuple(offsets))


def delete_small_images(file: Path) -> None:
    """Delete what `small_images` wrote."""
    for path in (file, file.with_suffix(".json")):
        path.unlink(missing_ok=True)


def _listed(listing: Path, identity: str, count: int, side: int) -> list[tuple[int, int]] | None:
    """Return the shapes that were written for these images; None where there are none, or what is there cannot be them."""
    try:
        content = read_json(listing, RunDirectoryError)
    except RunDirectoryError:
        return None
    if not isinstance(content, dict) or content.get("identity") != identity:
        return None
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or len(shapes) != count or not all(_is_shape(shape, side) for shape in shapes):
        return None
    return [(height, width) for height, width in shapes]


def _is_shape(shape: object, side: int) -> bool:
    """Say whether this is a height and a width that `read_small` gives, or those of a broken image."""
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(length) is int for length in shape):
        return False
    return shape == [0, 0] or (1 <= min(shape) <= side and max(shape) <= MOST_PIXELS)


def _decode_all(image_set: ImageSet, side: int, file: Path) -> list[tuple[int, int]]:
    loader = DataLoader(
        _Decoder(image_set, side),
        batch_size=_BATCH,
        num_workers=default_workers(image_set, len(image_set)),
        collate_fn=list,
        worker_init_fn=leave_signals_to_the_parent,
    )
    shapes: list[tuple[int, int]] = []
    temporary = file.with_name(TEMPORARY_PREFIX + file.name)
    with storage_errors(file), progress_bar("Decoding", len(image_set)) as advance:
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as stream:  # never through a link
                for images in from_workers(loader, image_set, _BATCH):
                    for pixels in images:
                        shapes.append(pixels.shape[:2])
                        stream.write(pixels.tobytes())
                    advance(len(images))
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return shapes


@dataclass(frozen=True)
class _Decoder(Dataset):
    """Decodes one image at a time, in a worker process; a broken one has no pixels."""

    image_set: ImageSet
    side: int

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            return np.asarray(read_small(self.image_set, index, self.side))
        except BrokenImage:
            return np.empty((0, 0, 3), np.uint8)
