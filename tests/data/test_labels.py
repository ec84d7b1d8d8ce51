"""Classes are matched by what they are called, completely and one to one, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeconvnext.data import labels
from edgeconvnext.data.image_set import FolderReader, ImageSet
from edgeconvnext.data.imagenet import imagenet_classes
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.labels import assumes_imagenet_order, match_labels, matching_note
from edgeconvnext.errors import LabelMismatchError

TEN = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def images_of(class_names: Sequence[str], used: Sequence[int] | None = None) -> ImageSet:
    """One image of each class, or of the classes `used` only."""
    labels = tuple(range(len(class_names)) if used is None else used)
    ids = tuple(f"{label}.jpg" for label in labels)
    return ImageSet("set", ids, FolderReader(Path()), labels, tuple(class_names))


def labels_of(names: Sequence[str], descriptions: Sequence[str] | None = None) -> Labels:
    return Labels(tuple(names), tuple(descriptions or names))


IMAGENETTE = labels_of(list(TEN), list(TEN.values()))


def test_synsets_match_in_whatever_order_the_set_has_them() -> None:
    names = list(TEN)[::-1]
    assert match_labels(images_of(names), IMAGENETTE, 10).tolist() == list(range(10))[::-1]


def test_folder_names_match_descriptions_whatever_the_case_and_the_blanks() -> None:
    names = ["CHURCH", "Golf_Ball", "gas-pump"]
    assert match_labels(images_of(names), IMAGENETTE, 10).tolist() == [4, 8, 7]


def test_synsets_match_a_model_that_names_its_classes_in_words() -> None:
    model = labels_of(list(TEN.values()))
    # ImageNet calls this class "English springer, English springer spaniel": one of the synonyms is enough.
    assert match_labels(images_of(["n02102040", "n01440764"]), model, 10).tolist() == [1, 0]


def test_digits_match_by_name() -> None:
    digits = [str(digit) for digit in range(10)]
    assert match_labels(images_of(digits[::-1]), labels_of(digits), 10).tolist() == list(range(10))[::-1]


def test_a_thousand_unnamed_outputs_are_imagenets_standard_order() -> None:
    synsets = list(imagenet_classes())
    assert len(synsets) == 1000
    assert synsets == sorted(synsets)
    assert assumes_imagenet_order(None, 1000)
    assert not assumes_imagenet_order(None, 10)
    assert match_labels(images_of(synsets), None, 1000).tolist() == list(range(1000))
    # The ten of Imagenette, at the indices that every list of ImageNet classes gives them.
    indices = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert match_labels(images_of(list(TEN)), None, 1000).tolist() == indices


def test_words_that_two_classes_share_are_told_apart_by_the_order_of_the_whole_list() -> None:
    """ImageNet has two cranes, the bird (134) and the machine (517); many label lists call both "crane"."""
    words = [text.split(",")[0] for text in imagenet_classes().values()]
    assert words[134] == words[517] == "crane"
    matched = match_labels(images_of(["n02012849", "n03126707"]), labels_of(words), 1000)
    assert matched.tolist() == [134, 517]


def test_an_ambiguous_word_alone_is_no_match() -> None:
    with pytest.raises(LabelMismatchError, match="crane"):
        match_labels(images_of(["crane"]), None, 1000)


def test_a_thousand_unnamed_outputs_do_not_match_other_classes() -> None:
    with pytest.raises(LabelMismatchError, match="scratched"):
        match_labels(images_of(["scratched", "good"]), None, 1000)


def test_synsets_do_not_match_by_a_word_they_share() -> None:
    """Both the cornet, n03110669, and the French horn, n03394916, are known as "horn"."""
    with pytest.raises(LabelMismatchError, match=r"1 of 2 classes.*n03110669"):
        match_labels(images_of(["n01440764", "n03110669"]), IMAGENETTE, 10)


def test_a_partial_match_is_an_error_that_names_the_rest() -> None:
    with pytest.raises(LabelMismatchError, match=r"1 of 3 classes.*: rocket\. .*called n01440764"):
        match_labels(images_of(["tench", "rocket", "church"]), IMAGENETTE, 10)


def test_classes_without_images_may_stay_unmatched() -> None:
    image_set = images_of(["tench", "rocket", "church"], used=[0, 2, 2])
    assert match_labels(image_set, IMAGENETTE, 10).tolist() == [0, -1, 4]


def test_two_classes_for_one_output_are_an_error() -> None:
    with pytest.raises(LabelMismatchError, match="both fit output 0"):
        match_labels(images_of(["tench", "n01440764"]), IMAGENETTE, 10)


def test_a_model_without_names_is_an_error() -> None:
    with pytest.raises(LabelMismatchError, match="names none of its 10 classes"):
        match_labels(images_of(list(TEN)), None, 10)


def test_labels_of_another_length_are_an_error() -> None:
    with pytest.raises(LabelMismatchError, match="12 outputs, but its labels name 10"):
        match_labels(images_of(list(TEN)), IMAGENETTE, 12)


def test_a_set_without_labels_is_an_error() -> None:
    unlabelled = ImageSet("set", ("a.jpg",), FolderReader(Path()))
    with pytest.raises(LabelMismatchError, match="has no labels"):
        match_labels(unlabelled, IMAGENETTE, 10)


def test_the_result_indexes_logits() -> None:
    matched = match_labels(images_of(["church", "tench"]), IMAGENETTE, 10)
    assert matched.dtype == np.int64
    assert matched.shape == (2,)


def test_a_class_is_compared_only_with_those_that_share_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A labels file may name a million classes; each against each of a thousand outputs would take many minutes."""
    looked_at = 0

    class Counted(set[str]):
        def __and__(self, other: object) -> set[str]:
            nonlocal looked_at
            looked_at += 1
            return super().__and__(other)  # type: ignore[operator]

    keys = labels._keys
    monkeypatch.setattr(labels, "_keys", lambda *given: [Counted(level) for level in keys(*given)])
    with pytest.raises(LabelMismatchError, match="2000 of 2000 classes"):
        match_labels(images_of([f"class {number}" for number in range(2000)]), None, 1000)
    assert looked_at <= 2000 + 1000


