"""Whatever lies behind an image's name is decoded to upright 8-bit RGB, or named with the reason why not."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeconvnext.data.images import BrokenImage, open_image

RED, GREEN = (200, 30, 40), (30, 200, 40)


def two_tone(width: int = 48, height: int = 32) -> Image.Image:
    """Left half red, right half green: orientation and channels can be read off it."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = RED, GREEN
    return Image.fromarray(pixels)


def colour(image: Image.Image, x: int, y: int) -> np.ndarray:
    return np.asarray(image)[y, x].astype(int)


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("RGB", ".png", 0),
        ("RGB", ".jpg", 6),
        ("CMYK", ".jpg", 12),  # chroma and black plate are both compressed
        ("RGBA", ".png", 0),
        ("P", ".png", 26),  # half a step of 51 of the web palette
        ("RGB", ".webp", 12),
        ("RGB", ".bmp", 0),
        ("CMYK", ".tif", 0),
    ],
)
def test_colour_modes_keep_their_colours(tmp_path: Path, mode: str, suffix: str, tolerance: int) -> None:
    path = tmp_path / f"image{suffix}"
    # Without dithering a palette image has one colour on each side.
    two_tone().convert(mode, dither=Image.Dither.NONE).save(path)
    image = open_image(path)
    assert image.mode == "RGB"
    assert np.abs(colour(image, 4, 16) - RED).max() <= tolerance
    assert np.abs(colour(image, 44, 16) - GREEN).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_modes_give_three_equal_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.png"
    two_tone().convert(mode).save(path)
    pixels = np.asarray(open_image(path))
    assert pixels.shape == (32, 48, 3)
    assert (pixels == pixels[:, :, :1]).all()
    assert len(np.unique(pixels)) > 1


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    two_tone().convert("P", palette=Image.Palette.ADAPTIVE).save(path, transparency=bytes([0, 128]))
    image = open_image(path)
    assert np.abs(colour(image, 4, 16) - RED).max() <= 2
    assert np.abs(colour(image, 44, 16) - GREEN).max() <= 2


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (16, 1))).save(path)
    row = np.asarray(open_image(path))[8, :, 0].astype(int)
    assert row[0] == 0
    assert row[-1] == 255
    assert np.abs(row - ramp / 257).max() <= 0.51  # rounded to the nearest of 256 levels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    """The same upright picture, stored in each of the eight EXIF ways, comes out upright."""
    stored = {
        1: lambda x: x,
        2: lambda x: x.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda x: x.transpose(Image.Transpose.ROTATE_180),
        4: lambda x: x.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda x: x.transpose(Image.Transpose.TRANSPOSE),
        6: lambda x: x.transpose(Image.Transpose.ROTATE_90),
        7: lambda x: x.transpose(Image.Transpose.TRANSVERSE),
        8: lambda x: x.transpose(Image.Transpose.ROTATE_270),
    }
    upright = two_tone()
    upright.paste((0, 0, 250), (0, 0, 12, 8))  # a blue corner at the top left tells all eight apart
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image.png"
    stored[orientation](upright).save(path, exif=exif)
    assert (np.asarray(open_image(path)) == np.asarray(upright)).all()


def test_a_huge_jpeg_is_decoded_at_reduced_size(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    Image.new("L", (9000, 6000), 120).save(path)
    image = open_image(path)
    assert 2048 <= min(image.size) < 6000
    assert image.size[0] / image.size[1] == pytest.approx(1.5, abs=0.01)


def test_ordinary_jpegs_are_decoded_whole(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (4000, 3000)).save(path)
    assert open_image(path).size == (4000, 3000)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "image.gif"
    Image.new("RGB", (8, 8), RED).save(path, save_all=True, append_images=[Image.new("RGB", (8, 8), GREEN)])
    assert np.abs(colour(open_image(path), 4, 4) - RED).max() <= 2


def truncated_jpeg() -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[: buffer.tell() // 2]


def damaged_png() -> bytes:
    """A PNG whose pixels are overwritten with zeros from the middle on."""
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    content = buffer.getvalue()
    return content[: len(content) // 2] + bytes(len(content) // 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is a text file, not a photograph\n" * 20, "is no JPEG, PNG, WEBP, BMP, GIF, TIFF or PPM"),
        (truncated_jpeg(), "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "is no JPEG, PNG, WEBP, BMP, GIF, TIFF or PPM"),
        (damaged_png(), "damaged"),
        (b"\xff\xd8\xff\xe0", "is no JPEG, PNG, WEBP, BMP, GIF, TIFF or PPM"),
    ],
)
def test_broken_files_are_named_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(BrokenImage, match=reason):
        open_image(path)


def test_a_missing_file_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match="gone"):
        open_image(tmp_path / "image.jpg")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(path)  # 49 kB on disk, 400 million pixels
    assert path.stat().st_size < 100_000
    with pytest.raises(BrokenImage, match="too many pixels"):
        open_image(path)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    Image.fromarray(np.ones((8, 8), np.float32)).save(path)
    with pytest.raises(BrokenImage, match="floating point"):
        open_image(path)


@pytest.mark.parametrize(("size", "side", "decoded"), [((400, 300), 100, (200, 150)), ((300, 400), 160, (300, 400))])
def test_a_jpeg_is_decoded_smaller_where_less_is_enough(
    tmp_path: Path, size: tuple[int, int], side: int, decoded: tuple[int, int]
) -> None:
    """The decoder halves; a third is not among its sizes, and never is it less than what is enough."""
    two_tone(*size).save(tmp_path / "image.jpg", quality=95)
    image = open_image(tmp_path / "image.jpg", side)
    assert image.size == decoded
    assert np.abs(colour(image, 4, 16) - RED).max() <= 8
    two_tone(*size).save(tmp_path / "image.png")
    assert open_image(tmp_path / "image.png", side).size == size
