"""Which class of the model each class of an image set is. A guessed label would make every accuracy worthless."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.imagenet import imagenet_classes
from edgeconvnext.data.several_classes import require_one_class
from edgeconvnext.errors import LabelMismatchError
from edgeconvnext.escape import for_terminal

if TYPE_CHECKING:
    from edgeconvnext.data.label_names import Labels

IMAGENET_ORDER_NOTE = (
    "the model has 1,000 outputs and names no classes; they are taken to be ImageNet-1k's in their standard order, "
    "sorted by synset"
)
# Label lists of ImageNet in the wild differ in the wording of a few classes; another list agrees at next to none of
# the positions.
_SAME_LIST = 0.95
_NAMED = 5
_NUMBER = re.compile(r"-?[0-9]{1,9}")


def match_labels(
    image_set: ImageSet, labels: Labels | None, num_classes: int, *, in_sorted_order: bool = False
) -> np.ndarray:
    """Return the model's class index for each class of the set, int64 (len(class_names),).

    A number in a label file is an output of the model, where it is no class's name. Any other class is matched by its name or
    synset, then by its description, then by one of the words it is known by ("tench" of "tench, Tinca tinca"), whatever the case,
    and only where exactly one class of the model fits. Classes without an image in the set may stay unmatched; they get -1.
    in_sorted_order: take the class folders of a model that names no classes as its outputs, if they are as many; the caller shows
    `matching_note`, which says so, and that ImageNet's order was assumed (`assumes_imagenet_order`).

    Raises LabelMismatchError, naming the classes, unless every image's class is matched, each to another class of the
    model, and where labels name several classes an image.
    """
    name_of_set = for_terminal(image_set.name)
    if image_set.labels is None:
        raise LabelMismatchError(
            f"{name_of_set} has no labels. Use a folder with a subfolder for each class, add a labels.csv with "
            "one 'file,class' per line beside the images, or name such a file with --labels."
        )
    if labels is not None and len(labels.names) != num_classes:
        raise LabelMismatchError(
            f"The model has {num_classes} outputs, but its labels name {len(labels.names)} classes."
        )
    require_one_class(image_set, labels)
    way = _way(image_set, labels, num_classes)
    if way == "outputs":
        return _numbered(image_set, num_classes)
    if way == "sorted" and in_sorted_order:
        return np.arange(num_classes, dtype=np.int64)
    model_keys = _model_keys(labels, num_classes)
    if model_keys is None:
        raise LabelMismatchError(
            f"The model names none of its {num_classes} classes, so the {len(image_set.class_names)} classes of {name_of_set} "
            f"cannot be matched to them. Put a JSON with label_names, in the order of the outputs, beside the weights file (same "
            f"stem); or use a set with a folder for each output, or a label file with numbers from 0 to {num_classes - 1}."
        )
    descriptions = image_set.descriptions or (None,) * len(image_set.class_names)
    used = set(image_set.labels)
    candidates = _Candidates.of(model_keys)
    matches = np.full(len(image_set.class_names), -1, dtype=np.int64)
    for index, (name, description) in enumerate(zip(image_set.class_names, descriptions, strict=True)):
        matches[index] = _only_match(_keys(name, description), candidates)
    unmatched = [image_set.class_names[index] for index in sorted(used) if matches[index] < 0]
    if unmatched:
        examples = labels.names if labels is not None else tuple(imagenet_classes())
        raise LabelMismatchError(
            f"{len(unmatched)} of {len(used)} classes of {name_of_set} are not among the model's {num_classes} "
            f"classes, or fit several of them: {_first(unmatched)}. The model's classes are called "
            f"{_first(list(examples))}. {_advice(image_set, num_classes)}, or use a set of the model's own classes."
        )
    _refuse_shared(image_set, matches, used)
    return matches


def matching_note(image_set: ImageSet, labels: Labels | None, num_classes: int) -> str | None:
    """Say what `match_labels` takes for granted about a set that it matches; None where names match names."""
    name = for_terminal(image_set.name)
    way = _way(image_set, labels, num_classes)
    if way == "outputs":
        numbers = [int(image_set.class_names[index]) for index in sorted(set(image_set.labels or ()))]
        return (
            f"the classes of {name} are numbers, {min(numbers)} to {max(numbers)}; they are taken as the model's outputs, which "
            f"count from 0 to {num_classes - 1}"
        )
    if way == "sorted":
        first, last = image_set.class_names[0], image_set.class_names[-1]
        return (
            f"THE MODEL NAMES NO CLASSES: the {num_classes} class folders of {name} are taken as its outputs in sorted order, as "
            f"torchvision's ImageFolder does (0 is {for_terminal(first)}, {num_classes - 1} is {for_terminal(last)})"
            f"{_other_order(image_set)}. "
            "If it was trained on another order, top-1 is wrong: put a JSON with label_names beside the weights file"
        )
    return IMAGENET_ORDER_NOTE if assumes_imagenet_order(labels, num_classes) else None


def _other_order(image_set: ImageSet) -> str:
    """Say so where timm, which counts 2 before 10, would sort the folders otherwise."""
    natural = sorted(
        image_set.class_names,
        key=lambda name: [
            (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.lower())
        ],
    )
    return "; timm sorts them otherwise, 2 before 10" if tuple(natural) != image_set.class_names else ""


def _way(image_set: ImageSet, labels: Labels | None, num_classes: int) -> Literal["names", "outputs", "sorted"]:
    """Say how the classes of a set are found among the model's."""
    used = [image_set.class_names[index] for index in set(image_set.labels or ())]
    if image_set.classes_from == "file" and used and all(_NUMBER.fullmatch(name) for name in used):
        named = labels is not None and set(map(_normal, used)) <= set(map(_normal, labels.names))
        return "names" if named else "outputs"
    nameless = labels is None and not assumes_imagenet_order(labels, num_classes)
    as_many = len(image_set.class_names) == num_classes
    return "sorted" if nameless and image_set.classes_from == "folders" and as_many else "names"