def numbered(numbers: Sequence[str]) -> ImageSet:
    """One image for each number, as a label file gives them."""
    return replace(images_of(numbers), classes_from="file")


def test_numbers_in_a_label_file_are_outputs_and_a_note_says_so() -> None:
    images = numbered(["0", "3", "9"])
    assert match_labels(images, IMAGENETTE, 10).tolist() == [0, 3, 9]
    assert match_labels(images, None, 10).tolist() == [0, 3, 9]
    note = matching_note(images, IMAGENETTE, 10)
    assert (
        note is not None and "numbers, 0 to 9; they are taken as the model's outputs, which count from 0 to 9" in note
    )


def test_numbers_that_are_class_names_are_names() -> None:
    digits = labels_of(list("9876543210"))
    assert match_labels(numbered(["0", "3"]), digits, 10).tolist() == [9, 6]
    assert matching_note(numbered(["0", "3"]), digits, 10) is None


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (["3", "10", "12"], "gives the class 10, 12; the model has 10 outputs, 0 to 9. Repair"),
        (["1", "10"], "gives the class 10; .* count from 1: subtract 1"),
        (["-1", "2"], "gives the class -1"),
    ],
)
def test_numbers_outside_are_refused_by_name(numbers: list[str], words: str) -> None:
    with pytest.raises(LabelMismatchError, match=words):
        match_labels(numbered(numbers), IMAGENETTE, 10)


def test_names_in_a_label_file_get_advice_for_a_file() -> None:
    with pytest.raises(LabelMismatchError, match="outputs, 0 to 9, into the label file"):
        match_labels(numbered(["carp", "3"]), IMAGENETTE, 10)


def test_folders_of_a_model_without_names_are_taken_in_sorted_order_only_where_that_is_said() -> None:
    folders = images_of(sorted(str(number) for number in range(12)))
    assert match_labels(folders, None, 12, in_sorted_order=True).tolist() == list(range(12))
    note = matching_note(folders, None, 12)
    assert note is not None and note.startswith("THE MODEL NAMES NO CLASSES") and "(0 is 0, 11 is 9)" in note
    assert "timm sorts them otherwise" in note
    assert "timm" not in (matching_note(images_of(["a", "b2", "b3"]), None, 3) or "")
    with pytest.raises(LabelMismatchError, match="names none of its 12 classes"):
        match_labels(folders, None, 12)
    with pytest.raises(LabelMismatchError, match="names none of its 13 classes, so the 12 classes"):
        match_labels(folders, None, 13, in_sorted_order=True)
