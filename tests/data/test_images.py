"""Whatever lies behind an image's name is decoded to upright 8-bit RGB, or named with the reason why not."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeconvnext.data import raster_formats
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
        (b"this is a text file, not a photograph\n" * 20, "is no JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM"),
        (truncated_jpeg(), "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "is no JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM"),
        (damaged_png(), "damaged"),
        (b"\xff\xd8\xff\xe0", "is no JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM"),
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


RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
"""Grey values of 0 to 252."""


@pytest.mark.parametrize(
    "pixels",
    [
        RAMP.astype(np.int32),
        RAMP.astype(np.int32) * 257,
        RAMP.astype(np.uint16) * 257,
        RAMP.astype(np.float32),
        RAMP.astype(np.float32) / np.float32(255),
        RAMP.astype(np.float32) * np.float32(257),
    ],
    ids=["int32 to 255", "int32 to 65535", "uint16", "float to 255", "float to 1", "float to 65535"],
)
def test_deep_tiffs_show_what_their_8_bit_copy_shows(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "scan.tif")
    read = np.asarray(open_image(tmp_path / "scan.tif"))
    assert read.shape == (8, 8, 3)
    assert np.array_equal(read, np.repeat(RAMP[:, :, None], 3, axis=2))


def test_16_bit_pixels_are_scaled_however_dark_they_are(tmp_path: Path) -> None:
    """Their depth states the range, unlike that of 32 bits."""
    dark = np.full((8, 8), 255, np.uint16)
    for name in ("dark.tif", "dark.png", "dark.pgm"):
        Image.fromarray(dark).save(tmp_path / name)
        assert np.asarray(open_image(tmp_path / name)).max() == 1, name


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((8, 8), 70_000, np.int32), "32-bit integers from 70000 to 70000, beyond 0..65535"),
        (np.full((8, 8), -1, np.int32), "32-bit integers from -1"),
        (np.full((8, 8), np.nan, np.float32), "floating point numbers from nan"),
        (np.full((8, 8), 1e30, np.float32), "floating point numbers from 1e"),
    ],
)
def test_deep_pixels_beyond_every_range_are_refused(tmp_path: Path, pixels: np.ndarray, words: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "depth.tif")
    with pytest.raises(BrokenImage, match=words):
        open_image(tmp_path / "depth.tif")


def test_avif_is_read(tmp_path: Path) -> None:
    image = two_tone(64, 48)
    image.save(tmp_path / "photo.avif", quality=95)
    read = np.asarray(open_image(tmp_path / "photo.avif")).astype(int)
    assert read.shape == (48, 64, 3)
    assert np.abs(read - np.asarray(image)).mean() < 4  # the codec loses a little


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    heif.from_pillow(two_tone(64, 48)).save(tmp_path / "IMG_1.HEIC", quality=95)
    read = np.asarray(open_image(tmp_path / "IMG_1.HEIC")).astype(int)
    assert np.abs(read - np.asarray(two_tone(64, 48))).mean() < 4


def test_heic_under_another_name_is_called_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_formats, "missing_decoders", lambda: frozenset({"HEIF"}))
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(BrokenImage, match=r"it is a HEIC; to read such files, install pillow-heif .* or convert"):
        open_image(tmp_path / "IMG_1.jpg")


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 114374272\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS_POINTER, "Git LFS, not the file itself; fetch it with `git lfs pull`"),
        (b"/annex/objects/SHA256E-s100--aa.jpg\n", "git-annex, .* `git annex get`"),
        (b"../.git/annex/objects/x/y/SHA256E-s100--aa/SHA256E-s100--aa.jpg", "git-annex"),
    ],
)
def test_pointers_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(BrokenImage, match=words):
        open_image(tmp_path / "photo.jpg")


def test_a_link_into_git_annex_whose_content_is_absent_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").symlink_to(".git/annex/objects/x/y/SHA256E-s100--aa/SHA256E-s100--aa.jpg")
    with pytest.raises(BrokenImage, match="git-annex"):
        open_image(tmp_path / "photo.jpg")


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
