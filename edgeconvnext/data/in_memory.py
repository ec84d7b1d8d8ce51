"""Images that a program holds: arrays, tensors, lists of paths, loaders and data sets become an image set."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeconvnext.data.image_set import FolderReader, ImageSet
from edgeconvnext.data.images import open_image, to_rgb
from edgeconvnext.data.prepared import PreparedReader, numbered_ids, position_of, prepared_array, prepared_spool
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.data.several_classes import SEPARATOR
from edgeconvnext.data.spool import Spool
from edgeconvnext.data.subset import spread
from edgeconvnext.errors import ImageSetError

IN_MEMORY = " in memory"
"""How the name of a set ends that a program holds: a run cannot look it up again."""
_IMAGE_KEYS = ("pixel_values", "image", "images", "img", "input", "inputs", "x")
_LABEL_KEYS = ("labels", "label", "target", "targets", "y")
_COLOURS = (1, 3)
_TAKEN = (
    "Give a set's name, a folder, a list of paths, an array or tensor (N, C, H, W), or an iterable of batches, such as a "
    "DataLoader."
)


@dataclass(frozen=True)
class Example:
    """One image with what was said of its class. image: float32 (C, H, W), a picture, or a path. pixels: of 0..255, as 0..1."""

    image: np.ndarray | Image.Image | Path
    label: Any = None
    pixels: bool = False


def resolve_images(
    source: Any, most: int | None = None, *, labels: Path | str | None = None, skip_broken: bool = False
) -> ImageSet:
    """Return the image set of a name, a folder, or of images that a program holds.

    source: a set or its name; a list of paths; an array or tensor (N, C, H, W), alone or in a pair with labels; a DataLoader, a
    data set or any other iterable of images or batches, with labels or without. Tensors are prepared already. uint8 tensors are
    pixels, resized and cropped already. Pictures (Pillow) and paths are prepared as photographs of a folder are.
    most: how many images are read of what a program holds; None reads all. They are spread evenly over what has a length, and the
    first ones of what has none. labels, skip_broken: as in `resolve_image_set`.

    Labels that are whole numbers are the model's outputs. Rows of 0 and 1 say for each output whether an image has it.
    Raises ImageSetError for what holds no images.
    """
    if isinstance(source, ImageSet):
        return source
    if isinstance(source, str | Path):
        return resolve_image_set(source, labels=labels, skip_broken=skip_broken)
    if labels is not None:
        raise ImageSetError(
            "A label file belongs to a set or folder; give images in memory together with their labels."
        )
    return replace(_held_images(source, most), skip_broken=skip_broken)


def _held_images(source: Any, most: int | None) -> ImageSet:
    """Return the set of what a program holds."""
    if _is_array(source):
        return _array_set(_array(source), None, most)
    if isinstance(source, tuple | list) and len(source) == 2 and _is_array(source[0]) and source[0].ndim == 4:
        return _array_set(_array(source[0]), _array(source[1]), most)
    class_names = _class_names(source)
    examples = itertools.islice(_examples(source, most), most)
    first = next(examples, None)
    if first is None:
        raise ImageSetError(f"The {type(source).__name__} given as images holds none. {_TAKEN}")
    every = itertools.chain([first], examples)
    if isinstance(first.image, Path):
        return _files_set(list(every), class_names)
    return _spooled(every, class_names, type(source).__name__)


def prepared(images: ImageSet) -> PreparedReader | None:
    """Return what reads a set of prepared images; None for photographs."""
    return images.reader if isinstance(images.reader, PreparedReader) else None


def classes_are_outputs(images: ImageSet) -> bool:
    """Say whether the classes of a set are the model's outputs by their numbers: they came as numbers, without names."""
    return images.labels is not None and not images.class_names


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (hasattr(value, "detach") and hasattr(value, "dtype"))


def _array(value: Any) -> np.ndarray:
    """Return an array, tensor or list as an array; 16-bit floats as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)


def _array_set(array: np.ndarray, labels: np.ndarray | None, most: int | None) -> ImageSet:
    if array.ndim != 4 or not len(array):
        raise ImageSetError(f"Images in an array have the shape (N, C, H, W); this one has {array.shape}. {_TAKEN}")
    if labels is not None and len(labels) != len(array):
        raise ImageSetError(f"There are {len(array)} images and {len(labels)} labels.")
    values = None if labels is None else [_label(label) for label in labels]
    if most is not None and most < len(array):
        rows = spread(len(array), most, None)
        array, values = array[rows], None if values is None else [values[row] for row in rows]
    images, pixels = _floats(array)
    for number, image in enumerate(images):
        _refuse_not_finite(image, number)
    reader = prepared_array(np.ascontiguousarray(images))
    return _prepared_set(reader, values, (), "array", pixels)


def _floats(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return images (..., C, H, W) as float32, and whether they were pixels of 0..255, which become 0..1."""
    if array.dtype.kind in "ui":
        channels_last = array.shape[-1] in _COLOURS and array.shape[-3] not in _COLOURS
        array = np.moveaxis(array, -1, -3) if channels_last else array
        if array.min() < 0 or array.max() > 255:
            raise ImageSetError(
                f"Whole numbers of pixels go from 0 to 255; these go from {array.min()} to {array.max()}."
            )
        return array.astype(np.float32) / np.float32(255), True
    if array.dtype.kind != "f":
        raise ImageSetError(f"Images are numbers; these are {array.dtype}. {_TAKEN}")
    if array.shape[-1] in _COLOURS and array.shape[-3] not in _COLOURS:
        raise ImageSetError(
            f"Prepared images have the shape (N, C, H, W); this looks like (N, H, W, C), {array.shape}. Move the channels first, "
            "as in images.transpose(0, 3, 1, 2)."
        )
    return array.astype(np.float32, copy=False), False


