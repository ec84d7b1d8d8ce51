"""What happens to a training image: shapes, ranges, determinism, and nothing at all where a switch is off."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.model.build import build
from edgeconvnext.model.convnext.network import ConvNeXtConfig
from edgeconvnext.model.resnet.roadmap import RESNET_ATTO
from edgeconvnext.train.augment import augment, erase, image_generator, random_crop
from edgeconvnext.train.mixing import mix, smooth_targets
from edgeconvnext.train.networks import set_drop_path
from edgeconvnext.train.rand_augment import OPERATORS, rand_augment
from edgeconvnext.train.recipe import Recipe, choose_recipe

FILL = (124, 116, 104)
OFF = {"rand_augment": 0.0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "flip": 0.0, "smallest_crop": 1.0}


def recipe(**changes: object) -> Recipe:
    return choose_recipe("paper", OFF | changes)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """A colourful gradient with noise, 80x60."""
    noise = np.random.default_rng(0).integers(0, 40, (60, 80, 3))
    rows, columns = np.mgrid[0:60, 0:80]
    return Image.fromarray((np.stack([rows * 3, columns * 2, rows + columns], axis=2) + noise).astype(np.uint8))


def test_with_everything_off_the_centre_is_resized(image: Image.Image) -> None:
    pixels = augment(image, 60, recipe(), Preprocess(), random.Random(0))
    assert np.array_equal(pixels, np.asarray(image.crop((10, 0, 70, 60))))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_augmented_image_has_the_size_asked_for_and_repeats(image: Image.Image, channels: int) -> None:
    preprocess = Preprocess(mean=(0.5,) * channels, std=(0.25,) * channels)
    paper = choose_recipe("paper", {})
    first, second, other = (augment(image, 32, paper, preprocess, image_generator(0, epoch, 7)) for epoch in (3, 3, 4))
    assert first.shape == (32, 32, channels) and first.dtype == np.uint8
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_crops_keep_to_their_share_and_aspect(image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[tuple[int, int, int, int]] = []

    def resize(self: Image.Image, size: object, resample: object, box: tuple[int, int, int, int]) -> Image.Image:
        boxes.append(box)
        return self

    monkeypatch.setattr(Image.Image, "resize", resize)
    for seed in range(300):
        random_crop(image, 32, 0.25, random.Random(seed))
    shares = [(right - left) * (bottom - top) / (80 * 60) for left, top, right, bottom in boxes]
    aspects = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    assert all(0 <= left < right <= 80 and 0 <= top < bottom <= 60 for left, top, right, bottom in boxes)
    # Sides are whole pixels: a share or aspect may miss its bound by one of them.
    assert 0.24 < min(shares) < 0.35 and max(shares) > 0.9
    assert 0.72 < min(aspects) < 0.85 and 1.2 < max(aspects) < 1.38


def test_a_strip_is_cropped_to_the_widest_part_that_fits() -> None:
    strip = Image.new("RGB", (400, 10))
    assert random_crop(strip, 8, 0.9, random.Random(0)).size == (8, 8)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_change_nothing_at_strength_0_and_something_at_1(name: str, image: Image.Image) -> None:
    assert np.array_equal(np.asarray(OPERATORS[name](image, 0.0, FILL)), np.asarray(image)), name
    for strength in (1.0, -1.0):
        changed = OPERATORS[name](image, strength, FILL)
        assert (changed.size, changed.mode) == (image.size, "RGB")
        assert not np.array_equal(np.asarray(changed), np.asarray(image)), name


def test_rand_augment_is_the_same_for_a_seed_and_off_at_magnitude_0(image: Image.Image) -> None:
    def drawn(magnitude: float, spread: float, seed: int) -> np.ndarray:
        return np.asarray(rand_augment(image, magnitude, spread, 2, FILL, random.Random(seed)))

    assert np.array_equal(drawn(9, 0.5, 1), drawn(9, 0.5, 1))
    assert len({drawn(9, 0.5, seed).tobytes() for seed in range(40)}) > 20
    assert all(np.array_equal(drawn(0, 0, seed), np.asarray(image)) for seed in range(20))


def test_erasing_fills_one_rectangle_with_the_stated_noise() -> None:
    preprocess = Preprocess(mean=(0.5,) * 3, std=(0.1,) * 3)
    for seed in range(20):
        pixels = np.zeros((64, 64, 3), np.uint8)
        erase(pixels, preprocess, random.Random(seed))
        rows, columns = np.nonzero(pixels.any(axis=2))
        hit = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert 0.015 < hit.size / pixels.size < 0.34
        assert abs(hit.mean() - 127.5) < 5 and abs(hit.std() - 25.5) < 5


def test_mixed_images_have_mixed_classes() -> None:
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 16, 16).clone()
    before = images.clone()
    labels = torch.arange(8)
    for kind in ({"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}):
        for seed in range(30):
            mixed = mix(images, labels, 8, recipe(label_smoothing=0.0, **kind), np.random.default_rng(seed))
            torch.testing.assert_close(mixed.weights.sum(1), torch.ones(8))
            # An image's value is its class here, so its mean says how much of each class is in it.
            torch.testing.assert_close(mixed.images.mean((1, 2, 3)), mixed.weights @ torch.arange(8.0))
            assert mixed.images.shape == images.shape and torch.equal(images, before)


def test_without_mixing_only_labels_are_smoothed() -> None:
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    mixed = mix(images, labels, 4, recipe(label_smoothing=0.1), np.random.default_rng(0))
    assert torch.equal(mixed.images, images)
    torch.testing.assert_close(mixed.weights, smooth_targets(labels, 4, 0.1))
    torch.testing.assert_close(mixed.weights.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed.weights.diagonal(), torch.full((4,), 0.925))


@pytest.mark.parametrize("network", ["convnext", "resnet"])
def test_stochastic_depth_skips_blocks_in_training_only(network: str) -> None:
    torch.manual_seed(0)
    module = build(ConvNeXtConfig((1, 1), (8, 16), num_classes=4) if network == "convnext" else RESNET_ATTO)
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        expected = module.eval()(images)
        set_drop_path(module, 0.5)
        assert torch.equal(module.eval()(images), expected)
    drops = [block.drop_path for stage in range(len(module.stages)) for block in module.blocks(stage)]
    assert drops[0] == 0 and drops[-1] == 0.5 and drops == sorted(drops)
    block, branch = module.blocks(len(module.stages) - 1)[-1].train(), torch.ones(4000, 2, 1, 1)
    dropped = block.dropped(branch)
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and torch.equal(dropped[:, 0], dropped[:, 1])
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)
