"""Files named like images that are something else: refused with a reason; nothing is run, waited for or unpacked without limit."""

from __future__ import annotations

import ast
import os
import socket
import struct
import subprocess
import tracemalloc
import warnings
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from edgeconvnext.data import images as module
from edgeconvnext.data.images import MOST_PIXELS, BrokenImage, open_image
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.data.raster_formats import RASTER_FORMATS, image_suffixes, readable_formats
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import ImageSetError

CHECKOUT = Path(__file__).resolve().parents[2]
POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(written.txt) (w) file closefile
showpage
%%EOF
"""
FOREIGN = {
    "postscript": POSTSCRIPT,
    "dos postscript": b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, len(POSTSCRIPT), 0, 0, 0, 0, 0xFFFF) + POSTSCRIPT,
    "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF",
    "wmf": b"\xd7\xcd\xc6\x9a" + struct.pack("<H4hHIH", 0, 0, 0, 8, 8, 96, 0, 0) + b"\x01\x00\x09\x00" + bytes(40),
    "emf": b"\x01\x00\x00\x00" + struct.pack("<I8i", 88, 0, 0, 8, 8, 0, 0, 200, 200) + b" EMF" + bytes(60),
    "iptc": b"\x1c\x01\x5a\x00\x04UTF8" + bytes(40),
    "compound (fpx, mic)": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512),
    "svg": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "html": b"<html><script>alert(1)</script></html>",
    "xbm": b"#define im_width 8\n#define im_height 8\nstatic char im_bits[] = {\n0x00,0x00,0x00,0x00,0x00,0x00,0x00,0x00};\n",
    "gbr": struct.pack(">5I4sI", 29, 2, 4, 4, 1, b"GIMP", 10) + b"b" + bytes(17),
    "fits": b"SIMPLE  =                    T" + b" " * 2850,
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "grib": b"GRIB" + bytes(3) + b"\x01" + bytes(64),
    "bufr": b"BUFR" + bytes(64),
    "mpeg": b"\x00\x00\x01\xb3\x01\x00\x10" + bytes(64),
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "zip": b"PK\x03\x04" + bytes(64),
}


def saved(format_name: str, **options: object) -> bytes:
    """One of Pillow's other formats."""
    buffer = BytesIO()
    Image.new("RGB", (64, 64), (9, 8, 7)).save(buffer, format_name, **options)
    return buffer.getvalue()


@pytest.fixture
def _no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ghostscript seems to be installed; whoever starts it, or any other program, fails the test."""

    def start(*_: object, **__: object) -> None:
        pytest.fail("a program was started")

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, start)
    monkeypatch.setattr(os, "system", start)


@pytest.mark.usefixtures("_no_programs")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".eps"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_raster_image_is_refused_whatever_its_name(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(BrokenImage, match="it is no JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM"):
        open_image(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("_no_programs")
@pytest.mark.parametrize(
    "format_name", ["EPS", "PDF", "ICO", "ICNS", "JPEG2000", "TGA", "PCX", "SGI", "IM", "MSP", "DDS", "QOI"]
)
def test_other_formats_of_pillow_are_refused(tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "photo.jpg"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow will drop some of them
        Image.new("1" if format_name == "MSP" else "RGB", (64, 64)).save(path, format_name)
    with pytest.raises(BrokenImage, match="it is no JPEG, PNG"):
        open_image(path)


@pytest.mark.parametrize("format_name", readable_formats())
def test_every_format_on_the_list_is_read_under_each_of_its_names(tmp_path: Path, format_name: str) -> None:
    for suffix in RASTER_FORMATS[format_name]:
        path = tmp_path / f"photo{suffix}"
        path.write_bytes(saved(format_name, **({"lossless": True} if format_name == "WEBP" else {})))
        assert np.abs(np.asarray(open_image(path)).astype(int) - (9, 8, 7)).max() <= 4
        assert suffix in image_suffixes()


def opens_without_formats(source: str) -> list[int]:
    """Return the lines in which `open` of something called Image (or imported from it) is called without formats=."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "PIL.Image"
            and any(n.name == "open" for n in node.names)
        ):
            lines.append(node.lineno)
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "open"):
            continue
        if ast.unparse(node.func.value).rpartition(".")[2] in ("Image", "images"):
            given = [keyword.value for keyword in node.keywords if keyword.arg == "formats"]
            if not given or ast.unparse(given[0]) == "None":
                lines.append(node.lineno)
    return lines


