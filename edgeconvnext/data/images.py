"""Opening one image file: what cameras, scanners and scrapers leave behind becomes 8-bit RGB, or a stated reason."""

from __future__ import annotations

import math
import os
import stat
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

from edgeconvnext.data.deep_pixels import UnknownRange, deep_to_grey, is_deep
from edgeconvnext.data.pointers import MOST_POINTER_BYTES, annex_link, pointer_in
from edgeconvnext.data.raster_formats import readable_formats, undecodable_content
from edgeconvnext.received import reason

# Twice what Pillow warns of, and its own limit where nobody changed it: 537 MB as RGB.
MOST_PIXELS = 2 * (1024**3 // 12)
# So many pixels of 16 bits in three channels, uncompressed, have 1.07 GB.
MOST_FILE_BYTES = 2 * 2**30
# A progressive JPEG has about ten scans. Each costs a pass over all pixels, though it may have only a few bytes.
MOST_SCANS = 100
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

    EXIF orientation is applied; CMYK, grey, palette and deeper pixels are converted. Transparency is dropped, not
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
            with Image.open(stream, formats=readable_formats()) as image:
                _refuse_bombs(image, stream)
                _reduce_jpeg(image, shorter_side)
                return to_rgb(ImageOps.exif_transpose(image), image.format)
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


def to_rgb(image: Image.Image, image_format: str | None = None) -> Image.Image:
    """Convert any Pillow mode to 8-bit RGB; deeper pixels are scaled, not clipped. image_format: as Pillow calls it."""
    if is_deep(image):
        try:
            image = deep_to_grey(image, image_format)
        except UnknownRange as error:
            raise BrokenImage(str(error)) from error
    elif image.mode == "P":
        # A palette entry may carry transparency, which Pillow converts cleanly through RGBA only.
        image = image.convert("RGBA")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    rgb.load()
    return rgb


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
        return annex_link(path) or "the file is gone"
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
        stream.seek(0)
        head = stream.read(MOST_POINTER_BYTES)
        if known := pointer_in(head) or undecodable_content(head):
            return known
        *others, last = readable_formats()
        return f"it is no {', '.join(others)} or {last}, or its header is damaged"
    return f"damaged: {reason(error)}".rstrip(".")