def _numbered(image_set: ImageSet, num_classes: int) -> np.ndarray:
    """Return the numbers of a label file as outputs of the model; raises LabelMismatchError for those outside."""
    numbers = [int(name) if _NUMBER.fullmatch(name) else -1 for name in image_set.class_names]
    used = sorted(numbers[index] for index in set(image_set.labels or ()))
    outside = [number for number in used if not 0 <= number < num_classes]
    if outside:
        counted = " They seem to count from 1: subtract 1." if used[0] >= 1 and used[-1] == num_classes else ""
        raise LabelMismatchError(
            f"A label of {for_terminal(image_set.name)} gives the class {_first(list(map(str, outside)))}; the model has "
            f"{num_classes} outputs, 0 to {num_classes - 1}.{counted} Repair these labels, or write class names "
            "in place of the numbers."
        )
    return np.array([number if 0 <= number < num_classes else -1 for number in numbers], dtype=np.int64)


def _advice(image_set: ImageSet, num_classes: int) -> str:
    if image_set.classes_from == "file":
        return (
            f"Write the model's class names or synsets, or the numbers of its outputs, 0 to {num_classes - 1}, into the label "
            "file"
        )
    return "Rename the folders to the model's class names or synsets"


def output_labels(image_set: ImageSet, num_classes: int) -> np.ndarray:
    """Return the model's class index of each class number of a set whose classes are the outputs themselves, int64.

    Raises LabelMismatchError for numbers that the model has no output for.
    """
    assert image_set.labels is not None
    largest = max(image_set.labels)
    if largest >= num_classes:
        raise LabelMismatchError(
            f"The labels of {for_terminal(image_set.name)} go up to {largest}, and the model has outputs 0 to {num_classes - 1}. "
            "Give labels that number the model's outputs."
        )
    return np.arange(num_classes, dtype=np.int64)


