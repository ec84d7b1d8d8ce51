"""Image sets by name or folder: `calib/*.toml` says what a name stands for, and nothing else ever takes its place."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from edgeconvnext.config_file import Section, parse_toml
from edgeconvnext.data.archives import find_archives, read_archives
from edgeconvnext.data.folders import SPLIT_NAMES, FolderListing, first_of_each_class, list_folder
from edgeconvnext.data.image_set import FolderReader, ImageReader, ImageSet
from edgeconvnext.data.imagenet import imagenet_classes
from edgeconvnext.data.names import unsafe_name
from edgeconvnext.data.shards import holds_shards_alone, is_packed, read_shards, shard_files
from edgeconvnext.errors import ConfigFileError, ImageSetError, nearest
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import MIB, require_regular_file, user_path
from edgeconvnext.resources import resource_dir

__all__ = [
    "ImageSet",
    "SetFile",
    "cache_dir",
    "data_roots",
    "load_set_file",
    "resolve_image_set",
    "set_files",
]


# More images or bytes than any set has.
_MOST = 10**15
_NAMED, _SHOWN = 10, 80


class ExpectedSection(Section):
    """What the published set holds. Another count or list is used all the same, and noted.

    list_sha256: hash of the list, as `ImageSet.list_sha256` makes it.
    """

    images: int = Field(ge=1, le=_MOST)
    list_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class ArchiveSection(Section):
    """A public archive, .tar or .tar.gz, and the folder it unpacks to."""

    url: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=1, le=_MOST)
    folder: str


class FilesSection(Section):
    """Public files, fetched one by one.

    url: what a file's name is appended to. list: a file beside the TOML file with a line for each file: name, bytes, sha256.
    folder: where the files go, each into a subfolder named as its name begins, up to the first "_". terms: of use, to agree to.
    """

    url: str
    list: str
    folder: str
    terms: str


class SetFile(Section):
    """An image set, as its TOML file says.

    embedded: a split of the digits inside the package. folders: where else the images may lie, most wanted first;
    relative ones are looked for in the data folders (and beside the TOML file, where it is the user's own).
    archives: .tar or .tar.gz files with entries `class/name`, as patterns ("photos/train-*.tar.gz") below the data
    folders; read where none of the folders is there.
    images_per_class: the first so many of each class, by file name; all of them where it is absent.
    how_to_get: the sentence an error ends with.
    """

    name: str
    description: str
    embedded: Literal["train", "calibration", "test"] | None = None
    folders: list[str] = Field(default=[], max_length=1000)
    archives: list[str] = Field(default=[], max_length=1000)
    images_per_class: int | None = Field(default=None, ge=1, le=_MOST)
    how_to_get: str = ""
    expected: ExpectedSection | None = None
    archive: ArchiveSection | None = None
    files: FilesSection | None = None

    @field_validator("archives")
    @classmethod
    def _relative(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if fault := unsafe_name(pattern):
                raise ValueError(f"the pattern {pattern[:_SHOWN]!r} {fault}")
        return patterns

    @model_validator(mode="after")
    def _comes_from_somewhere(self) -> SetFile:
        if (self.embedded is None) == (not self.folders and not self.archives):
            raise ValueError("a set needs either folders and archives or embedded, and not both")
        return self


def set_files() -> dict[str, Path]:
    """Return the shipped set files by name."""
    return {path.stem: path for path in sorted(resource_dir("calib").glob("*.toml"))}


def load_set_file(name: str) -> SetFile:
    """Read a shipped set file by the set's name."""
    files = set_files()
    if name not in files:
        raise ImageSetError(f"There is no image set {name!r}.{nearest(name, files)} Known sets: {', '.join(files)}.")
    return parse_toml(files[name], SetFile)


def cache_dir() -> Path:
    """Return the folder that downloads go to where EDGECONVNEXT_DATA is not set."""
    return user_path("~/.cache/edgeconvnext", ImageSetError)


def data_roots() -> list[Path]:
    """Return the folders in which sets are looked for, first come first served."""
    chosen = os.environ.get("EDGECONVNEXT_DATA")
    return [user_path(chosen, ImageSetError), cache_dir()] if chosen else [cache_dir()]


def resolve_image_set(
    name_or_path: str | Path, *, labels: str | Path | None = None, skip_broken: bool = False
) -> ImageSet:
    """Find an image set by its name, by a folder of images, by shards (`shards.py`), or by a TOML file of the user's own.

    labels: a file that names the class of each image of a folder or of shards, as in `label_files` and `label_lists`.
    skip_broken: leave images out that cannot be read, however many.

    A name is looked for under EDGECONVNEXT_DATA, then in ~/.cache/edgeconvnext; a folder as given, then in these two.
    Raises ImageSetError when it is not there (with how to get it) or holds no images, ConfigFileError for a TOML that
    does not hold.
    """
    file = None if labels is None else user_path(labels, ImageSetError)
    return replace(_find(str(name_or_path), file), skip_broken=skip_broken)


def _find(text: str, labels: Path | None) -> ImageSet:
    if labels is not None and (text in set_files() or text.endswith(".toml")):
        raise ImageSetError(
            f"{for_terminal(text)} is a named set, which has its own classes; the label file {for_terminal(labels)} goes with a "
            "folder of images. Name the folder that holds them."
        )
    if text in set_files():
        return _from_set_file(load_set_file(text), data_roots())
    path = user_path(text, ImageSetError)
    if path.suffix == ".toml":
        if not os.path.exists(path):  # noqa: PTH110
            raise ImageSetError(
                f"There is no image set file {for_terminal(path)}. Known sets: {', '.join(set_files())}."
            )
        require_regular_file(path, ConfigFileError, most=MIB)
        return _from_set_file(parse_toml(path, SetFile), [path.resolve().parent, *data_roots()])
    # An empty name is an unset variable of a script, not the folder one happens to be in.
    for folder in [path, *(root / path for root in data_roots())]:
        if text and _is_folder(folder):
            return _from_folder(folder, _folder_name(folder), labels=labels)
        if text and (shards := shard_files(folder)):
            return _from_shards(shards, folder.name, labels=labels)
    if text and os.path.exists(path):  # noqa: PTH110
        if labels is None and path.is_file() and is_packed(path):
            return _from_archives([path], path.name, None)
        return _from_folder(path, path.name)
    raise ImageSetError(
        f"There is no image set or folder {text!r}.{nearest(text, set_files())} Known sets: {', '.join(set_files())}; "
        "any folder of images works by its path."
    )


def _from_set_file(description: SetFile, roots: list[Path]) -> ImageSet:
    if description.embedded is not None:
        from edgeconvnext.data.digits import digits_set

        found = replace(digits_set(description.embedded), name=description.name)
    else:
        found = _from_data_folders(description, roots)
    return replace(found, remarks=(*found.remarks, *_differences(found, description.expected)))


def _from_data_folders(description: SetFile, roots: list[Path]) -> ImageSet:
    """Return the set from the first data folder that holds one of its folders, or else its archives."""
    for root in roots:
        archives = find_archives(root, description.archives)
        for folder in description.folders:
            # Path's "/" keeps an absolute right side as it is, so a user's file may name absolute folders.
            candidate = root / user_path(folder, ImageSetError)
            if _is_folder(candidate) and not (archives and holds_shards_alone(candidate)):
                return _from_folder(candidate, description.name, description.images_per_class)
        if archives:
            return _from_archives(archives, description.name, description.images_per_class)
    raise _missing(description, roots)


def _missing(description: SetFile, roots: list[Path]) -> ImageSetError:
    places = " and ".join(for_terminal(root) for root in roots)
    names = [*description.folders, *description.archives]
    more = len(names) - _NAMED
    folders = ", ".join(for_terminal(name, 200) for name in names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    unset = "" if os.environ.get("EDGECONVNEXT_DATA") else " (EDGECONVNEXT_DATA is not set)"
    return ImageSetError(
        f"The image set {for_terminal(description.name, 200)} is not on this machine: looked in {places}{unset} for "
        f"{folders}. {for_terminal(description.how_to_get, 500)}".rstrip()
    )


def _is_folder(path: Path) -> bool:
    """Say whether a folder is there; a name that no file system takes, or that may not be looked at, is none."""
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises OSError for these


def _from_folder(folder: Path, name: str, images_per_class: int | None = None, labels: Path | None = None) -> ImageSet:
    if shards := shard_files(folder):
        return _from_shards(shards, name, images_per_class, labels)
    return _from_listing(name, list_folder(folder, images_per_class, labels), FolderReader(folder.resolve()))


def _from_archives(archives: list[Path], name: str, images_per_class: int | None) -> ImageSet:
    if not any(map(is_packed, archives)):
        return _from_shards(archives, name, images_per_class)
    listing, reader = read_archives(archives, cache_dir() / "archives")
    if images_per_class is not None:
        listing = first_of_each_class(archives[0], listing, images_per_class)
    return _from_listing(name, listing, reader)


def _from_shards(
    files: list[Path], name: str, images_per_class: int | None = None, labels: Path | None = None
) -> ImageSet:
    listing, reader = read_shards(files, labels)
    if images_per_class is not None:
        listing = first_of_each_class(files[0], listing, images_per_class)
    return _from_listing(name, listing, reader)


def _from_listing(name: str, listing: FolderListing, reader: ImageReader) -> ImageSet:
    return ImageSet(
        name=name,
        ids=listing.ids,
        reader=reader,
        labels=listing.labels,
        class_names=listing.class_names,
        descriptions=_imagenet_descriptions(listing.class_names),
        remarks=listing.remarks,
        classes_from=listing.classes_from,
    )


def _imagenet_descriptions(class_names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the words for class names that are all ImageNet synsets, else None."""
    words = imagenet_classes()
    if not class_names or not all(name in words for name in class_names):
        return None
    return tuple(words[name].split(",")[0] for name in class_names)


def _folder_name(folder: Path) -> str:
    """Return a short name; "imagenette2-160/val" rather than "val", which would say nothing."""
    resolved = folder.resolve()
    says_nothing = resolved.name.lower() in {*SPLIT_NAMES, "images"}
    return f"{resolved.parent.name}/{resolved.name}" if says_nothing else resolved.name


def _differences(found: ImageSet, expected: ExpectedSection | None) -> list[str]:
    if expected is None:
        return []
    if len(found) != expected.images:
        return [f"{for_terminal(found.name)} holds {len(found)} images here; the published set has {expected.images}"]
    if expected.list_sha256 not in (None, found.list_sha256):
        return [
            f"{for_terminal(found.name)} is another list of {len(found)} images than the reference list (sha256 "
            f"{found.list_sha256[:12]}...)"
        ]
    return []
