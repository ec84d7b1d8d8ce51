"""Sets in .tar files: ImageNet's validation archive, shards of samples (webdataset), and archives of class folders."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgeconvnext.data.folders import (
    SPLIT_NAMES,
    FolderListing,
    labels_of_file,
    listing_of_classes,
    listing_of_labels,
    listing_of_official,
    refuse_splits,
)
from edgeconvnext.data.imagenet import imagenet_classes
from edgeconvnext.data.label_lists import are_validation_images, list_beside
from edgeconvnext.data.raster_formats import has_image_suffix, image_suffixes, without_decoder
from edgeconvnext.data.tar_reader import TarReader
from edgeconvnext.data.unpack import archive_places
from edgeconvnext.errors import ImageSetError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import MIB, parse_json, require_regular_file

# What a sample's JSON calls its class, most wanted first.
_JSON_KEYS = ("label", "cls", "class", "class_id", "target", "class_name", "label_name", "synset", "wnid")
_MOST_SIDECAR_BYTES = MIB
_MOST_CLASS_CHARACTERS = 1000
_REMEMBERED = 1000
_SYNSET_NAME = re.compile(r"(n[0-9]{8})_")


@dataclass
class _Contents:
    """What tar files hold: ids of the images, each with its file, first byte and size.

    classes: what the .cls or .json of a sample says, by the sample's key. others: some of the other files.
    """

    ids: list[str] = field(default_factory=list)
    file_numbers: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    classes: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def read_tars(files: Sequence[Path], labels_file: Path | None = None) -> tuple[FolderListing, TarReader]:
    """List the images of .tar files and where they lie.

    Classes are, first come first served: what `labels_file` says; what a sample's .cls or .json says; for ImageNet's validation
    images the devkit or list beside them; the folders in the archive; the synset that every name begins with. Else there are none.
    ids are names in the archive, after the archive's own name where there are several without folders.

    Raises ImageSetError for archives that are damaged or hold anything but plain files, and for images that lack a class where
    others have one.
    """
    contents = _Contents()
    for number, file in enumerate(files):
        _list_file(file, number, len(files) > 1, contents)
    if not contents.ids:
        raise ImageSetError(_no_images(files[0], contents.others))
    listing, names = _listing(files, contents, labels_file)
    return listing, _reader(files, contents, names)


def _list_file(file: Path, number: int, several: bool, contents: _Contents) -> None:
    """Add what one archive holds."""
    size = require_regular_file(file, ImageSetError)
    with file.open("rb") as stream:
        for name, offset, length in archive_places(stream, size, str(file), ImageSetError):
            if any(part.startswith(".") for part in name.split("/")):
                continue
            image_id = f"{file.name}/{name}" if several else name
            if has_image_suffix(name):
                contents.ids.append(image_id)
                contents.file_numbers.append(number)
                contents.offsets.append(offset)
                contents.sizes.append(length)
            elif name.lower().endswith((".cls", ".json")):
                _add_class(contents, image_id, _sidecar(stream, offset, length, file, name))
            elif len(contents.others) < _REMEMBERED:
                contents.others.append(name)


def _key(name: str) -> str:
    """Return what a sample's files share: the path up to the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _add_class(contents: _Contents, name: str, class_name: str | None) -> None:
    """Note a sample's class; a .cls counts more than a .json."""
    if class_name is not None and (name.lower().endswith(".cls") or _key(name) not in contents.classes):
        contents.classes[_key(name)] = class_name


def _sidecar(stream: BinaryIO, offset: int, length: int, file: Path, name: str) -> str | None:
    """Return the class in a sample's .cls or .json; None where a JSON names none."""
    place = f"{file}: {name}"
    if length > _MOST_SIDECAR_BYTES:
        raise ImageSetError(
            f"{for_terminal(place)} has {length:,} bytes; a class takes at most {_MOST_SIDECAR_BYTES:,}."
        )
    stream.seek(offset)
    content = stream.read(length)
    if name.lower().endswith(".cls"):
        text = content.decode("utf-8", errors="replace").strip()
        if not text or "\n" in text or "\ufffd" in text:
            raise ImageSetError(f"{for_terminal(place)} holds no class: one line with a number or name is expected.")
        return _bounded(text, place)
    value: Any = parse_json(content, place, ImageSetError)
    if not isinstance(value, dict):
        return _bounded(str(value), place) if _is_class(value) else None
    return next((_bounded(str(value[key]), place) for key in _JSON_KEYS if _is_class(value.get(key))), None)


def _bounded(class_name: str, place: str) -> str:
    if len(class_name) > _MOST_CLASS_CHARACTERS:
        raise ImageSetError(f"{for_terminal(place)} names a class of {len(class_name):,} characters.")
    return class_name


