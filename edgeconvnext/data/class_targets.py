"""Targets of a network that decides on each class: 0 or 1 for each image and output, from a label file with several classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.labels import match_labels, matching_note
from edgeconvnext.data.several_classes import classes_by_label
from edgeconvnext.errors import LabelMismatchError
from edgeconvnext.escape import for_terminal


@dataclass(frozen=True)
class ClassTargets:
    """values: 0 or 1 for each image and output, int64 (N, num_classes). notes: what the labels were taken for."""

    values: np.ndarray
    notes: tuple[str, ...]


def targets_of_images(images: ImageSet, labels: Labels | None, num_classes: int) -> ClassTargets:
    """Return what a label file says of each image and each output of a network.

    labels: the network's names of its classes. Classes are matched as `match_labels` does it.
    Raises LabelMismatchError for classes that are not the network's, for an image with a class twice, and where no image has one.
    """
    assert images.labels is not None
    by_label = classes_by_label(images, labels)
    used = sorted(set(images.labels))
    classes = tuple(sorted({name for label in used for name in by_label[label]}))
    where = for_terminal(images.name)
    if not classes:
        raise LabelMismatchError(f"The labels of {where} give no image a class, so there is nothing to measure.")
    of_classes = replace(images, ids=classes, labels=tuple(range(len(classes))), class_names=classes, descriptions=None)
    outputs = dict(zip(classes, match_labels(of_classes, labels, num_classes).tolist(), strict=True))
    rows = np.zeros((len(by_label), num_classes), np.int64)
    for label in used:
        names = by_label[label]
        if len(set(names)) < len(names):
            raise LabelMismatchError(
                f"A label of {where} names a class twice: {for_terminal(images.class_names[label])!r}. Columns of 0 and 1 are "
                "separated by commas, semicolons or tabs."
            )
        rows[label, [outputs[name] for name in names]] = 1
    values = rows[np.array(images.labels, np.int64)]
    counts = values.sum(1)
    note = (
        f"the images of {where} have {counts.min()} to {counts.max()} classes each, {counts.mean():.1f} on average, of "
        f"{len(classes)} of the network's {num_classes}"
    )
    matched = matching_note(of_classes, labels, num_classes)
    return ClassTargets(values, (note,) if matched is None else (note, matched))