def _spooled(examples: Iterable[Example], class_names: tuple[str, ...], kind: str) -> ImageSet:
    """Write examples to disk, one at a time; they are all prepared tensors, all pixels or all pictures."""
    spool = Spool()
    labels: list[Any] = []
    first: Example | None = None
    for example in examples:
        first = first or example
        if (type(example.image), example.pixels) != (type(first.image), first.pixels):
            raise ImageSetError(
                f"The {kind} gives prepared tensors, pixels, pictures or paths by turns. Give one kind."
            )
        image = np.asarray(example.image)
        if isinstance(first.image, np.ndarray) and spool.shapes and image.shape != spool.shapes[0]:
            raise ImageSetError(
                f"Image {len(spool)} of the {kind} has the shape {image.shape}, and the first one {spool.shapes[0]} (channels, "
                "height, width). Give images of one size."
            )
        _refuse_not_finite(image, len(spool))
        spool.append(image)
        labels.append(example.label)
    assert first is not None
    if isinstance(first.image, np.ndarray):
        return _prepared_set(prepared_spool(spool), labels, class_names, kind, first.pixels)
    return _with_labels(
        ImageSet(f"{kind}{IN_MEMORY}", numbered_ids(spool.hashes), PicturesReader(spool)), labels, class_names
    )


def _refuse_not_finite(image: np.ndarray, number: int) -> None:
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ImageSetError(f"Image {number} of those in memory holds NaN or infinite values. Prepare it again.")


def _prepared_set(
    reader: PreparedReader, labels: Sequence[Any] | None, class_names: tuple[str, ...], kind: str, pixels: bool
) -> ImageSet:
    if pixels:
        reader = reader.normalized_by((0.0,) * reader.channels, (1.0,) * reader.channels)
    return _with_labels(ImageSet(f"{kind}{IN_MEMORY}", numbered_ids(reader.hashes), reader), labels, class_names)


def _with_labels(images: ImageSet, labels: Sequence[Any] | None, class_names: tuple[str, ...]) -> ImageSet:
    """Return the set with its labels, where all images have one that is a class."""
    if labels is None or all(label is None for label in labels):
        return images
    if (rows := _decision_rows(labels)) is not None:
        names = class_names if len(class_names) == rows.shape[1] else tuple(map(str, range(rows.shape[1])))
        texts = [SEPARATOR.join(names[column] for column in np.flatnonzero(row)) for row in rows]
        index = {text: position for position, text in enumerate(sorted(set(texts)))}
        return replace(
            images, labels=tuple(index[text] for text in texts), class_names=tuple(index), classes_from="file"
        )
    if not all(isinstance(label, int) and label >= 0 for label in labels):
        remark = f"The labels of {images.name} are not whole numbers from 0 on, one an image; they are not used."
        return replace(images, remarks=(*images.remarks, remark))
    if class_names and max(labels) >= len(class_names):
        class_names = ()
    return replace(images, labels=tuple(labels), class_names=class_names)


def _decision_rows(labels: Sequence[Any]) -> np.ndarray | None:
    """Return labels of 0 and 1 for each class, (N, classes); None where they are anything else."""
    if not all(_is_array(label) and label.ndim == 1 and len(label) > 1 for label in labels):
        return None
    rows = [_array(label) for label in labels]
    if len({len(row) for row in rows}) > 1 or not all(np.isin(row, (0, 1)).all() for row in rows):
        return None
    return np.stack(rows)


@dataclass(frozen=True)
class FilesReader:
    """Images in files that were named one by one; ids are their paths."""

    in_memory: bool = False

    def read(self, image_id: str, shorter_side: int | None = None) -> Image.Image:
        return open_image(Path(image_id), shorter_side)

    def stamp(self, image_id: str) -> str:
        return FolderReader(Path()).stamp(image_id)


def _files_set(examples: list[Example], class_names: tuple[str, ...]) -> ImageSet:
    paths = [example.image for example in examples]
    if not all(isinstance(path, Path) for path in paths):
        raise ImageSetError("The list gives paths and images by turns. Give one kind.")
    missing = next((path for path in paths if isinstance(path, Path) and not path.is_file()), None)
    if missing is not None:
        raise ImageSetError(f"The list of images names {missing}, and there is no such file.")
    ids = tuple(str(path.absolute()) for path in paths if isinstance(path, Path))
    images = ImageSet(f"list of files{IN_MEMORY}", ids, FilesReader())
    return _with_labels(images, [example.label for example in examples], class_names)


