"""Opening one image file: what cameras, scanners and scrapers leave behind becomes 8-bit RGB, or a stated reason."""

from __future__ import annotations

import math
import os
import stat
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from edgeconvnext.received import reason

# Every format that is read, as Pillow calls it, with the suffixes its files have. Nothing else is ever tried: Pillow also knows
# PostScript, which it gives to Ghostscript, a program that obeys the file.
RASTER_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in RASTER_FORMATS.values() for suffix in suffixes)

# Twice what Pillow warns of, and its own limit where nobody changed it: 537 MB as RGB.
MOST_PIXELS = 2 * (1024**3 // 12)
# So many pixels of 16 bits in three channels, uncompressed, have 1.07 GB.
MOST_FILE_BYTES = 2 * 2**30
# A progressive JPEG has about ten scans. Each costs a pass over all pixels, though it may have only a few bytes.
MOST_SCANS = 100
# Pixels of 16 bits that are scaled at a time; each needs 8 bytes more while that lasts.
_SCALED_AT_ONCE = 2**20
_CHUNK = 2**20

# A JPEG with more pixels than this is decoded at a half, a quarter or an eighth of its size: 16.8 megapixels are 50 MB
# as RGB. Ordinary photographs stay below it, so that their pixels are those every other pipeline sees.
_FULL_DECODE_PIXELS = 4096 * 4096
_REDUCED_SHORTER_SIDE = 2048


class BrokenImage(Exception):
    """An image that cannot be decoded; the message is the reason. The loader collects these and says which."""


def open_image(path: Path, shorter_side: int | None = None) -> Image.Image:
    """Decode a file to an upright 8-bit RGB image.

    shorter_side: pixels that are enough; a JPEG may then be decoded smaller, though not below them, which is faster.

    EXIF orientation is applied; CMYK, grey, palette and 16-bit pixels are converted. Transparency is dropped, not
    blended: so do torchvision's and timm's loaders, and accuracy has to be comparable with theirs. Of an animation the
    first frame is taken.

    Raises BrokenImage with the reason for empty, truncated or foreign files, for what is no regular file, and for
    decompression bombs.
    """
    try:
        with _opened(path) as stream:
            return decode_image(stream, shorter_side)
    except OSError as error:
        raise BrokenImage(_reason_at(path, error)) from error


def decode_image(stream: BinaryIO, shorter_side: int | None = None) -> Image.Image:
    """Decode one image of a file or of memory, as `open_image` does."""
    try:
        # Pillow warns of damaged metadata and from 89 megapixels on; what cannot be used is refused below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=tuple(RASTER_FORMATS)) as image:
                _refuse_bombs(image, stream)
                _reduce_jpeg(image, shorter_side)
                return to_rgb(ImageOps.exif_transpose(image))
    except BrokenImage:
        raise
    except MemoryError as error:
        raise BrokenImage("decoding it needs more memory than there is") from error
    except (
        Exception
    ) as error:  # decoders raise almost anything on damaged bytes: OSError, SyntaxError, struct.error, ...
        raise BrokenImage(_reason(stream, error)) from error


def _opened(path: Path) -> BinaryIO:
    """Open a regular file, links followed; without O_NONBLOCK the mere opening of a named pipe waits for its other end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BrokenImage("it is a pipe, a device or a folder, not a file")
        if status.st_size > MOST_FILE_BYTES:
            raise BrokenImage(f"it has {status.st_size:,} bytes; at most {MOST_FILE_BYTES:,} are read")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_bombs(image: Image.Image, stream: BinaryIO) -> None:
    """Refuse small files that need much memory or time, from their headers; `stream` stays where it is."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise BrokenImage(f"too many pixels ({width}x{height}, more than {MOST_PIXELS / 1e6:.0f} million)")
    if image.info.get("progressive") and _count(stream, b"\xff\xda") > MOST_SCANS:
        raise BrokenImage(f"it is a JPEG of more than {MOST_SCANS} scans")


def _count(stream: BinaryIO, marker: bytes) -> int:
    """Count the two bytes of `marker` in a file."""
    place, count, last = stream.tell(), 0, b""
    stream.seek(0)
    while chunk := stream.read(_CHUNK):
        count += (last + chunk).count(marker)
        last = chunk[-1:]
    stream.seek(place)
    return count


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to 8-bit RGB; pixels deeper than 8 bits are scaled, not clipped."""
    if image.mode.startswith("I;16") or image.mode == "I":
        image = _sixteen_bit_to_grey(image)
    elif image.mode == "F":
        raise BrokenImage(
            "its pixels are floating point, whose range is not stated in the file; save it as 8 or 16 bit"
        )
    elif image.mode == "P":
        # A palette entry may carry transparency, which Pillow converts cleanly through RGBA only.
        image = image.convert("RGBA")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    rgb.load()
    return rgb


def _sixteen_bit_to_grey(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255 (65535 / 257 = 255). Pillow's own conversion clips at 255: such images turn white."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BrokenImage("its pixels are 32-bit integers beyond 0..65535, whose range is not stated in the file")
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, _SCALED_AT_ONCE // values.shape[1])
    for top in range(0, len(values), rows):
        grey[top : top + rows] = (values[top : top + rows].astype(np.int64) + 128) // 257
    return Image.fromarray(grey)


def _reduce_jpeg(image: Image.Image, shorter_side: int | None) -> None:
    """Let the JPEG decoder scale down while it decodes: to the side that is enough, and so that no image fills the memory."""
    width, height = image.size
    if shorter_side is None and width * height > _FULL_DECODE_PIXELS:
        shorter_side = _REDUCED_SHORTER_SIDE
    if image.format == "JPEG" and shorter_side is not None:
        scale = shorter_side / min(width, height)
        # draft() keeps the smallest size that is at least the one asked for.
        image.draft(None, (max(1, math.ceil(width * scale)), max(1, math.ceil(height * scale))))


def _reason_at(path: Path, error: OSError) -> str:
    """Say in a few words why `path` could not be opened."""
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return f"the file cannot be read: {reason(error)}".rstrip(".")


def _reason(stream: BinaryIO, error: Exception) -> str:
    """Say in a few words why what `stream` holds could not be decoded."""
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels (more than {MOST_PIXELS / 1e6:.0f} million)"
    try:
        if stream.seek(0, os.SEEK_END) == 0:
            return "the file is empty"
    except (OSError, ValueError):
        return "the file cannot be read"
    if isinstance(error, Image.UnidentifiedImageError):
        *others, last = RASTER_FORMATS
        return f"it is no {', '.join(others)} or {last}, or its header is damaged"
    return f"damaged: {reason(error)}".rstrip(".")
