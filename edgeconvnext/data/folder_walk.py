"""What lies below a folder of images: links to folders are followed, as torchvision and timm do, but never in circles."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from edgeconvnext.data.raster_formats import has_image_suffix

_Identity = tuple[int, int]


@dataclass
class FolderContents:
    """Files below a folder, at any depth: `images` and `others` as paths relative to the root, with forward slashes, sorted.

    loops: links that lead back to a folder above, or to one that was read already, and were not followed.
    """

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, but hidden files and folders."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def is_file(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a file, links followed, or a link whose target is not there: such an image is broken, not absent."""
    # os.path's functions take a link to itself for absent; the entry's own raise OSError.
    return os.path.isfile(entry.path) or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110, PTH113


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder, links followed."""
    return os.path.isdir(entry.path)  # noqa: PTH112


def contents_below(root: Path, name: str) -> FolderContents:
    """Return the files below the subfolder `name` of `root`. A folder counts once, however many links lead to it."""
    contents = FolderContents()
    _read(root, name, contents, _with_parents(root))
    contents.images.sort()
    contents.others.sort()
    return contents


def _read(root: Path, relative: str, contents: FolderContents, seen: set[_Identity]) -> None:
    """Add what lies in root/relative. seen: folders above it, and those that were read."""
    folder = root / relative
    identity = _identity(folder)
    if identity in seen:
        contents.loops.append(relative)
        return
    seen.add(identity)
    folders = []
    for entry in visible(folder):
        path = f"{relative}/{entry.name}"
        if is_folder(entry):
            folders.append((entry.is_symlink(), path))
        else:
            (contents.images if has_image_suffix(entry.name) else contents.others).append(path)
    for _, path in sorted(folders):  # links last, so that a folder is listed under its own name
        _read(root, path, contents, seen)


def _with_parents(root: Path) -> set[_Identity]:
    """Return which folders `root` and all above it are."""
    resolved = root.resolve()
    return {_identity(folder) for folder in (resolved, *resolved.parents)}


def _identity(folder: Path) -> _Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino
