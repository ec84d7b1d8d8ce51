"""The embedded default: its weights are what the card says, and its training script does what the card says."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import edgeconvnext.model
from edgeconvnext.data.digits import digits_set, split_indices
from edgeconvnext.model import load_model
from edgeconvnext.train.digits import CONFIG, PREPROCESS, Recipe, card, distort, hits, load_pixels, train, write

WEIGHTS = Path(edgeconvnext.model.__file__).parent / "weights"
SHORT = Recipe(epochs=8, warm_up_epochs=1, ema_decay=0.9)


@pytest.fixture(scope="module")
def training_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    return load_pixels(digits_set("train"))


def test_shipped_model_scores_what_its_card_says() -> None:
    images, labels = load_pixels(digits_set("test"))
    right = hits(load_model("digits").module, images, labels)
    said = re.search(r"\((\d+) of (\d+) images", (WEIGHTS / "digits.md").read_text())
    assert said is not None
    # Kernels differ between CPUs in the last bit, which may turn an undecided image.
    assert abs(right - int(said[1])) <= 1
    assert len(labels) == int(said[2])
    assert right / len(labels) >= 0.985


def test_shipped_model_is_small_and_knows_its_input() -> None:
    model = load_model("digits")
    assert sum(file.stat().st_size for file in WEIGHTS.glob("digits.*")) < 2_000_000
    assert model.config == CONFIG
    assert model.preprocess == PREPROCESS
    assert model.labels is not None
    assert model.labels.names == tuple("0123456789")
    assert model.notes == ()


def test_training_never_sees_the_test_split() -> None:
    assert not set(split_indices("train")) & set(split_indices("test"))


def test_normalisation_is_that_of_the_training_images(training_pixels: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, _ = training_pixels
    assert float(images.mean()) == pytest.approx(PREPROCESS.mean[0], abs=0.005)
    assert float(images.std()) == pytest.approx(PREPROCESS.std[0], abs=0.005)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Train as the script does; tiny kernels are also several times slower when threads share a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_training_learns(training_pixels: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = training_pixels
    module = train(images[:400], labels[:400], SHORT)
    # A tenth would be chance.
    assert hits(module, images[400:800], labels[400:800]) > 280


@pytest.mark.usefixtures("one_thread")
def test_training_repeats(training_pixels: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = training_pixels
    first, second = (train(images[:128], labels[:128], dataclasses.replace(SHORT, epochs=2)) for _ in range(2))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_distortion_keeps_digits_in_place_within_its_ranges(
    training_pixels: tuple[torch.Tensor, torch.Tensor],
) -> None:
    images = training_pixels[0][:64]
    still = dataclasses.replace(SHORT, rotation=0.0, shift=0.0, scale=0.0)
    torch.testing.assert_close(distort(images, still), images, rtol=0, atol=1e-5)
    # A bright pixel in the middle moves by at most the shift: 0.125 of 32 pixels is 4.
    dot = torch.zeros(200, 1, 32, 32)
    dot[:, :, 15:17, 15:17] = 1
    moved = distort(dot, dataclasses.replace(still, shift=0.125))
    rows = (moved.sum(dim=(1, 3)) * torch.arange(32)).sum(dim=1) / moved.sum(dim=(1, 2, 3))
    offsets = rows - 15.5
    assert 3.5 < float(offsets.abs().max()) <= 4.01
    assert float(offsets.min()) < -3
    assert float(offsets.max()) > 3


def test_written_files_load_again(tmp_path: Path) -> None:
    model = load_model("digits")
    path = tmp_path / "mine.safetensors"
    write(model.module, path, Recipe(), right=590, tested=599, minutes=1.0)
    again = load_model(path)
    images = load_pixels(digits_set("calibration"))[0][:16]
    with torch.no_grad():
        assert torch.equal(again.module(images), model.module(images))
    assert (again.preprocess, again.labels) == (model.preprocess, model.labels)
    assert (tmp_path / "mine.md").read_text() == card(path, Recipe(), right=590, tested=599, minutes=1.0)
    assert "**98.50 %**" in (tmp_path / "mine.md").read_text()
