"""Labels of a network with one logit: which of two classes of an image set means yes."""

from __future__ import annotations

import numpy as np

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.several_classes import require_one_class
from edgeconvnext.errors import LabelMismatchError
from edgeconvnext.escape import for_terminal

_PAIRS = (("0", "1"), ("no", "yes"), ("false", "true"), ("negative", "positive"))


def decided_labels(images: ImageSet, labels: Labels | None) -> np.ndarray:
    """Return 1 for each image of the class that the logit is above 0 for, else 0, int64 (N,).

    labels: one name, of that class, or two, of no and yes. Without them the classes must be called 0 and 1, no and yes, false and
    true, or negative and positive: any other order would be a guess. Raises LabelMismatchError.
    """
    set_name = for_terminal(images.name)
    if images.labels is None:
        raise LabelMismatchError(
            f"{set_name} has no labels. Use a folder with a subfolder for each class, or add a labels.csv with one 'file,class' "
            "per line beside the images."
        )
    require_one_class(images, labels)
    classes = [name.casefold() for name in images.class_names]
    names = () if labels is None else tuple(name.casefold() for name in labels.names)
    pairs = (names,) if len(names) == 2 else _PAIRS
    yes = next((pair[1] for pair in pairs if set(pair) == set(classes)), None)
    if len(names) == 1 and len(classes) == 2 and names[0] in classes:
        yes = names[0]
    if yes is None:
        shown = ", ".join(map(for_terminal, images.class_names[:4]))
        raise LabelMismatchError(
            f"The network has one logit, and the classes of {set_name} ({shown}) do not say which one it is above 0 for. Call "
            "them 0 and 1, or name the class in the model's label_names."
        )
    return (np.array([name == yes for name in classes], np.int64))[np.array(images.labels, np.int64)]
