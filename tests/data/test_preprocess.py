"""The input is the one the checkpoint was evaluated with: same geometry, same resampling, same values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeconvnext.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from edgeconvnext.errors import ModelConfigError


def gradient(width: int, height: int) -> Image.Image:
    """Red rises to the right, green rises downwards, blue is constant."""
    red = np.tile(np.linspace(0, 255, width), (height, 1))
    green = np.tile(np.linspace(0, 255, height)[:, None], (1, width))
    return Image.fromarray(np.stack([red, green, np.full((height, width), 90)], axis=2).astype(np.uint8))


def test_the_224_transform_written_out_by_hand() -> None:
    image = gradient(500, 375)
    # Shorter side 375 -> 256, longer 500 -> int(256 * 500 / 375) = 341; the crop starts at round((341 - 224) / 2) = 58
    # and (256 - 224) / 2 = 16.
    resized = image.resize((341, 256), Image.Resampling.BICUBIC)
    crop = np.asarray(resized, np.float32)[16:240, 58:282] / np.float32(255)
    expected = ((crop - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)).transpose(2, 0, 1)
    result = Preprocess().apply(image)
    assert result.shape == (3, 224, 224)
    assert result.dtype == np.float32
    # Means are rounded to float32 on both sides, so that not even the last bit may differ.
    assert np.array_equal(result, expected)


@pytest.mark.parametrize(
    ("size", "crop_pct", "expected"),
    [
        (224, 0.875, 256),
        (224, 0.95, 235),
        (288, 1.0, 288),
        (224, 224 / 236, 236),
        (224, 224 / 230, 230),
        (384, 1.0, 384),
    ],
)
def test_resize_size_is_rounded_down_as_published(size: int, crop_pct: float, expected: int) -> None:
    assert Preprocess((size, size), crop_pct).resize_size == (expected, expected)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    rows=st.sampled_from([32, 64, 96]),
    columns=st.sampled_from([32, 64, 128]),
    crop_pct=st.sampled_from([0.8, 0.875, 0.95, 1.0]),
    squash=st.booleans(),
)
def test_any_image_fits_any_input(
    width: int, height: int, rows: int, columns: int, crop_pct: float, squash: bool
) -> None:
    preprocess = Preprocess((rows, columns), crop_pct, "squash" if squash else "center")
    pixels = preprocess.pixels(Image.new("RGB", (width, height), (255, 255, 255)))
    assert pixels.shape == (rows, columns, 3)
    assert pixels.min() == 255  # the crop never reaches beyond the resized image, where it would be black


def test_a_strip_is_cropped_before_it_fills_the_memory() -> None:
    pixels = Preprocess((32, 32)).pixels(Image.new("RGB", (1, 200_000), (10, 20, 30)))
    assert (pixels == (10, 20, 30)).all()


def test_grey_networks_get_one_channel() -> None:
    result = Preprocess((32, 32), 1.0, mean=(0.5,), std=(0.25,)).apply(Image.new("RGB", (64, 64), (255, 255, 255)))
    assert result.shape == (1, 32, 32)
    assert np.allclose(result, 2.0)


def test_five_channels_are_an_error_that_says_so() -> None:
    with pytest.raises(ModelConfigError, match="5 input channels"):
        Preprocess((32, 32), mean=(0.5,) * 5, std=(0.5,) * 5).apply(gradient(32, 32))


@pytest.mark.parametrize(("value_range", "high"), [("0..1", 1.0), ("0..255", 255.0)])
def test_value_ranges_leave_the_pixels_as_they_are(value_range: str, high: float) -> None:
    image = gradient(48, 48)
    preprocess = Preprocess((32, 32), 1.0)
    raw = preprocess.with_value_range(value_range).apply(image)  # type: ignore[arg-type]
    # x / 255 / (1 / 255) comes back within two roundings of float32.
    assert np.allclose(raw, preprocess.pixels(image).transpose(2, 0, 1) * (high / 255), rtol=3e-7, atol=0)
    assert preprocess.with_value_range("normalized") is preprocess


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_size": (0, 32)},
        {"crop_pct": 0.0},
        {"crop_pct": 1.5},
        {"mean": (0.5,)},
        {"std": (0.2, 0.0, 0.2)},
        {"mean": (float("nan"), 0.5, 0.5)},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict) -> None:
    with pytest.raises(ModelConfigError):
        Preprocess(**wrong)