def assumes_imagenet_order(labels: Labels | None, num_classes: int) -> bool:
    """Tell whether `match_labels` has to assume ImageNet-1k's standard order, which IMAGENET_ORDER_NOTE says in words.

    That is how every published 1000-class ConvNeXt is trained, and many checkpoints do not say so. Only sets of
    ImageNet classes match such a model.
    """
    return labels is None and num_classes == len(imagenet_classes())


def _model_keys(labels: Labels | None, num_classes: int) -> list[list[set[str]]] | None:
    """Return the keys of each class of the model, or None where its classes have no names."""
    synsets = imagenet_classes()
    if labels is None:
        return [_keys(synset, None) for synset in synsets] if assumes_imagenet_order(labels, num_classes) else None
    keys = [_keys(name, text) for name, text in zip(labels.names, labels.descriptions, strict=True)]
    if num_classes == len(synsets):
        standard = [_keys(synset, None) for synset in synsets]
        agreeing = sum(bool(one[-1] & other[-1]) for one, other in zip(keys, standard, strict=True))
        # Two of ImageNet's classes are both called "crane": a list known by its order resolves what words alone cannot.
        if agreeing >= _SAME_LIST * num_classes:
            return [
                [one | other for one, other in zip(*pair, strict=True)] for pair in zip(keys, standard, strict=True)
            ]
    return keys


def _keys(name: str, description: str | None) -> list[set[str]]:
    """Return what a class may be recognised by, surest first: its name, its full descriptions, each of its synonyms."""
    full = {_normal(text) for text in (name, description, imagenet_classes().get(name)) if text}
    words = {
        _normal(word) for text in (name, description, imagenet_classes().get(name)) if text for word in text.split(",")
    }
    return [{_normal(name)}, full, full | words]


@dataclass(frozen=True)
class _Candidates:
    """The model's classes by key, at each level of sureness, so that a set of a million classes is matched in a moment.

    synsets: those whose name is a synset.
    """

    by_key: tuple[dict[str, set[int]], ...]
    synsets: set[int]

    @classmethod
    def of(cls, model_keys: list[list[set[str]]]) -> _Candidates:
        by_key: tuple[dict[str, set[int]], ...] = ({}, {}, {})
        for index, levels in enumerate(model_keys):
            for level, keys in zip(by_key, levels, strict=True):
                for key in keys:
                    level.setdefault(key, set()).add(index)
        known = imagenet_classes().keys()
        synsets = {index for index, levels in enumerate(model_keys) if levels[0] & known}
        return cls(by_key, synsets)


def _only_match(keys: list[set[str]], candidates: _Candidates) -> int:
    """Return the one class that shares a key at the surest level at which exactly one does, -1 where there is none.

    Two synsets are the same class or they are not: words that both are known by do not count between them ("horn" is
    a word for n03394916, the French horn, and for n03110669, the cornet).
    """
    excluded: set[int] = set()
    for level, wanted in enumerate(keys):
        fitting = set().union(*(candidates.by_key[level].get(key, ()) for key in wanted)) - excluded
        if len(fitting) == 1:
            return fitting.pop()
        if level == 0 and keys[0] & imagenet_classes().keys():
            excluded = candidates.synsets
    return -1


def _refuse_shared(image_set: ImageSet, matches: np.ndarray, used: set[int]) -> None:
    owner: dict[int, str] = {}
    for index in sorted(used):
        name = image_set.class_names[index]
        other = owner.setdefault(int(matches[index]), name)
        if other != name:
            raise LabelMismatchError(
                f"The classes {other!r} and {name!r} of {for_terminal(image_set.name)} both fit output {matches[index]} of the "
                "model. Merge the two classes, or rename one to what it is."
            )


def _normal(text: str) -> str:
    """Fold case, underscores, hyphens and repeated blanks: "Golf_Ball" and "golf ball" are one name."""
    return " ".join(text.replace("_", " ").replace("-", " ").casefold().split())


def _first(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(map(for_terminal, names[:_NAMED])) + (f" and {more} more" if more > 0 else "")
