"""The digits that ship in the package: the arrays of scikit-learn, in its order, read without it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from edgeconvnext.data import digits
from edgeconvnext.data.digits import CLASS_NAMES, DigitsReader, digits_set


def test_images_and_labels_equal_those_of_scikit_learn_bit_by_bit() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed to compare with")
    theirs = datasets.load_digits()
    train, test = digits_set("train"), digits_set("test")
    assert len(train) + len(test) == len(theirs.target) == 1797
    for split in (train, test):
        assert split.labels is not None
        for image_id, label in zip(split.ids, split.labels, strict=True):
            position = int(image_id.removeprefix("digits/"))
            expected = np.round(theirs.images[position] * (255 / 16)).astype(np.uint8)
            assert np.array_equal(np.asarray(DigitsReader().read(image_id)), np.dstack([expected] * 3))
            assert CLASS_NAMES[label] == str(theirs.target[position])


def test_the_digits_are_read_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._load.cache_clear()
    image = digits_set("test").reader.read("digits/0000")
    assert isinstance(image, Image.Image)
    assert (image.size, image.mode) == ((8, 8), "RGB")
