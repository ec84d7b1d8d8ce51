"""Image sets in .tar.gz archives: a packed stream has no places to go to. What is not packed is read in place (`tar_sets.py`).

The first use of a set unpacks its archives into one file of the cache, image after image, with a list of where each lies. An image
is then read from its place; memory holds the list alone, and there are no ten thousands of small files.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgeconvnext.data.folders import FolderListing, listing_of_classes
from edgeconvnext.data.images import BrokenImage, decode_image
from edgeconvnext.data.raster_formats import has_image_suffix
from edgeconvnext.data.unpack import archive_files
from edgeconvnext.errors import ImageSetError
from edgeconvnext.escape import for_terminal
from edgeconvnext.files import TEMPORARY_PREFIX, atomic_write, storage_errors
from edgeconvnext.received import MIB, read_text

_MOST_LIST_BYTES = 256 * MIB
_CHUNK = 2**20


@dataclass(frozen=True)
class Place:
    """Where an image lies: `size` bytes from `offset` on. sha256: of these bytes."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class PackReader:
    """Images that lie one after the other in `file`; ids are their names in the archives."""

    file: Path
    places: dict[str, Place]
    in_memory: bool = False

    def read(self, image_id: str, shorter_side: int | None = None) -> Image.Image:
        place = self.places[image_id]
        try:
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(place.offset)
                content = stream.read(place.size)
        except OSError as error:
            raise BrokenImage("the cache of its archive cannot be read") from error
        return decode_image(io.BytesIO(content), shorter_side)

    def stamp(self, image_id: str) -> str:
        return self.places[image_id].sha256


def find_archives(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files below `root` that the patterns name, as in "sets/train-*.tar.gz", in sorted order."""
    return sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()})


def read_archives(archives: Sequence[Path], cache: Path) -> tuple[FolderListing, PackReader]:
    """List the images of archives whose entries are `class/name`, and unpack them into the folder `cache` on first use.

    Order and classes are those of a folder with the same files. Raises ImageSetError for archives that are damaged, hold anything
    but plain files below folders, or hold no images.
    """
    pack = cache / f"{_identity(archives)}.images"
    places = _listed(pack)
    if places is None:
        places = _unpack(archives, pack)
    classes: dict[str, list[str]] = {}
    for name in sorted(places):
        classes.setdefault(name.partition("/")[0], []).append(name)
    return listing_of_classes(dict(sorted(classes.items()))), PackReader(pack, places)


def _identity(archives: Sequence[Path]) -> str:
    """Hash path, size and time of each archive: what was unpacked from others is not taken."""
    digest = hashlib.sha256()
    for path in archives:
        status = path.stat()
        digest.update(os.fsencode(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()[:32]


def _list_file(pack: Path) -> Path:
    return pack.with_suffix(".tsv")


def _listed(pack: Path) -> dict[str, Place] | None:
    """Return where the images lie in `pack`; None where it is not there, or is not what its list says."""
    if not pack.is_file() or not _list_file(pack).is_file():
        return None
    places: dict[str, Place] = {}
    end = 0
    for line in read_text(_list_file(pack), ImageSetError, most=_MOST_LIST_BYTES).splitlines():
        name, _, rest = line.partition("\t")
        size, _, sha256 = rest.partition("\t")
        if not (size.isascii() and size.isdigit()):
            return None
        places[name] = Place(end, int(size), sha256)
        end += int(size)
    return places if places and end == pack.stat().st_size else None


def _unpack(archives: Sequence[Path], pack: Path) -> dict[str, Place]:
    places: dict[str, Place] = {}
    temporary = pack.with_name(f"{TEMPORARY_PREFIX}{pack.name}-{os.getpid()}")
    with storage_errors(pack):
        pack.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                for name, content in _images(archives):
                    if name in places:
                        raise ImageSetError(f"{for_terminal(name)} is in the archives twice. Remove one of them.")
                    places[name] = Place(stream.tell(), len(content), hashlib.sha256(content).hexdigest())
                    stream.write(content)
            if not places:
                raise ImageSetError(f"{for_terminal(archives[0])} holds no images in folders, one for each class.")
            temporary.replace(pack)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    atomic_write(_list_file(pack), "".join(f"{name}\t{p.size}\t{p.sha256}\n" for name, p in places.items()))
    return places


def _images(archives: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each image that lies in a folder."""
    for path in archives:
        with path.open("rb") as stream:
            for name, content in archive_files(stream, path.stat().st_size, str(path), ImageSetError):
                if "/" in name and has_image_suffix(name):
                    yield name, content
