"""Label files: a class for each image, as people write them: by name or number, with a header or not, comma, semicolon or tab."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from edgeconvnext.data.names import unsafe_name
from edgeconvnext.data.raster_formats import has_image_suffix
from edgeconvnext.errors import ImageSetError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import MIB, read_text, reading

LABEL_FILES = ("labels.csv", "labels.tsv", "labels.txt")
# Six million lines of 40 characters.
_MOST_BYTES = 256 * MIB
_SHOWN_CHARACTERS = 80
_DELIMITERS = ("\t", ";", ",")
# What headers call the two columns that count, where there are more.
_FILE_COLUMNS = ("file", "filename", "file_name", "image", "image_id", "imageid", "path", "name", "img", "id")
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
    _BOXES_COLUMN,
)


def read_image_labels(
    file: Path, root: Path, locate: Callable[[str], str | None], *, may_lack_images: bool = False
) -> dict[str, str]:
    """Return the class of each image that a label file names, by the image's id.

    The first line decides what separates the columns: a tab, a semicolon, a comma, else blanks. A first line that names no image
    is a header; of more than two columns it has to name the two that count (file, image, path ...; class, label, target ...).
    locate: from a name in the file to the id of an image, None where there is none.
    root: what errors call the place of the images. Names are checked as text: they are relative and lead nowhere else.
    may_lack_images: leave out lines whose image is not there.
    A column PredictionString holds a synset and a box for each object, as in Kaggle's files for ImageNet; it gives the synset.

    Raises ImageSetError, naming file and line, for lines that do not hold and for images that are named with two classes.
    """
    lines = read_text(file, ImageSetError, most=_MOST_BYTES).splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((candidate for candidate in _DELIMITERS if candidate in first), None)
    columns: tuple[int, int] | None = None
    with_boxes = False
    pairs: dict[str, str] = {}
    missing: list[str] = []
    begun = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{for_terminal(file)}, line {number}"
        with reading(place, ImageSetError):
            fields = [part.strip() for part in _split(line, delimiter)]
        if not begun:
            begun = True
            if _is_header(fields, locate):
                columns = _columns(fields)
                with_boxes = columns is not None and _column_name(fields[columns[1]]) == _BOXES_COLUMN
                continue
        name, class_name = _pair(fields, columns, line, place)
        if fault := unsafe_name(name):
            raise ImageSetError(
                f"{place}: the file name {_shortened(name)} {fault}. Name files below {for_terminal(root)}."
            )
        if with_boxes:
            class_name = _class_of_boxes(class_name, place)
        image_id = locate(name)
        if image_id is None:
            missing.append(name)
            image_id = name
        if pairs.setdefault(image_id, class_name) != class_name:
            raise ImageSetError(
                f"{place}: {for_terminal(name)} is {_shortened(class_name)} here and {_shortened(pairs[image_id])} above."
            )
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


def _split(line: str, delimiter: str | None) -> list[str]:
    if delimiter is not None and delimiter in line:
        return next(csv.reader([line], delimiter=delimiter))
    return next(csv.reader([line])) if "," in line else line.split(maxsplit=1)


def _is_header(fields: list[str], locate: Callable[[str], str | None]) -> bool:
    """Say whether the first line names no image; a misspelt file is no header, and neither is a name that leads elsewhere."""
    if len(fields) < 2 or any(unsafe_name(field) for field in fields):
        return False
    return not any(has_image_suffix(field) or locate(field) for field in fields)


def _columns(header: list[str]) -> tuple[int, int] | None:
    """Return which columns a header calls file and class; None where it does not say both."""
    names = [_column_name(field) for field in header]
    files = [names.index(name) for name in _FILE_COLUMNS if name in names]
    classes = [names.index(name) for name in _CLASS_COLUMNS if name in names]
    return (files[0], classes[0]) if files and classes else None


def _column_name(field: str) -> str:
    return field.casefold().replace(" ", "_")


def _class_of_boxes(text: str, place: str) -> str:
    """Return the one class of "class x y x y [class x y x y ...]"."""
    words = text.split()
    classes = set(words[::_VALUES_OF_BOX])
    numbers = [word for position, word in enumerate(words) if position % _VALUES_OF_BOX]
    if len(words) % _VALUES_OF_BOX or not all(number.isdecimal() for number in numbers):
        raise ImageSetError(f"{place}: expected 'synset x y x y', once for each object, found {_shortened(text)}.")
    if len(classes) > 1:
        raise ImageSetError(
            f"{place}: the boxes are of {len(classes)} classes, {_first(sorted(classes))}; an image has one."
        )
    return classes.pop()


def _pair(fields: list[str], columns: tuple[int, int] | None, line: str, place: str) -> tuple[str, str]:
    """Return file name and class of one line."""
    if columns is not None and max(columns) < len(fields):
        fields = [fields[columns[0]], fields[columns[1]]]
    if len(fields) != 2 or not all(fields):
        raise ImageSetError(f"{place}: expected 'file,class', found {_shortened(line)}.")
    return fields[0], fields[1]


def _first(names: list[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(map(for_terminal, names[:most])) + (f" and {more} more" if more > 0 else "")


def _shortened(text: str) -> str:
    """Return `text` between quotes, its beginning only where it is long."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
