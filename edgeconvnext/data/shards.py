"""Sets that lie in files: a .tar or .parquet, a folder of them, or a pattern that names some of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgeconvnext.data.folder_walk import is_folder, visible
from edgeconvnext.data.folders import SPLIT_NAMES, FolderListing
from edgeconvnext.data.image_set import ImageReader
from edgeconvnext.data.label_lists import DEVKIT
from edgeconvnext.data.raster_formats import has_image_suffix
from edgeconvnext.errors import ImageSetError
from edgeconvnext.escape import for_terminal

_Kind = Literal["tar", "parquet", "packed"]
_SUFFIXES: dict[str, _Kind] = {".tar": "tar", ".parquet": "parquet"}
_PATTERN = re.compile(r"[*?\[]")
# The innermost pair of braces: {000000..000009} or {train,val}.
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,12})\.\.([0-9]{1,12})")
_MOST_SHARDS = 100_000
_SPLIT = re.compile(r"[A-Za-z]+")
_TAR_MAGIC_AT = 257


def shard_files(path: Path) -> list[Path]:
    """Return the shards that a path stands for, in sorted order; none where it is a folder of images, or nothing at all.

    A file counts by its content; those of a folder, which holds no images and no folders, or of a pattern count by their suffix.
    Patterns are those of shells and webdataset's: "val-*.tar", "val-{000000..000009}.tar", "{a,b}.tar".
    Raises ImageSetError where they are of two kinds or of several splits, such as train and validation, and where some of those
    that braces name are missing.
    """
    if os.path.isfile(path):  # noqa: PTH113  Path.is_file raises OSError for names that no system takes
        return [path] if _kind_of(path) in ("tar", "parquet") else []
    is_directory = os.path.isdir(path)  # noqa: PTH112
    if is_directory:
        files = _files_alone(path)
    elif (names := expanded(str(path))) != [str(path)]:
        files = _braced(path, [Path(name) for name in names])
    elif _PATTERN.search(path.name) and os.path.isdir(path.parent):  # noqa: PTH112
        files = sorted(path.parent.glob(path.name))
    else:
        return []
    shards = [file for file in files if file.suffix.lower() in _SUFFIXES and file.is_file()]
    if is_directory:
        _refuse_splits(shards)
    if len({file.suffix.lower() for file in shards}) > 1:
        raise ImageSetError(
            f"{for_terminal(path)} holds .tar and .parquet files. Name those of one kind, as in '{for_terminal(path)}/*.tar'."
        )
    return shards


def _braced(path: Path, files: list[Path]) -> list[Path]:
    """Return the files that the braces of `path` stand for; none where none of them is there."""
    missing = [file for file in files if not os.path.isfile(file)]  # noqa: PTH113
    if missing and len(missing) < len(files):
        names = ", ".join(for_terminal(file.name) for file in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ImageSetError(
            f"{for_terminal(path)} names {len(files)} shards; {len(missing)} of them are missing: {names}{more}. Add them, or "
            "name those that are there."
        )
    if len({file.name for file in files}) < len(files):
        raise ImageSetError(f"{for_terminal(path)} names several shards of one name. Name those of one folder.")
    return [] if missing else files


def expanded(pattern: str) -> list[str]:
    """Return the names that braces stand for, as in shells and webdataset: ranges of whole numbers, and lists.

    "v-{08..10}.tar" is v-08.tar, v-09.tar and v-10.tar. Braces without ".." and "," stay. Raises ImageSetError for more than
    100,000 names.
    """
    names, parts = [""], _BRACES.split(pattern)
    for text, inside in zip(parts[::2], [*parts[1::2], None], strict=True):
        choices = [""] if inside is None else _choices(inside)
        if len(names) * len(choices) > _MOST_SHARDS:
            raise ImageSetError(f"{for_terminal(pattern)} names more than {_MOST_SHARDS:,} files.")
        names = [f"{name}{text}{choice}" for name in names for choice in choices]
    return names


def _choices(inside: str) -> list[str]:
    """Return what one pair of braces stands for. Leading zeros of the first number say the width."""
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = int(match[1]), int(match[2])
    if abs(last - first) >= _MOST_SHARDS:
        raise ImageSetError(f"{{{inside}}} names more than {_MOST_SHARDS:,} files.")
    width = (
        max(map(len, match.groups())) if any(part.startswith("0") and len(part) > 1 for part in match.groups()) else 0
    )
    step = 1 if last >= first else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]


def holds_shards_alone(folder: Path) -> bool:
    """Say whether a folder holds shards, and neither images nor folders of images."""
    return any(file.suffix.lower() in _SUFFIXES for file in _files_alone(folder))


def _files_alone(folder: Path) -> list[Path]:
    """Return the files of a folder in sorted order; none where it holds images or folders, but for the devkit's."""
    try:
        entries = visible(folder)
        if any(has_image_suffix(entry.name) or (is_folder(entry) and entry.name != DEVKIT) for entry in entries):
            return []
    except OSError:
        return []  # what reads it as a folder of images says why
    return sorted(Path(entry.path) for entry in entries)


def is_packed(path: Path) -> bool:
    """Say whether a file is gzip, as a .tar.gz is."""
    return _kind_of(path) == "packed"


def read_shards(files: Sequence[Path], labels: Path | None = None) -> tuple[FolderListing, ImageReader]:
    """List the images of shards of one kind; labels: a file that names their classes. Raises ImageSetError."""
    if _kind_of(files[0]) == "parquet":
        from edgeconvnext.data.parquet_sets import read_parquet

        return read_parquet(files, labels)
    from edgeconvnext.data.tar_sets import read_tars

    return read_tars(files, labels)


def _kind_of(file: Path) -> _Kind | None:
    """Say what a file is by its content; by its suffix where it is too short or damaged to tell."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_TAR_MAGIC_AT + 5)
    except OSError:
        return None
    if head[_TAR_MAGIC_AT:] == b"ustar":
        return "tar"
    if head.startswith(b"PAR1"):
        return "parquet"
    return "packed" if head.startswith(b"\x1f\x8b") else _SUFFIXES.get(file.suffix.lower())


def _refuse_splits(files: Sequence[Path]) -> None:
    """Tell shards of train and validation apart: together they would be one set."""
    official = [file.name for file in files if file.name.startswith("ILSVRC2012_img_")]
    if len(official) > 1:
        raise ImageSetError(
            f"{for_terminal(files[0].parent)} holds {', '.join(map(for_terminal, official[:5]))}. Name one of them."
        )
    names = [match[0] if (match := _SPLIT.match(file.name)) else "" for file in files]
    splits = sorted(set(names))
    if len(splits) > 1 and {name.lower() for name in splits} <= SPLIT_NAMES:
        folder, suffix = for_terminal(files[0].parent), files[0].suffix
        patterns = ", ".join(f"'{folder}/{name}-*{suffix}'" for name in splits)
        raise ImageSetError(
            f"{folder} holds shards of the splits {', '.join(splits)}. Name one of them by a pattern: {patterns}."
        )
