"""Label files: a class for each image, as people write them: by name or number, with a header or not, comma, semicolon or tab."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeconvnext.data.names import unsafe_name
from edgeconvnext.data.raster_formats import has_image_suffix
from edgeconvnext.data.several_classes import SEPARATOR
from edgeconvnext.errors import ImageSetError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import MIB, read_text, reading

LABEL_FILES = ("labels.csv", "labels.tsv", "labels.txt")
# Six million lines of 40 characters.
_MOST_BYTES = 256 * MIB
_SHOWN_CHARACTERS = 80
_DELIMITERS = ("\t", ";", ",")
# What headers call the two columns that count, where there are more.
_FILE_COLUMNS = (
    "file",
    "filename",
    "file_name",
    "file_path",
    "filepath",
    "image",
    "image_id",
    "imageid",
    "image_name",
    "image_path",
    "image_index",
    "path",
    "name",
    "img",
    "id",
)
# ImageNet's labels as Kaggle ships them: "n01751748 111 108 230 366 n01751748 ...", a synset and a box for each object.
_BOXES_COLUMN = "predictionstring"
_VALUES_OF_BOX = 5
_CLASS_COLUMNS = (
    "class",
    "label",
    "target",
    "category",
    "class_name",
    "label_name",
    "class_id",
    "category_id",
    "synset",
    "classes",
    "labels",
    "targets",
    "tags",
    "categories",
    "finding_labels",
    _BOXES_COLUMN,
)
_DECISIONS = {"0": False, "0.0": False, "1": True, "1.0": True}


def read_image_labels(
    file: Path, root: Path, locate: Callable[[str], str | None], *, may_lack_images: bool = False
) -> dict[str, str]:
    """Return the class of each image that a label file names, by the image's id.

    The first line decides what separates the columns: a tab, a semicolon, a comma, else blanks. A first line that names no image
    is a header; of more than two columns it has to name the two that count (file, image, path ...; class, label, target ...).
    Else all columns but the file are classes, 0 or 1 for each image, by the header's names or by number. Several classes an image
    come as one text, "cat|dog", as a column with such texts has them; "" is none.
    A column PredictionString holds a synset and a box for each object, as in Kaggle's files for ImageNet; it gives the synset.
    locate: from a name in the file to the id of an image, None where there is none.
    root: what errors call the place of the images. Names are checked as text: they are relative and lead nowhere else.
    may_lack_images: leave out lines whose image is not there.

    Raises ImageSetError, naming file and line, for lines that do not hold and for images that are named with two classes.
    """
    lines = read_text(file, ImageSetError, most=_MOST_BYTES).splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((candidate for candidate in _DELIMITERS if candidate in first), None)
    columns: _Columns | None = None
    pairs: dict[str, str] = {}
    missing: list[str] = []
    empty: tuple[str, str] | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{for_terminal(file)}, line {number}"
        with reading(place, ImageSetError):
            fields = [part.strip() for part in _split(line, delimiter)]
        if columns is None:
            header = _is_header(fields, locate)
            columns = _columns(fields, place) if header else _nameless_columns(fields)
            if header:
                continue
        name, class_name = columns.pair(fields, line, place)
        if not class_name and not columns.classes and empty is None:
            empty = (line, place)
        if fault := unsafe_name(name):
            raise ImageSetError(
                f"{place}: the file name {_shortened(name)} {fault}. Name files below {for_terminal(root)}."
            )
        image_id = locate(name)
        if image_id is None:
            missing.append(name)
            image_id = name
        if pairs.setdefault(image_id, class_name) != class_name:
            raise ImageSetError(
                f"{place}: {for_terminal(name)} is {_shortened(class_name)} here and {_shortened(pairs[image_id])} above."
            )
    if empty is not None and not any(SEPARATOR in text or " " in text for text in pairs.values()):
        raise _not_a_pair(*empty)
    if may_lack_images:
        for name in missing:
            pairs.pop(name, None)
    elif missing:
        raise ImageSetError(
            f"{for_terminal(file)} names {len(pairs)} images; {len(missing)} of them are missing under "
            f"{for_terminal(root)}: {_first(missing)}. Add the files or remove their lines."
        )
    if not pairs:
        raise ImageSetError(
            f"{for_terminal(file)} names no images; it needs one 'file,class' per line. Delete it to use "
            f"{for_terminal(root)} without labels."
        )
    return pairs


@dataclass(frozen=True)
class _Columns:
    """Which columns count. file, label: their positions. classes: positions and names of columns of 0 and 1, where these count.

    boxes: whether labels are Kaggle's synsets with boxes. width: columns of the first line.
    """

    file: int = 0
    label: int = 1
    classes: tuple[tuple[int, str], ...] = ()
    boxes: bool = False
    width: int = 2

    def pair(self, fields: list[str], line: str, place: str) -> tuple[str, str]:
        """Return file name and class of one line; "" for an image without a class."""
        exactly = self.classes or self.width == 2
        enough = len(fields) == self.width if exactly else len(fields) > max(self.file, self.label)
        if not enough or not fields[self.file]:
            raise _not_a_pair(line, place)
        name = fields[self.file]
        if self.classes:
            return name, SEPARATOR.join(
                class_name for column, class_name in self.classes if _decision(fields[column], class_name, place)
            )
        text = fields[self.label]
        return name, _class_of_boxes(text, place) if self.boxes else text


def _split(line: str, delimiter: str | None) -> list[str]:
    if delimiter is not None and delimiter in line:
        return next(csv.reader([line], delimiter=delimiter))
    return next(csv.reader([line])) if "," in line else line.split(maxsplit=1)


def _is_header(fields: list[str], locate: Callable[[str], str | None]) -> bool:
    """Say whether the first line names no image; a misspelt file is no header, and neither is a name that leads elsewhere."""
    if len(fields) < 2 or any(unsafe_name(field) for field in fields):
        return False
    return not any(has_image_suffix(field) or locate(field) for field in fields)


def _columns(header: list[str], place: str) -> _Columns:
    """Return which columns a header names. Raises ImageSetError where it does not say which is the file."""
    names = [_column_name(field) for field in header]
    files = [names.index(name) for name in _FILE_COLUMNS if name in names]
    classes = [names.index(name) for name in _CLASS_COLUMNS if name in names]
    if len(header) == 2 and not (files and classes):
        return _Columns()
    if files and classes:
        return _Columns(files[0], classes[0], boxes=names[classes[0]] == _BOXES_COLUMN, width=len(header))
    file = files[0] if files else 0
    others = [(column, field) for column, field in enumerate(header) if column != file]
    unusable = next((name for _, name in others if not name or SEPARATOR in name), None)
    if unusable is not None or len({name for _, name in others}) < len(others):
        raise ImageSetError(f"{place}: the columns of a label file have different names, without '{SEPARATOR}'.")
    return _Columns(file, classes=tuple(others), width=len(header))


def _nameless_columns(fields: list[str]) -> _Columns:
    """Return the columns of a file without header: file and class, or file and a 0 or 1 for each output."""
    if len(fields) > 2 and all(field in _DECISIONS for field in fields[1:]):
        return _Columns(classes=tuple((column, str(column - 1)) for column in range(1, len(fields))), width=len(fields))
    return _Columns()


def _decision(text: str, column: str, place: str) -> bool:
    """Say whether an image has the class of a column."""
    if text not in _DECISIONS:
        raise ImageSetError(
            f"{place}: the column {_shortened(column)} says {_shortened(text)}; columns of classes hold 0 or 1. Call the columns "
            "that count 'file' and 'class', or leave out those that are no classes."
        )
    return _DECISIONS[text]


def _not_a_pair(line: str, place: str) -> ImageSetError:
    return ImageSetError(f"{place}: expected 'file,class', found {_shortened(line)}.")


def _column_name(field: str) -> str:
    return field.casefold().replace(" ", "_")


def _class_of_boxes(text: str, place: str) -> str:
    """Return the one class of "class x y x y [class x y x y ...]"."""
    words = text.split()
    classes = set(words[::_VALUES_OF_BOX])
    numbers = [word for position, word in enumerate(words) if position % _VALUES_OF_BOX]
    if not words or len(words) % _VALUES_OF_BOX or not all(number.isdecimal() for number in numbers):
        raise ImageSetError(f"{place}: expected 'synset x y x y', once for each object, found {_shortened(text)}.")
    if len(classes) > 1:
        raise ImageSetError(
            f"{place}: the boxes are of {len(classes)} classes, {_first(sorted(classes))}; an image has one."
        )
    return classes.pop()


def _first(names: list[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(map(for_terminal, names[:most])) + (f" and {more} more" if more > 0 else "")


def _shortened(text: str) -> str:
    """Return `text` between quotes, its beginning only where it is long."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
