"""Which image formats are read, by which suffixes their files are known, and which of them this machine lacks a decoder for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec

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
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
# What decodes a format that not every machine has.
_DECODERS = {"AVIF": "PIL._avif", "HEIF": "pillow_heif"}
_HOW_TO_READ = {
    "AVIF": "install a Pillow that was built with AVIF, or convert them to JPEG or PNG",
    "HEIF": "install pillow-heif (pip install pillow-heif), or convert them to JPEG or PNG, as in `magick mogrify -format jpg "
    "*.HEIC` (ImageMagick) or `sips -s format jpeg *.HEIC --out converted` (macOS)",
}
_CALLED = {"HEIF": "HEIC"}
# Brands that the first box of an ISO media file names; AVIF's are "avif" and "avis".
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})


@cache
def readable_formats() -> tuple[str, ...]:
    """Return the formats that this machine decodes, and make pillow-heif known to Pillow where it is installed."""
    missing = missing_decoders()
    if "HEIF" not in missing:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in RASTER_FORMATS if name not in missing)


@cache
def missing_decoders() -> frozenset[str]:
    """Return the formats that this machine has no decoder for."""
    return frozenset(name for name, module in _DECODERS.items() if find_spec(module) is None)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of files that this machine can decode."""
    missing = missing_decoders()
    return frozenset(suffix for name, suffixes in RASTER_FORMATS.items() if name not in missing for suffix in suffixes)


def has_image_suffix(name: str) -> bool:
    """Say whether a file name ends as images do that this machine decodes."""
    return _suffix(name) in image_suffixes()


def without_decoder(names: Iterable[str]) -> str | None:
    """Say how many of these files are images that this machine cannot decode, and what to do; None where none is.

    "40 HEIC files are there; to read them, install pillow-heif (pip install pillow-heif), or convert them ...".
    """
    counts = Counter(
        image_format
        for name in names
        for image_format in missing_decoders()
        if _suffix(name) in RASTER_FORMATS[image_format]
    )
    if not counts:
        return None
    return "; ".join(
        f"{count} {_CALLED.get(name, name)} {'file is' if count == 1 else 'files are'} there; to read "
        f"{'it' if count == 1 else 'them'}, {_HOW_TO_READ[name]}"
        for name, count in sorted(counts.items())
    )


def undecodable_content(head: bytes) -> str | None:
    """Say what a file is that begins with `head` and that this machine has no decoder for; None for any other."""
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" in missing_decoders():
        return f"it is a HEIC; to read such files, {_HOW_TO_READ['HEIF']}"
    return None


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122
