"""Lists of classes without file names: a line for each image, in the order of the names, as ImageNet's devkit has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeconvnext.data.imagenet import devkit_synsets
from edgeconvnext.data.raster_formats import has_image_suffix
from edgeconvnext.data.unpack import archive_files
from edgeconvnext.errors import ImageSetError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import MIB, read_text, require_regular_file

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
"""The devkit's list for the validation images; its numbers are ILSVRC2012_ID, 1 to 1000, and no outputs of a network."""
DEVKIT = "ILSVRC2012_devkit_t12"
SOLUTION = "LOC_val_solution.csv"
"""Kaggle's list for the validation images: `ImageId,PredictionString`, a synset and a box for each object."""
BESIDE_VALIDATION = (
    GROUND_TRUTH,
    f"{DEVKIT}/data/{GROUND_TRUTH}",
    f"{DEVKIT}.tar.gz",
    "imagenet_2012_validation_synset_labels.txt",
    SOLUTION,
)
"""Where the classes of the validation images may lie beside them, most wanted first."""
_KAGGLE_FOLDERS = ("val", "CLS-LOC", "Data", "ILSVRC")
_VALIDATION = re.compile(r"ILSVRC2012_val_([0-9]{8})\.[A-Za-z]+")
_VALIDATION_IMAGES = 50_000
_MOST_BYTES = 256 * MIB
_MOST_DEVKIT_BYTES = 64 * MIB
_CLASS = re.compile(r"[^\s,;\"\x00-\x1f]{1,200}")
_PACKED = b"\x1f\x8b"


@dataclass(frozen=True)
class LabelList:
    """The class of each image, in the order of their file names. file: where it was read."""

    file: Path
    classes: tuple[str, ...]

    def of(self, images: Sequence[str], root: Path) -> dict[str, str]:
        """Return the class of each of the images, which lie in `root`.

        Some of ImageNet's 50,000 validation images count by the number in their names. Raises ImageSetError where the numbers
        of others differ.
        """
        numbers = _validation_numbers(images) if len(self.classes) == _VALIDATION_IMAGES else None
        if numbers is not None:
            return {name: self.classes[number - 1] for name, number in zip(images, numbers, strict=True)}
        if len(images) != len(self.classes):
            raise ImageSetError(
                f"{for_terminal(self.file)} has {len(self.classes)} lines, one for each image, and {for_terminal(root)} holds "
                f"{len(images)} images. Give the list of these images, or one with a line 'file,class' for each."
            )
        ordered = sorted(images, key=lambda name: (name.rpartition("/")[2], name))
        return dict(zip(ordered, self.classes, strict=True))


def read_label_list(file: Path) -> LabelList | None:
    """Return the classes of a list or of the devkit's archive; None for a file of any other kind, such as 'file,class'.

    Lines are synsets, names or numbers of outputs; in a file called "...ground_truth..." they are ILSVRC2012_IDs.
    Raises ImageSetError for a damaged archive, and for numbers from 1 to 1000 in a file of another name: they may be either.
    """
    if _is_packed(file):
        return LabelList(file, _from_ids(_devkit_text(file).splitlines(), file))
    lines = read_text(file, ImageSetError, most=_MOST_BYTES).split("\n")
    names = [stripped for line in lines if (stripped := line.strip())]
    if not names or not all(_CLASS.fullmatch(name) and not has_image_suffix(name) for name in names):
        return None
    if "ground_truth" in file.name:
        return LabelList(file, _from_ids(names, file))
    if "1000" in names and "0" not in names and all(name.isdecimal() for name in names):
        raise ImageSetError(
            f"{for_terminal(file)} holds numbers from 1 to 1000. If they are those of ImageNet's devkit, whose order is not "
            f"that of a network's outputs, call the file {GROUND_TRUTH}. If not, write synsets, or outputs from 0 on."
        )
    return LabelList(file, tuple(names))


def list_beside(images: Path) -> Path | None:
    """Return the file with the classes of ImageNet's validation images that lies beside their archive or folder, if one does.

    Of a folder, it may lie inside, too, or above ILSVRC/Data/CLS-LOC/val, where Kaggle's archive has it.
    """
    images = images.absolute()
    folders = [images, images.parent] if images.is_dir() else [images.parent]
    if tuple(folder.name for folder in (images, *images.parents)[: len(_KAGGLE_FOLDERS)]) == _KAGGLE_FOLDERS:
        folders.append(images.parents[len(_KAGGLE_FOLDERS) - 1])
    return next((path for folder in folders for name in BESIDE_VALIDATION if (path := folder / name).is_file()), None)


def are_validation_images(names: Sequence[str]) -> bool:
    """Say whether all images have the names of ImageNet's validation images: ILSVRC2012_val_00000001.JPEG."""
    return _validation_numbers(names) is not None


def _validation_numbers(images: Sequence[str]) -> list[int] | None:
    """Return the numbers in the names of ImageNet's validation images; None where there are others."""
    matches = [_VALIDATION.fullmatch(name.rpartition("/")[2]) for name in images]
    numbers = [int(match[1]) for match in matches if match is not None]
    return numbers if len(numbers) == len(images) and all(0 < n <= _VALIDATION_IMAGES for n in numbers) else None


def _is_packed(file: Path) -> bool:
    require_regular_file(file, ImageSetError)
    with file.open("rb") as stream:
        return stream.read(len(_PACKED)) == _PACKED


def _devkit_text(file: Path) -> str:
    """Return the ground truth in the devkit's archive."""
    size = require_regular_file(file, ImageSetError, most=_MOST_DEVKIT_BYTES)
    with file.open("rb") as stream:
        for name, content in archive_files(stream, size, str(file), ImageSetError):
            if name.rpartition("/")[2] == GROUND_TRUTH:
                return content.decode("ascii", errors="replace")
    raise ImageSetError(
        f"{for_terminal(file)} holds no {GROUND_TRUTH}. Name ImageNet's {DEVKIT}.tar.gz, or a list with a line for each image."
    )


def _from_ids(numbers: Sequence[str], file: Path) -> tuple[str, ...]:
    """Return the synsets of ILSVRC2012_IDs."""
    synsets = devkit_synsets()
    classes = []
    for line, text in enumerate(numbers, start=1):
        number = text.strip()
        if not (number.isascii() and number.isdecimal() and len(number) < 5 and 1 <= int(number) <= len(synsets)):
            raise ImageSetError(
                f"{for_terminal(file)}, line {line}: expected an ILSVRC2012_ID from 1 to {len(synsets)}, found {number[:20]!r}."
            )
        classes.append(synsets[int(number) - 1])
    return tuple(classes)
