"""Opening one image file: what cameras, scanners and scrapers leave behind becomes 8-bit RGB, or a stated reason."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)

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

    Raises BrokenImage with the reason for empty, truncated or foreign files and for decompression bombs.
    """
    try:
        # Pillow warns from 89 megapixels on and refuses from twice that; the refusal is the limit that counts here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                _reduce_jpeg(image, shorter_side)
                return to_rgb(ImageOps.exif_transpose(image))
    except BrokenImage:
        raise
    except MemoryError as error:
        raise BrokenImage("decoding it needs more memory than there is") from error
    except (
        Exception
    ) as error:  # decoders raise almost anything on damaged bytes: OSError, SyntaxError, struct.error, ...
        raise BrokenImage(_reason(path, error)) from error


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
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BrokenImage("its pixels are 32-bit integers beyond 0..65535, whose range is not stated in the file")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reduce_jpeg(image: Image.Image, shorter_side: int | None) -> None:
    """Let the JPEG decoder scale down while it decodes: to the side that is enough, and so that no image fills the memory."""
    width, height = image.size
    if shorter_side is None and width * height > _FULL_DECODE_PIXELS:
        shorter_side = _REDUCED_SHORTER_SIDE
    if image.format == "JPEG" and shorter_side is not None:
        scale = shorter_side / min(width, height)
        # draft() keeps the smallest size that is at least the one asked for.
        image.draft(None, (max(1, math.ceil(width * scale)), max(1, math.ceil(height * scale))))


def _reason(path: Path, error: Exception) -> str:
    """Say in a few words why `path` could not be decoded."""
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels (more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million)"
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    try:
        if path.stat().st_size == 0:
            return "the file is empty"
    except OSError:
        return "the file cannot be read"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return f"damaged: {error}".rstrip(".")
