"""Label files with several classes an image give targets of 0 and 1, however they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeconvnext.data.class_targets import targets_of_images
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.in_memory import resolve_images
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.labels import match_labels
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.data.several_classes import has_several_classes
from edgeconvnext.errors import ImageSetError, LabelMismatchError

NAMES = ("cat", "dog", "golf ball", "bird")
MODEL = Labels(NAMES, NAMES)
TARGETS = [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcd":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    return tmp_path


def labelled(folder: Path, text: str, name: str = "labels.csv") -> ImageSet:
    (folder / name).write_text(text)
    return resolve_image_set(folder)


@pytest.mark.parametrize(
    "text",
    [
        "file,cat,dog,golf ball,bird\na.png,1,1,0,0\nb.png,0,0,0,0\nc.png,0,0,1,0\nd.png,1,0,1,1\n",
        "Dog;Bird;image_name;golf_ball;cat\n1;0;a;0;1\n0;0;b;0;0\n0;0;c;1;0\n0;1;d;1;1\n",
        "d.png,1.0,0.0,1.0,1.0\na.png,1,1,0,0\nb.png,0,0,0,0\nc.png,0,0,1,0\n",
        "a.png,cat|dog\nb.png,\nc.png,golf ball\nd.png,cat | golf ball | bird\n",
        "image,tags\na.png,cat dog\nb.png,\nc.png,golf ball\nd.png,cat|golf ball|bird\n",
        "a.png,0 1\nb.png,\nc.png,2\nd.png,0 2 3\n",
        "file\tlabel\na.png\tDog|CAT\nb.png\t\nc.png\tgolf ball\nd.png\tbird|golf ball|CAT\n",
    ],
)
def test_every_form_of_a_label_file_gives_the_same_targets(folder: Path, text: str) -> None:
    images = labelled(folder, text)
    assert list(images.ids) == ["a.png", "b.png", "c.png", "d.png"] and has_several_classes(images, MODEL)
    targets = targets_of_images(images, MODEL, 4)
    assert targets.values.tolist() == TARGETS
    assert "0 to 3 classes each, 1.5 on average, of 4 of the network's 4" in targets.notes[0]
    with pytest.raises(LabelMismatchError, match="up to 3 classes an image"):
        match_labels(images, MODEL, 4)


def test_rows_in_memory_are_targets() -> None:
    arrays = np.zeros((4, 3, 8, 8), np.uint8)
    pairs = [(torch.from_numpy(image), torch.tensor(row)) for image, row in zip(arrays, TARGETS, strict=True)]
    for given in ((arrays, np.array(TARGETS, bool)), (arrays, torch.tensor(TARGETS, dtype=torch.float32)), pairs):
        images = resolve_images(given)
        assert has_several_classes(images, MODEL)
        assert targets_of_images(images, MODEL, 4).values.tolist() == TARGETS
    assert resolve_images((arrays, np.full((4, 4), 0.5))).labels is None


def test_one_class_a_line_stays_one_class(folder: Path) -> None:
    """Columns with a single 1 a line are one class an image; a name with a blank is one class where the network has it."""
    for text in (
        "file,cat,dog,golf ball\na.png,1,0,0\nb.png,0,1,0\nc.png,0,0,1\nd.png,1,0,0\n",
        "a.png,cat\nb.png,dog\nc.png,golf ball\nd.png,cat\n",
    ):
        images = labelled(folder, text)
        assert not has_several_classes(images, MODEL)
        assert images.labels is not None
        assert match_labels(images, MODEL, 4)[list(images.labels)].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,cat,dog\na.png,1,-1\n", "line 2: the column 'dog' says '-1'; columns of classes hold 0 or 1"),
        ("file,cat,dog\na.png,1\n", "line 2: expected 'file,class'"),
        ("file,cat,cat\na.png,1,0\n", "line 1: the columns of a label file have different names"),
        ("file,cat,a|b\na.png,1,0\n", "line 1: the columns of a label file have different names"),
        ("a.png,0,1\nb.png,0,2\n", "line 2: the column '1' says '2'"),
        ("a.png,cat\nb.png,\n", "line 2: expected 'file,class'"),
    ],
)
def test_files_that_say_no_classes_are_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ImageSetError, match=message):
        labelled(folder, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 0 1 1\n", "names a class twice: '0 1 1'"),
        ("a.png,cat|horse\n", "1 of 2 classes .* are not among the model's 4 classes.*: horse"),
        ("a.png,0 4\n", "gives the class 4; the model has 4 outputs"),
        ("file,cat,dog\na.png,0,0\n", "give no image a class"),
    ],
)
def test_classes_that_the_network_does_not_have_are_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(LabelMismatchError, match=message):
        targets_of_images(labelled(folder, text), MODEL, 4)


def test_a_missing_class_is_named_where_one_is_needed(folder: Path) -> None:
    images = labelled(folder, "a.png,golf ball\nb.png,\n")
    assert not has_several_classes(images, MODEL)
    with pytest.raises(LabelMismatchError, match=r"1 of 2 images .* have no class in their label file"):
        match_labels(images, MODEL, 4)
