"""The training images: decoded once into a file, in a new order each epoch, the same whatever process and step asks for them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.images import BrokenImage
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import ImageSetError
from edgeconvnext.train import small_images as module
from edgeconvnext.train.recipe import Recipe, choose_recipe
from edgeconvnext.train.small_images import SmallImages, delete_small_images, read_small, side_for, small_images
from edgeconvnext.train.stream import TrainingStream, epoch_order
from edgeconvnext.train.world import World


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photographs' worth of files: digits as JPEGs of several sizes, one of them broken."""
    root, digits = tmp_path_factory.mktemp("images"), digits_set("calibration")
    for index in range(10):
        (root / str(index % 2)).mkdir(exist_ok=True)
        digits.read(index).resize((40 + 20 * index, 60)).save(root / str(index % 2) / f"{index}.jpg")
    (root / "0" / "4.jpg").write_bytes(b"no image")
    return root


def test_the_file_gives_the_pixels_that_decoding_gives(folder: Path, tmp_path: Path) -> None:
    images = resolve_image_set(folder)
    stored = small_images(images, 32, tmp_path / "images.cache")
    assert stored.file is not None
    broken = images.ids.index("0/4.jpg")
    for index in set(range(10)) - {broken}:
        image = stored.read(index)
        assert min(image.size) == 32
        assert np.array_equal(np.asarray(image), np.asarray(read_small(images, index, 32)))
    with pytest.raises(BrokenImage):
        stored.read(broken)


def test_images_are_never_scaled_up(folder: Path) -> None:
    images = resolve_image_set(folder)
    assert min(read_small(images, images.ids.index("0/2.jpg"), 500).size) == 60


def test_a_whole_file_is_used_again_and_one_of_other_images_is_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, file = resolve_image_set(folder), tmp_path / "images.cache"
    first = small_images(images, 32, file)
    monkeypatch.setattr(module, "read_small", None)  # nothing is decoded
    assert small_images(images, 32, file) == first
    monkeypatch.undo()
    assert small_images(images, 16, file) != first
    file.write_bytes(file.read_bytes()[:-1])
    again = small_images(images, 16, file)
    assert file.stat().st_size == sum(3 * height * width for height, width in again.shapes)
    delete_small_images(file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "shapes",
    [
        "many",
        [],
        [[0, 0]] * 9,
        [[0, 0]] * 11,
        [[1, 1, 1]] * 10,
        [["1", 1]] * 10,
        [[True, True]] * 10,
        [[1.0, 1.0]] * 10,
        [[-1, -1]] * 10,
        [[0, 5]] * 10,
        [[33, 33]] * 10,
        [[1, 2**40]] * 10,
        [[10**400, 10**400]] * 10,
        [None] * 10,
    ],
    ids=str,
)
def test_a_listing_that_cannot_be_these_images_is_made_again(folder: Path, tmp_path: Path, shapes: object) -> None:
    images, file = resolve_image_set(folder), tmp_path / "images.cache"
    first = small_images(images, 32, file)
    listing = file.with_suffix(".json")
    written = json.loads(listing.read_text())
    for changed in ({**written, "shapes": shapes}, shapes, {"identity": written["identity"]}):
        listing.write_text(json.dumps(changed))
        assert small_images(images, 32, file) == first
    assert json.loads(listing.read_text()) == written


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b'{"identity": 1' + b"0" * 5000 + b"}", b""])
def test_a_listing_that_no_parser_takes_is_made_again(folder: Path, tmp_path: Path, content: bytes) -> None:
    images, file = resolve_image_set(folder), tmp_path / "images.cache"
    first = small_images(images, 32, file)
    file.with_suffix(".json").write_bytes(content)
    assert small_images(images, 32, file) == first


def test_what_lies_where_the_file_goes_is_neither_waited_for_nor_written_through(folder: Path, tmp_path: Path) -> None:
    images, file = resolve_image_set(folder), tmp_path / "run" / "images.cache"
    file.parent.mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    os.mkfifo(file)
    os.mkfifo(file.with_suffix(".json"))
    (file.parent / ".tmp-images.cache").symlink_to(tmp_path / "precious")
    stored = small_images(images, 32, file)
    assert stored.file == file and min(stored.read(0).size) == 32
    assert (tmp_path / "precious").read_bytes() == b"precious"
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(BrokenImage, match="cut off"):
        stored.read(0)


def test_what_is_too_large_or_in_memory_has_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small_images(digits_set("calibration"), 32, tmp_path / "images.cache").file is None
    monkeypatch.setattr(module, "LARGEST_FILE", 1000)
    images = small_images(resolve_image_set(folder), 32, tmp_path / "images.cache")
    assert images.file is None and min(images.read(0).size) == 32 and not list(tmp_path.iterdir())
    assert side_for(128) == 160


def recipe(**changes: object) -> Recipe:
    given = {"sizes": (16, 32), "epochs": 4, "warm_up_epochs": 1.0, "batch_size": 20}
    return choose_recipe("small-data", given | changes)


def stream(settings: Recipe, images: ImageSet | None = None, rank: int = 0, size: int = 1) -> TrainingStream:
    chosen = digits_set("calibration").take(50) if images is None else images
    return TrainingStream(SmallImages(chosen, 32), settings, Preprocess(), World(rank, size, torch.device("cpu")))


def test_each_epoch_takes_every_image_once_in_another_order() -> None:
    orders = [epoch_order(50, seed=0, epoch=epoch) for epoch in (0, 0, 1)]
    assert np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])
    assert sorted(orders[2]) == list(range(50))


def test_steps_have_the_size_of_their_epoch_and_a_later_start_gives_the_same() -> None:
    whole = list(stream(recipe()).from_step(0))
    assert len(whole) == 4 * (50 // 20)
    assert [part.pixels.shape[1] for (part,) in whole] == [16] * 4 + [32] * 4
    later = list(stream(recipe()).from_step(3))
    for (one,), (other,) in zip(whole[3:], later, strict=True):
        assert torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)


def test_processes_and_parts_share_a_step_without_overlap() -> None:
    (whole,) = next(stream(recipe()).from_step(0))
    ranks = [next(stream(recipe(accumulate=2), rank=rank, size=2).from_step(0)) for rank in (0, 1)]
    shared = torch.cat([ranks[rank][part].pixels for part in (0, 1) for rank in (0, 1)])
    assert torch.equal(shared, whole.pixels)


def test_a_broken_image_is_left_out_by_name_and_too_many_are_an_error(folder: Path) -> None:
    images = resolve_image_set(folder)
    with pytest.raises(ImageSetError, match=r"0/4\.jpg"):  # one of ten
        list(stream(recipe(batch_size=10), images).from_step(0))
    assert images.labels is not None
    many = dataclasses.replace(images, ids=images.ids * 12, labels=images.labels * 12)
    broken = [index for index, name in enumerate(many.ids) if name == "0/4.jpg"]
    kept = many.select([index for index in range(120) if index not in broken[1:]])
    found = stream(recipe(batch_size=109, epochs=2), kept)
    assert [len(part.labels) for (part,) in found.from_step(0)] == [108, 108]
    assert [image.id for image in found.skipped.values()] == ["0/4.jpg"]
