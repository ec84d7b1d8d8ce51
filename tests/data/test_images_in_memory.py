"""Images that a program holds: every form gives the same set, whose values, labels and hashes are those that went in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from edgeconvnext.data.in_memory import classes_are_outputs, prepared, resolve_images
from edgeconvnext.data.loader import batches
from edgeconvnext.data.prepared import recognised_normalization
from edgeconvnext.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from edgeconvnext.errors import ImageSetError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 10), dtype=np.uint8)
MEAN, STD = (np.array(values, np.float32)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
VALUES = ((PIXELS / np.float32(255) - MEAN) / STD).astype(np.float32)
LABELS = [4, 0, 2, 2, 1, 3]
PREPROCESS = Preprocess(input_size=(8, 10), crop_pct=1.0)


def tensors() -> TensorDataset:
    return TensorDataset(torch.from_numpy(VALUES), torch.tensor(LABELS))


def dictionaries() -> Iterator[dict[str, Any]]:
    for start in (0, 4):
        yield {"pixel_values": torch.from_numpy(VALUES[start : start + 4]), "labels": LABELS[start : start + 4]}


FORMS = {
    "an array with labels": lambda: (VALUES, LABELS),
    "a tensor with labels": lambda: (torch.from_numpy(VALUES), torch.tensor(LABELS)),
    "a loader": lambda: DataLoader(tensors(), batch_size=4),
    "a shuffled loader": lambda: DataLoader(tensors(), batch_size=4, shuffle=True),
    "a data set": tensors,
    "dictionaries": dictionaries,
    "a list of dictionaries": lambda: [
        {"image": image, "label": label} for image, label in zip(VALUES, LABELS, strict=True)
    ],
    "a mapping": lambda: {"x": VALUES, "y": LABELS},
    "pairs": lambda: zip(torch.from_numpy(VALUES), LABELS, strict=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_and_labels(form: str) -> None:
    images = resolve_images(FORMS[form](), 100)
    reader = prepared(images)
    assert reader is not None and images.labels is not None and classes_are_outputs(images)
    assert list(images.labels) == LABELS
    values = np.stack([reader.values(image_id).transpose(2, 0, 1) for image_id in images.ids])
    assert np.array_equal(values, VALUES)


def test_the_same_content_has_the_same_hash_and_another_one_has_not() -> None:
    array, loader = resolve_images((VALUES, LABELS)), resolve_images(DataLoader(tensors(), batch_size=2))
    assert (array.list_sha256, array.fingerprint) == (loader.list_sha256, loader.fingerprint)
    changed = VALUES.copy()
    changed[3, 0, 0, 0] += 1e-3
    assert resolve_images((changed, LABELS)).fingerprint != array.fingerprint
    assert resolve_images((VALUES, [*LABELS[:-1], 0])).fingerprint != array.fingerprint


def test_a_loader_is_read_evenly_whatever_its_order_and_only_so_far() -> None:
    def endless() -> Iterator[torch.Tensor]:
        while True:
            yield torch.from_numpy(VALUES[:4])

    assert len(resolve_images(endless(), 10)) == 10
    shuffled = [resolve_images(DataLoader(tensors(), batch_size=2, shuffle=True), 3) for _ in range(2)]
    assert shuffled[0].fingerprint == shuffled[1].fingerprint
    assert list(shuffled[0].labels or ()) == [LABELS[1], LABELS[3], LABELS[5]]


def test_batches_hand_prepared_values_through_bit_by_bit_and_convert_them_to_another_range() -> None:
    images = resolve_images(torch.from_numpy(VALUES))
    reader = prepared(images)
    assert reader is not None
    same = torch.cat([batch.images for batch in batches(images, PREPROCESS)])
    assert torch.equal(same, torch.from_numpy(VALUES))
    said = replace(images, reader=reader.normalized_by(IMAGENET_MEAN, IMAGENET_STD))
    pixels = torch.cat([batch.images for batch in batches(said, PREPROCESS.with_value_range("0..255"))])
    # float32 rounds x * std + mean, and that times 255, by about 255 * 2 * 6e-8
    assert torch.allclose(pixels, torch.from_numpy(PIXELS).float(), atol=1e-3)
    with pytest.raises(ImageSetError, match="8x10"):
        list(batches(images, Preprocess(input_size=(16, 16))))


def test_pixels_and_pictures_are_normalised_as_files_are(tmp_path: Path) -> None:
    expected = torch.from_numpy(VALUES)
    channels_last = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1))
    pictures = [Image.fromarray(pixels) for pixels in channels_last]
    files = []
    for number, picture in enumerate(pictures):
        files.append(tmp_path / f"{number}.png")
        picture.save(files[-1])
    for form in (PIXELS, channels_last, torch.from_numpy(PIXELS), pictures, files, list(map(str, files))):
        values = torch.cat([batch.images for batch in batches(resolve_images(form), PREPROCESS, workers=0)])
        # pixels of tensors are divided by 255 before the mean is taken off, as those of files are
        assert torch.allclose(values, expected, atol=1e-6)


def test_class_names_come_from_the_data_set() -> None:
    data_set = tensors()
    data_set.classes = ["a", "b", "c", "d", "e"]
    images = resolve_images(DataLoader(data_set, batch_size=3))
    assert images.class_names == ("a", "b", "c", "d", "e")
    assert [images.class_of(index) for index in range(6)] == ["e", "a", "c", "c", "b", "d"]


def test_labels_that_are_no_classes_are_not_used_and_that_is_said() -> None:
    images = resolve_images((VALUES, 0.5 * np.eye(6, dtype=np.float32)))
    assert images.labels is None
    assert "not used" in " ".join(images.notes)


@pytest.mark.parametrize(
    "form, words",
    [
        (VALUES.transpose(0, 2, 3, 1), "transpose"),
        (VALUES[0], "shape"),
        ([], "none"),
        (3, "int"),
        ([{"pixels": VALUES[0]}], "pixels"),
        ([VALUES[0], VALUES[1][:, :, :4]], "one size"),
        ([VALUES[0], np.full_like(VALUES[0], np.nan)], "NaN"),
        (["missing.png"], "no such file"),
        (PIXELS.astype(np.int64) * 300, "0 to 255"),
        ((VALUES, LABELS[:3]), "3 labels"),
    ],
)
def test_what_is_no_image_is_refused_by_name(form: Any, words: str) -> None:
    with pytest.raises(ImageSetError, match=words):
        resolve_images(form)


def test_a_label_file_of_images_in_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="together with their labels"):
        resolve_images(VALUES, labels=tmp_path / "labels.csv")


def test_mean_and_std_are_read_off_eight_bit_levels_and_off_nothing_else() -> None:
    assert recognised_normalization(VALUES) == (IMAGENET_MEAN, IMAGENET_STD)
    assert recognised_normalization(PIXELS / np.float32(255)) == ((0.0,) * 3, (1.0,) * 3)
    assert recognised_normalization((PIXELS / np.float32(255) - 0.5) / 0.5) == ((0.5,) * 3, (0.5,) * 3)
    assert recognised_normalization(PIXELS.astype(np.float32)) == ((0.0,) * 3, (1 / 255,) * 3)
    noise = np.random.default_rng(1).random((2, 3, 8, 8), dtype=np.float32)
    assert recognised_normalization(noise) is None
    assert recognised_normalization(VALUES * 2) is None
