"""Several classes an image, as label files write them: "cat|dog", "3 7"."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.imagenet import imagenet_classes
from edgeconvnext.errors import LabelMismatchError
from edgeconvnext.escape import for_terminal

if TYPE_CHECKING:
    from edgeconvnext.data.label_names import Labels

SEPARATOR = "|"
_NUMBERS = re.compile(r"[0-9]{1,9}( [0-9]{1,9})+")


def classes_in(text: str, names: Collection[str]) -> tuple[str, ...]:
    """Return the classes that a label names: "cat|dog" has two, "" none, "golf ball" one or two.

    Blanks separate numbers, synsets, and words that are all among `names`, the model's in lower case. A label among `names` is
    one class.
    """
    if text.casefold() in names:
        return (text,)
    if SEPARATOR in text:
        return tuple(part for piece in text.split(SEPARATOR) if (part := piece.strip()))
    words = tuple(text.split())
    apart = _NUMBERS.fullmatch(" ".join(words)) or all(
        word.casefold() in names or word in imagenet_classes() for word in words
    )
    return words if apart or not words else (text,)


def has_several_classes(images: ImageSet, labels: Labels | None) -> bool:
    """Say whether a label names more than one class for some image. labels: the model's names of its classes."""
    return images.labels is not None and any(len(classes) > 1 for classes in classes_by_label(images, labels))


def require_one_class(images: ImageSet, labels: Labels | None) -> None:
    """Raise LabelMismatchError unless every image that has a label has one class."""
    if images.labels is None:
        return
    counts = np.array([len(classes) for classes in classes_by_label(images, labels)])[list(images.labels)]
    if (counts > 1).any():
        raise LabelMismatchError(
            f"The labels of {for_terminal(images.name)} name up to {counts.max()} classes an image, and one is needed here. "
            "Networks that answer several classes an image are quantised and measured with --task multi-label."
        )
    if (counts < 1).any():
        raise LabelMismatchError(
            f"{(counts < 1).sum()} of {len(counts)} images of {for_terminal(images.name)} have no class in their label file. "
            "Add the classes, or remove the lines."
        )


def classes_by_label(images: ImageSet, labels: Labels | None) -> list[tuple[str, ...]]:
    """Return the classes that each of `images.class_names` stands for."""
    if images.classes_from != "file":
        return [(name,) for name in images.class_names]
    names = frozenset() if labels is None else frozenset(map(str.casefold, (*labels.names, *labels.descriptions)))
    return [classes_in(text, names) for text in images.class_names]
