"""Reading a folder as a set of images: class subfolders, a flat folder with a labels file, or just photographs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeconvnext.data.folder_walk import contents_below, is_file, is_folder, visible
from edgeconvnext.data.image_set import ClassesFrom
from edgeconvnext.data.label_files import LABEL_FILES, read_image_labels
from edgeconvnext.data.label_lists import are_validation_images, list_beside, read_label_list
from edgeconvnext.data.raster_formats import has_image_suffix, image_suffixes, without_decoder
from edgeconvnext.errors import ImageSetError
from edgeconvnext.escape import for_terminal

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_NAMED = 5


@dataclass(frozen=True)
class FolderListing:
    """What a folder holds. ids: relative paths, in a fixed order; labels: index into class_names for each, or None.

    classes_from: whether class_names are those of folders or what a label file says.
    """

    ids: tuple[str, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    classes_from: ClassesFrom = "folders"


def list_folder(root: Path, images_per_class: int | None = None, labels_file: Path | None = None) -> FolderListing:
    """List the images below `root` in a deterministic order.

    Subfolders with images are classes, in sorted order. Images directly in `root` take their classes from `labels.csv`
    or `labels.txt` (one "file,class" per line), ImageNet's validation images from a list beside them, or have none.
    labels_file: such a file at another place, whose names may lead into subfolders. Hidden files and folders are passed
    over, links to folders are followed.

    images_per_class: keep only the first so many of each class, by file name; needs classes.
    Raises ImageSetError for a missing, unreadable or imageless folder, and for one that holds splits instead of
    classes.
    """
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "does not exist"
        raise ImageSetError(
            f"The image folder {for_terminal(root)} {kind}. Name a folder of images, or one with a subfolder for each class."
        )
    try:
        flat, other_names = _split_by_suffix(sorted(entry.name for entry in visible(root) if is_file(entry)))
        folders = {entry.name: contents_below(root, entry.name) for entry in visible(root) if is_folder(entry)}
    except OSError as error:
        raise ImageSetError(
            f"The image folder {for_terminal(root)} cannot be read: {error.strerror} ({for_terminal(error.filename)})."
        ) from error
    except RecursionError as error:
        raise ImageSetError(
            f"The image folder {for_terminal(root)} has folders too deep in one another. Name the folder that holds the images."
        ) from error
    classes = {name: contents.images for name, contents in sorted(folders.items()) if contents.images}
    others = [*other_names, *(name for contents in folders.values() for name in contents.others)]
    beside = next((root / name for name in LABEL_FILES if (root / name).is_file()), None)
    if labels_file is not None:
        nested = [image for contents in folders.values() for image in contents.images]
        listing = _from_labels_file(root, labels_file, sorted([*flat, *nested]))
    elif flat and beside is not None:
        listing = _from_labels_file(root, beside, flat)
    elif flat and classes:
        together = sorted([*flat, *(image for images in classes.values() for image in images)])
        remark = f"{for_terminal(root.name)} holds images beside folders of images, so folder names were not taken as classes"
        listing = FolderListing(tuple(together), None, (), (remark,))
    elif flat and are_validation_images(flat) and (official := list_beside(root)) is not None:
        listing = listing_of_official(_from_labels_file(root, official, flat, may_lack_images=True), root, official)
    elif flat:
        listing = FolderListing(tuple(flat), None, (), _left_out(other_names))
    elif classes:
        refuse_splits(root, classes)
        listing = listing_of_classes(classes, _left_out(name for name in others if "/" in name))
    else:
        raise ImageSetError(_no_images(root, others))
    if loops := [name for contents in folders.values() for name in contents.loops]:
        followed = f"{_counted(len(loops), 'link')} back to a folder that counts already, not followed: {_first(loops)}"
        listing = replace(listing, remarks=(*listing.remarks, followed))
    return listing if images_per_class is None else first_of_each_class(root, listing, images_per_class)


def _split_by_suffix(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide file names into those that end as images do, and the others."""
    images: list[str] = []
    others: list[str] = []
    for name in names:
        (images if has_image_suffix(name) else others).append(name)
    return images, others


def listing_of_classes(classes: dict[str, list[str]], remarks: tuple[str, ...] = ()) -> FolderListing:
    """Return the images of each class, class after class. classes: the ids of each."""
    ids: list[str] = []
    labels: list[int] = []
    for label, images in enumerate(classes.values()):
        ids += images
        labels += [label] * len(images)
    return FolderListing(tuple(ids), tuple(labels), tuple(classes), remarks)