@dataclass(frozen=True)
class PicturesReader:
    """Pictures as 8-bit RGB in a temporary file, prepared as files are; ids are position and the beginning of the hash."""

    pixels: Spool
    in_memory: bool = True

    def read(self, image_id: str, shorter_side: int | None = None) -> Image.Image:
        return Image.fromarray(np.array(self.pixels.array(position_of(image_id), np.uint8)))

    def stamp(self, image_id: str) -> str:
        return self.pixels.hashes[position_of(image_id)]


def _class_names(source: Any) -> tuple[str, ...]:
    """Return the names of the classes that a data set carries: `classes` of torchvision's, `features` of the hub's."""
    for holder in (source, getattr(source, "dataset", None)):
        features = getattr(holder, "features", None)
        feature = next((features[key] for key in _LABEL_KEYS if key in features), None) if features else None
        names = getattr(feature, "names", None) or getattr(holder, "classes", None)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()


def _examples(source: Any, most: int | None) -> Iterator[Example]:
    """Yield the examples of an iterable, spread evenly over it where it has a length."""
    try:
        iterable = _spread_over(source, most)
        batches = iter(iterable)
    except TypeError as error:
        raise ImageSetError(f"Images cannot be read from a {type(source).__name__}. {_TAKEN}") from error
    for batch in batches:
        yield from _examples_of(batch)


def _spread_over(source: Any, most: int | None) -> Iterable[Any]:
    """Return the items to read: of a loader in plain or shuffled order, and of a data set, in order and spread evenly."""
    from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

    if isinstance(source, DataLoader):
        plain = isinstance(source.sampler, SequentialSampler | RandomSampler) and source.batch_size is not None
        if not plain or not hasattr(source.dataset, "__len__"):
            return source
        return DataLoader(
            Subset(source.dataset, _rows(len(source.dataset), most)),
            source.batch_size,
            collate_fn=source.collate_fn,
            num_workers=source.num_workers,
            generator=source.generator,
        )
    if isinstance(source, Mapping):
        return [source]
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return (source[row] for row in _rows(len(source), most))
    return iter(source)  # type: ignore[no-any-return]


def _rows(count: int, most: int | None) -> list[int]:
    """Return the positions to read of `count`, at most `most`, in order: a shuffled loader gives the same images each time."""
    return list(range(count)) if most is None or most >= count else spread(count, most, None)


def _examples_of(item: Any) -> Iterator[Example]:
    """Yield the images of one item: a batch, an example, or either with labels, as a pair or by name."""
    images, labels = item, None
    if isinstance(item, Mapping):
        key = next((key for key in _IMAGE_KEYS if key in item), None)
        if key is None:
            names = ", ".join(map(str, list(item)[:8]))
            raise ImageSetError(
                f"The images in memory come as mappings with {names}; images go by one of {', '.join(_IMAGE_KEYS)}."
            )
        label_key = next((key for key in _LABEL_KEYS if key in item), None)
        images, labels = item[key], None if label_key is None else item[label_key]
    elif isinstance(item, tuple | list) and item and _is_pair(item):
        images, labels = item[0], item[1]
    if isinstance(images, str | Path | Image.Image) or (_is_array(images) and images.ndim == 3):
        yield _example(images, labels)
    elif _is_array(images) and images.ndim == 4:
        for row, image in enumerate(images):
            yield _example(image, None if labels is None else labels[row])
    elif isinstance(images, tuple | list):
        for row, image in enumerate(images):
            if labels is None:
                yield from _examples_of(image)
            else:
                yield _example(image, labels[row])
    else:
        shape = f" of shape {tuple(images.shape)}" if _is_array(images) else ""
        raise ImageSetError(f"The images in memory come as {type(images).__name__}{shape}, which is no image. {_TAKEN}")


def _is_pair(item: Sequence[Any]) -> bool:
    """Say whether a pair is images and labels, and not two images."""
    if len(item) < 2:
        return False
    first, second = item[0], item[1]
    if _is_array(first):
        return not (_is_array(second) and second.ndim == first.ndim and first.ndim in (3, 4))
    if isinstance(first, str | Path | Image.Image):
        return not isinstance(second, str | Path | Image.Image)
    return isinstance(first, list | tuple) and not isinstance(second, str | Path | Image.Image | Mapping)


def _example(image: Any, label: Any) -> Example:
    label = None if label is None else _label(label)
    if isinstance(image, Image.Image):
        return Example(to_rgb(image), label)
    if isinstance(image, str | Path):
        return Example(Path(image).expanduser(), label)
    if not _is_array(image) or image.ndim != 3:
        raise ImageSetError(f"The images in memory hold a {type(image).__name__}, which is no image. {_TAKEN}")
    values, pixels = _floats(_array(image))
    return Example(values, label, pixels)


def _label(label: Any) -> Any:
    """Return a class as a number where it is one."""
    if getattr(label, "ndim", None) == 0:
        label = label.item()
    return int(label) if isinstance(label, int) and not isinstance(label, bool) else label