def test_no_image_is_opened_without_the_list_of_formats() -> None:
    assert opens_without_formats("Image.open(x)\nPIL.Image.open(x, formats=None)\nImage.open(x, formats=F)") == [1, 2]
    for folder in ("edgeconvnext", "benchmarks"):
        for path in (CHECKOUT / folder).rglob("*.py"):
            assert opens_without_formats(path.read_text(encoding="utf-8")) == [], path


# What is no file


def odd_files(folder: Path) -> list[Path]:
    """A named pipe, a socket, links to devices, to a pipe, to itself and to nothing."""
    os.mkfifo(folder / "pipe.jpg")
    here = Path.cwd()
    os.chdir(folder)  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
    os.chdir(here)
    links = {"zero": "/dev/zero", "null": "/dev/null", "to_pipe": "pipe.jpg", "loop": "loop.jpg", "none": "nowhere"}
    for name, target in links.items():
        (folder / f"{name}.jpg").symlink_to(target)
    (folder / "proc.jpg").symlink_to("/proc/self/mem")
    return sorted(folder.iterdir())


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    for path in odd_files(tmp_path):
        with pytest.raises(BrokenImage, match=r"not a file|cannot be read|is gone|file is empty|no permission"):
            open_image(path)


def test_pipes_and_devices_in_class_folders_are_named_and_nothing_waits(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(4):
        (tmp_path / "a" / f"good_{number}.png").write_bytes(saved("PNG"))
    odd_files(tmp_path / "a")
    (tmp_path / "a" / "folder.jpg").mkdir()
    found = resolve_image_set(tmp_path)
    with pytest.raises(ImageSetError, match=r"8 of 12 images .*a/loop\.jpg \(.*; a/none\.jpg \(the file is gone\)"):
        list(batches(found, Preprocess((32, 32)), workers=0))


def test_links_to_regular_files_and_to_class_folders_are_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "set"
    (outside / "tench").mkdir(parents=True)
    (outside / "tench" / "a.png").write_bytes(saved("PNG"))
    (root / "church").mkdir(parents=True)
    (root / "church" / "b.png").symlink_to(outside / "tench" / "a.png")
    (root / "tench").symlink_to(outside / "tench")
    found = resolve_image_set(root)
    assert found.ids == ("church/b.png", "tench/a.png")
    assert {found.read(index).size for index in (0, 1)} == {(64, 64)}


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(saved("PNG"))
    os.truncate(path, module.MOST_FILE_BYTES + 1)
    with pytest.raises(BrokenImage, match=r"2,147,483,649 bytes; at most 2,147,483,648"):
        open_image(path)


# Bombs


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colours: int = 0) -> bytes:
    """A PNG of `chunks` between its header and its empty pixels."""
    header = png_chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colours, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(64)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def tiff(*entries: tuple[int, int, int, int], width: int = 8, height: int = 8) -> bytes:
    """A TIFF of these (tag, type, count, value) beside its size."""
    listed = sorted([(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1), *entries])
    packed = b"".join(struct.pack("<HHII", *entry) for entry in listed)
    return b"II*\0" + struct.pack("<IH", 8, len(listed)) + packed + bytes(4) + bytes(64)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif(width: int, height: int, frame: tuple[int, int] | None = None) -> bytes:
    inner = struct.pack("<4HB", 0, 0, *(frame or (width, height)), 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"," + inner + b"\x02\x00;"


def jpeg(width: int, height: int) -> bytes:
    content = saved("JPEG")
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def webp(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I4B", 10, 2, 0, 0, 0) + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


BOMBS = {
    "png": png(60_000, 60_000),
    "png of 2^31 pixels a side": png(2**31 - 1, 2**31 - 1),
    "tiff": tiff(width=2**31, height=2**31),
    "bmp": bmp(60_000, 60_000),
    "gif": gif(65_535, 65_535),
    "gif with a larger frame": gif(8, 8, (65_535, 65_535)),
    "ppm": b"P6 999999 999999 255\n" + bytes(30),
    "ppm of ten thousand digits": b"P6 " + b"9" * 10_000 + b" 8 255\n",
    "webp": webp(16_384, 16_384),
    "jpeg cut short": jpeg(65_500, 65_500),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_absurd_sizes_are_refused_before_anything_is_decoded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(BOMBS[kind])
    tracemalloc.start()
    try:
        with pytest.raises(BrokenImage) as refused:
            open_image(path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 320


def test_the_limit_of_pixels_is_the_packages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library in the process may have lifted Pillow's."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(module, "MOST_PIXELS", 64 * 64 - 1)
    (tmp_path / "photo.png").write_bytes(saved("PNG"))
    with pytest.raises(BrokenImage, match="too many pixels"):
        open_image(tmp_path / "photo.png")
    monkeypatch.setattr(module, "MOST_PIXELS", 64 * 64)
    assert open_image(tmp_path / "photo.png").size == (64, 64)
    assert MOST_PIXELS == 178_956_970  # what Pillow refuses as it comes


@cache
def zeros(count: int) -> bytes:
    """So many bytes of zero, deflated."""
    return zlib.compress(bytes(count))


METADATA = {
    "text": lambda: png(8, 8, png_chunk(b"zTXt", b"a\0\0" + zeros(2**26))),
    "international text": lambda: png(8, 8, png_chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(2**26))),
    "many texts": lambda: png(8, 8, *[png_chunk(b"zTXt", b"%d\0\0" % n + zeros(2**20 - 1)) for n in range(70)]),
    "colour profile": lambda: png(8, 8, png_chunk(b"iCCP", b"a\0\0" + zeros(2**26))),
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_that_unpacks_to_megabytes_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(METADATA[kind]())
    with pytest.raises(BrokenImage, match=r"damaged: .*(too large|Too much memory)"):
        open_image(path)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0" + b"x" * 40, b"Exif\0\0II*\0", b"Exif\0\0MM\0*" + b"\xff" * 30, b"\0" * 12]
)
def test_metadata_that_cannot_be_parsed_is_a_reason_or_left_aside(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved("JPEG", exif=exif))
    try:
        assert open_image(path).size == (64, 64)
    except BrokenImage as broken:
        assert str(broken).startswith("damaged: ")


def test_sixteen_bit_pixels_are_scaled_part_by_part(tmp_path: Path) -> None:
    """4096x4096 pixels of 16 bits have 32 MiB; as int64, all at once, 128 MiB and as much again for each step."""
    pixels = (np.arange(4096 * 4096, dtype=np.uint32) * 2654435761 >> 16).astype(np.uint16).reshape(4096, 4096)
    Image.fromarray(pixels).save(tmp_path / "photo.tif")
    tracemalloc.start()
    image = open_image(tmp_path / "photo.tif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 128 * 2**20
    # Rounded to the nearest: 257 steps of 16 bits are one of 8, half way is never met because 257 is odd.
    assert np.array_equal(np.asarray(image)[..., 0], np.rint(pixels / 257).astype(np.uint8))


def test_a_progressive_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    """Every scan is a pass over all pixels: 661 kB of 10,000 scans would decode for an hour at 169 million pixels."""
    content = saved("JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    own, scan = content.count(b"\xff\xda"), content[start:-2]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content[:-2] + scan * (module.MOST_SCANS - own) + content[-2:])
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(Image.open(BytesIO(content), formats=["JPEG"])))
    path.write_bytes(content[:-2] + scan * (module.MOST_SCANS - own + 1) + content[-2:])
    with pytest.raises(BrokenImage, match="more than 100 scans"):
        open_image(path)


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_many_frames_only_the_first_is_decoded(
    tmp_path: Path, format_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.new("L", (8, 8), shade % 256) for shade in range(1, 1001)]
    path = tmp_path / "photo.gif"
    Image.new("L", (8, 8), 0).save(path, format_name, save_all=True, append_images=frames)
    seeks: list[int] = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.seek", lambda self, frame: seeks.append(frame), raising=False)
    assert np.asarray(open_image(path)).max() <= 2
    assert seeks == []


@pytest.mark.parametrize(
    "entries",
    [
        [(270, 2, 2**32 - 1, 8)],
        [(330, 13, 2**31, 0)],
        [(277, 3, 1, 65_535)],
        [(273, 4, 2**30, 8), (279, 4, 2**30, 8)],
        [(322, 4, 1, 2**31), (323, 4, 1, 2**31), (324, 4, 1, 8)],
        [(278, 4, 1, 0), (273, 4, 1, 2**32 - 1), (279, 4, 1, 2**32 - 1)],
        [(259, 3, 1, 5), (273, 4, 1, 8), (279, 4, 1, 2**32 - 1)],
        [(259, 3, 1, 7), (273, 4, 1, 8), (279, 4, 1, 40), (347, 7, 2**31, 0)],
        [(34675, 7, 2**31, 8), (700, 1, 2**31, 8)],
        *[[(tag, 2, 2**31, 8) for tag in range(1000, 1000 + count)] for count in (100, 5000)],
    ],
)
def test_a_tiff_of_absurd_tags_is_refused_with_little_memory(
    tmp_path: Path, entries: list[tuple[int, int, int, int]]
) -> None:
    path = tmp_path / "photo.tif"
    path.write_bytes(tiff(*entries))
    tracemalloc.start()
    try:
        with pytest.raises(BrokenImage):
            open_image(path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


# Whatever is damaged


def whole_files() -> dict[str, bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    files = {}
    for name, options in {
        "JPEG": {"exif": exif},
        "PNG": {"exif": exif},
        "WEBP": {"exif": exif},
        "BMP": {},
        "GIF": {},
        "TIFF": {"compression": "tiff_lzw"},
        "PPM": {},
    }.items():
        buffer = BytesIO()
        noise.save(buffer, name, **options)
        files[name] = buffer.getvalue()
    return files


WHOLE = whole_files()


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    end=st.floats(0.02, 1),
)
def test_damaged_files_give_pixels_or_a_short_reason(
    tmp_path: Path, name: str, changes: list[tuple[float, int]], end: float
) -> None:
    content = bytearray(WHOLE[name])
    for place, value in changes:
        # Most of what matters lies in the first 200 bytes.
        content[int(place**2 * len(content))] = value
    path = tmp_path / "photo.jpg"
    path.write_bytes(content[: max(1, int(end * len(content)))])
    try:
        image = open_image(path)
        assert image.mode == "RGB" and image.size[0] * image.size[1] <= MOST_PIXELS
    except BrokenImage as broken:
        assert str(broken).isprintable() and 5 < len(str(broken)) < 320


def test_reasons_are_short_and_have_no_control_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("\x1b[2J\u202e" + "x" * 10_000)

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    (tmp_path / "photo.png").write_bytes(saved("PNG"))
    with pytest.raises(BrokenImage, match=r"damaged: \\x1b\[2J\\u202ex") as broken:
        open_image(tmp_path / "photo.png")
    assert len(str(broken.value)) < 320


def test_warnings_of_the_decoder_stay_inside(tmp_path: Path) -> None:
    path = tmp_path / "photo.tif"
    path.write_bytes(tiff((270, 2, 2**20, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BrokenImage):
            open_image(path)
