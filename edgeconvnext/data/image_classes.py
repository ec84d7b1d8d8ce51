"""The class of each image of a set, among the outputs of a network."""

from __future__ import annotations

import numpy as np

from edgeconvnext.data.decided_labels import decided_labels
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.in_memory import classes_are_outputs
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.labels import match_labels, output_labels


def classes_of_images(
    images: ImageSet, labels: Labels | None, num_classes: int, *, in_sorted_order: bool = False
) -> np.ndarray:
    """Return the output that is right for each image, int64 (N,); of a network with one logit, 0 or 1.

    labels: the network's names of its classes. num_classes: its logits. in_sorted_order: whether class folders may be taken as the
    outputs in sorted order where the network names no classes. Raises LabelMismatchError where the classes are not known.
    """
    if classes_are_outputs(images):
        classes = output_labels(images, max(num_classes, 2))
    elif num_classes == 1:
        return decided_labels(images, labels)
    else:
        classes = match_labels(images, labels, num_classes, in_sorted_order=in_sorted_order)
    assert images.labels is not None
    return classes[np.array(images.labels, dtype=np.int64)]