def _is_class(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _listing(
    files: Sequence[Path], contents: _Contents, labels_file: Path | None
) -> tuple[FolderListing, Sequence[str]]:
    """Return the set and the id of each image, in the order of `contents`."""
    ids = contents.ids
    if labels_file is not None:
        return _from_labels_file(files, ids, labels_file), ids
    if any(_key(image_id) in contents.classes for image_id in ids):
        return _from_samples(files, contents), ids
    within = [_within(image_id, files) for image_id in ids]
    if are_validation_images(within):
        beside = list_beside(files[0])
        if beside is not None and not _in_class_folders(within):
            listing = _from_labels_file(files, ids, beside, may_lack_images=True)
            return listing_of_official(listing, files[0], beside), ids
    if all("/" in name for name in within):
        names = _without_top(within, files[0].name.partition(".")[0])
        if all("/" in name for name in names):
            return _from_folders(files, names), names
    synsets = [_synset(name) for name in within]
    if all(synsets):
        classes: dict[str, list[str]] = {}
        for image_id, synset in sorted(zip(ids, synsets, strict=True)):
            classes.setdefault(str(synset), []).append(image_id)
        return listing_of_classes(dict(sorted(classes.items()))), ids
    return FolderListing(tuple(sorted(ids)), None, ()), ids


def _within(image_id: str, files: Sequence[Path]) -> str:
    """Return the name inside the archive."""
    return image_id.partition("/")[2] if len(files) > 1 else image_id


def _in_class_folders(names: Sequence[str]) -> bool:
    return all(name.rpartition("/")[0].rpartition("/")[2] in imagenet_classes() for name in names)


def _without_top(names: list[str], archive: str) -> list[str]:
    """Take off the folders that hold all others: "imagenet/val/n01440764/1.JPEG" lies in the class n01440764.

    One folder of images alone is a class, as in a folder, unless its name says nothing: "val", "images", the archive's own.
    """
    says_nothing = {*SPLIT_NAMES, "images", archive.lower()}
    while True:
        top = names[0].partition("/")[0]
        if not all(name.startswith(f"{top}/") for name in names):
            return names
        below = [name[len(top) + 1 :] for name in names]
        if not all("/" in name for name in below):
            return below if top.lower() in says_nothing else names
        names = below


def _synset(name: str) -> str | None:
    match = _SYNSET_NAME.match(name.rpartition("/")[2])
    return match[1] if match and match[1] in imagenet_classes() else None


def _from_folders(files: Sequence[Path], names: Sequence[str]) -> FolderListing:
    classes: dict[str, list[str]] = {}
    for name in sorted(names):
        classes.setdefault(name.partition("/")[0], []).append(name)
    refuse_splits(files[0], classes)
    return listing_of_classes(dict(sorted(classes.items())))


def _from_labels_file(
    files: Sequence[Path], ids: Sequence[str], labels_file: Path, *, may_lack_images: bool = False
) -> FolderListing:
    by_name: dict[str, str] = {}
    for image_id in ids:
        base = image_id.rpartition("/")[2]
        for name in (image_id, _within(image_id, files), base, base.rpartition(".")[0]):
            by_name.setdefault(name, image_id)
    root = files[0] if len(files) == 1 else files[0].parent
    pairs = labels_of_file(labels_file, root, ids, by_name.get, may_lack_images=may_lack_images)
    return listing_of_labels(pairs, ids, labels_file)


def _from_samples(files: Sequence[Path], contents: _Contents) -> FolderListing:
    """Return the images with the classes that lie beside each; -1, as hubs write it, is no class."""
    owner: dict[str, str] = {}
    for image_id in contents.ids:
        other = owner.setdefault(_key(image_id), image_id)
        if other != image_id:
            raise ImageSetError(
                f"{for_terminal(files[0].parent)}: the sample {for_terminal(_key(image_id))} holds two images, "
                f"{for_terminal(other)} and {for_terminal(image_id)}. Keep one image in a sample."
            )
    lacking = sorted(image_id for key, image_id in owner.items() if key not in contents.classes)
    if lacking:
        raise ImageSetError(
            f"{len(lacking)} of {len(owner)} images have no class beside them, as .cls or .json: {for_terminal(lacking[0])}. Add "
            "the classes, or name them all in a file with --labels."
        )
    pairs = {image_id: contents.classes[key] for key, image_id in owner.items()}
    if set(pairs.values()) == {"-1"}:
        return FolderListing(tuple(sorted(pairs)), None, ())
    return listing_of_labels(pairs, (), files[0])


def _reader(files: Sequence[Path], contents: _Contents, names: Sequence[str]) -> TarReader:
    order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    ids = [names[position] for position in order]
    twice = next((name for name, following in pairwise(ids) if name == following), None)
    if twice is not None:
        raise ImageSetError(f"{for_terminal(twice)} is in the archives twice. Remove one of them.")
    stamps = [file.stat() for file in files]
    return TarReader(
        files=tuple(file.resolve() for file in files),
        file_stamps=tuple(f"{status.st_size}:{status.st_mtime_ns}" for status in stamps),
        ids=tuple(ids),
        file_numbers=np.frombuffer(contents.file_numbers, dtype=np.int64)[order],
        offsets=np.frombuffer(contents.offsets, dtype=np.int64)[order],
        sizes=np.frombuffer(contents.sizes, dtype=np.int64)[order],
    )


def _no_images(file: Path, others: list[str]) -> str:
    if lacking := without_decoder(others):
        return f"{for_terminal(file)} holds no images that this machine can decode: {lacking}."
    if any(name.endswith(".tar") for name in others):
        return (
            f"{for_terminal(file)} holds archives, not images, as ImageNet's training images come. Unpack it, and name the folder "
            "of these archives."
        )
    return f"{for_terminal(file)} holds no images; files count by their ending ({', '.join(sorted(image_suffixes()))})."