def listing_of_official(listing: FolderListing, images: Path, labels_file: Path) -> FolderListing:
    """Return a listing that says where the classes of ImageNet's validation images were read, which nobody named."""
    remark = f"the classes of {for_terminal(images.name)} are those of {for_terminal(labels_file)}"
    return replace(listing, remarks=(*listing.remarks, remark))


def _from_labels_file(
    root: Path, labels_file: Path, flat: list[str], *, may_lack_images: bool = False
) -> FolderListing:
    """Read a label file; the order is that of the file names, whatever the order of the lines."""
    stems: dict[str, str] = {}
    for name in flat:
        stems.setdefault(Path(name).stem, name)

    def locate(name: str) -> str | None:
        return name if _is_file(root, name) else stems.get(name)

    pairs = labels_of_file(labels_file, root, flat, locate, may_lack_images=may_lack_images)
    return listing_of_labels(pairs, flat, labels_file)


def labels_of_file(
    labels_file: Path,
    root: Path,
    images: Sequence[str],
    locate: Callable[[str], str | None],
    *,
    may_lack_images: bool = False,
) -> dict[str, str]:
    """Return the class of each image that a file names: by pairs, or by a list with a line for each image of `root`.

    may_lack_images: as in `read_image_labels`.
    """
    in_order = read_label_list(labels_file)
    if in_order is not None:
        return in_order.of(images, root)
    return read_image_labels(labels_file, root, locate, may_lack_images=may_lack_images)


def listing_of_labels(pairs: dict[str, str], images: Sequence[str], labels_file: Path) -> FolderListing:
    """Return the images that `pairs`, read from `labels_file`, names a class for, in sorted order; a remark counts the others."""
    class_names = tuple(sorted(set(pairs.values())))
    index = {name: position for position, name in enumerate(class_names)}
    ids = sorted(pairs)
    unlabelled = [name for name in images if name not in pairs]
    remarks = (f"{len(unlabelled)} images are not in {labels_file.name} and were left out: {_first(unlabelled)}",)
    labels = tuple(index[pairs[name]] for name in ids)
    return FolderListing(tuple(ids), labels, class_names, remarks if unlabelled else (), "file")


def _is_file(root: Path, name: str) -> bool:
    """Say whether a regular file is there, links followed; a name that no file system takes is none."""
    return os.path.isfile(root / name)  # noqa: PTH113  Path.is_file raises OSError for names that are too long


def first_of_each_class(root: Path, listing: FolderListing, limit: int) -> FolderListing:
    """Return the first `limit` images of each class. Raises ImageSetError for a listing of `root` without classes."""
    if listing.labels is None:
        raise ImageSetError(
            f"{for_terminal(root)} has no classes, and this set takes {limit} of each class. Sort the images into a subfolder for "
            f"each class, or add {' or '.join(LABEL_FILES)} with one 'file,class' per line."
        )
    taken = [0] * len(listing.class_names)
    kept = []
    for position, label in enumerate(listing.labels):
        taken[label] += 1
        if taken[label] <= limit:
            kept.append(position)
    ids, labels = tuple(listing.ids[i] for i in kept), tuple(listing.labels[i] for i in kept)
    return replace(listing, ids=ids, labels=labels)


def refuse_splits(root: Path, classes: dict[str, list[str]]) -> None:
    """Tell train/ and val/ folders from classes: otherwise each split would count as a class."""
    if not set(map(str.lower, classes)) <= SPLIT_NAMES:
        return
    nested = any(image.count("/") > 1 for images in classes.values() for image in images)
    if nested or len(classes) > 1:
        names = list(classes)
        raise ImageSetError(
            f"{for_terminal(root)} holds the splits {_first(names)}, not classes. Name one of them: "
            f"{for_terminal(root / names[0])}."
        )


def _no_images(root: Path, others: list[str]) -> str:
    lacking = without_decoder(others)
    if lacking is not None:
        return f"{for_terminal(root)} holds no images that this machine can decode: {lacking}."
    return (
        f"{for_terminal(root)} holds no images. A set is a folder of images, or a folder with a subfolder of images for each "
        f"class; files count by their ending ({', '.join(sorted(image_suffixes()))})."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun} leads" if count == 1 else f"{count} {noun}s lead"


def _left_out(names: Iterable[str]) -> tuple[str, ...]:
    others = list(names)
    if not others:
        return ()
    if lacking := without_decoder(others):
        return (f"{lacking}. They were left out",)
    return (f"{len(others)} files do not end as images do and were left out: {_first(others)}",)


def _first(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(map(for_terminal, names[:_NAMED])) + (f" and {more} more" if more > 0 else "")
