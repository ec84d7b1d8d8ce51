"""Networks that answer for images: the float one of a checkpoint, an artifact in its runtime, a simulation."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeconvnext.data.images import BrokenImage, open_image, to_rgb
from edgeconvnext.data.in_memory import prepared, resolve_images
from edgeconvnext.data.loader import images_at_once
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.data.raster_formats import has_image_suffix
from edgeconvnext.errors import ImageSetError, ModelConfigError
from edgeconvnext.escape import for_terminal
from edgeconvnext.evaluation.runner import Outputs, Runner
from edgeconvnext.prediction.classes import Prediction, prediction
from edgeconvnext.progress import progress_bar
from edgeconvnext.received import user_path

_GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Answering:
    """A network with what it takes to ask it. title: "FP32" or "INT8". labels: names of its classes, None where they have none.

    names: of its outputs. prepares: False where it is not known how photographs are prepared for it. independent: each class is a
    decision of its own (multi-label).
    """

    title: str
    runner: Runner
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    names: tuple[str, ...] = ("logits",)
    prepares: bool = True
    independent: bool = False


@dataclass(frozen=True)
class Answer:
    """What networks answer for one image. by_network: a prediction for each, by its title."""

    image: str
    by_network: dict[str, Prediction]


@dataclass(frozen=True)
class Answers:
    """All answers, and the images that could not be read, each with the reason."""

    images: list[Answer]
    skipped: dict[str, str]


def ask(networks: Sequence[Answering], source: Any) -> Answers:
    """Ask every network for the images of `source`; each image is read once.

    source: a file, a folder, a pattern such as photos/*.jpg, a set's name, a picture (Pillow), prepared tensors (C, H, W) or
    (N, C, H, W), or a list of these. Networks share their preprocessing. An image that cannot be read is left out where others
    can; raises ImageSetError where none can, ModelConfigError for networks without classes.
    """
    first = networks[0]
    for network in networks:
        if network.names != ("logits",):
            raise ModelConfigError(
                f"{network.runner.name} gives {', '.join(network.names)}, which are no classes. Its outputs method returns them."
            )
    skipped: dict[str, str] = {}
    answers: list[Answer] = []
    places = list(_places(source))
    with progress_bar("Predicting", len(places)) as advance:
        for names, images in _batches(places, first, skipped, advance):
            logits = {network.title: network.runner(images) for network in networks}
            for row, name in enumerate(names):
                by_network = {
                    network.title: prediction(
                        name, logits[network.title][row], network.labels, independent=network.independent
                    )
                    for network in networks
                }
                answers.append(Answer(name, by_network))
    if not answers:
        listed = "; ".join(f"{for_terminal(name)} ({reason})" for name, reason in list(skipped.items())[:5])
        raise ImageSetError(f"None of the images could be read: {listed}.")
    return Answers(answers, skipped)


def outputs_of(network: Answering, source: Any) -> Outputs:
    """Return all outputs of a network for the images of `source`, (N, ...) each; raises ImageSetError for one that is broken."""
    skipped: dict[str, str] = {}
    pieces = [
        network.runner.outputs(images)
        for _, images in _batches(list(_places(source)), network, skipped, lambda count: None)
    ]
    if skipped:
        raise ImageSetError(
            "; ".join(f"{for_terminal(name)} cannot be read: {reason}" for name, reason in skipped.items())
        )
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))


@dataclass(frozen=True)
class _Place:
    """An image that is not decoded yet: a file, a picture, or values that are prepared, float32 (C, H, W)."""

    name: str
    image: Path | Image.Image | np.ndarray


def _places(source: Any) -> Iterator[_Place]:
    if isinstance(source, str | Path):
        yield from _files(source)
    elif isinstance(source, Image.Image):
        yield _Place("image in memory", source)
    elif isinstance(source, list | tuple):
        for number, one in enumerate(source):
            for place in _places(one):
                in_memory = not isinstance(place.image, Path) and len(source) > 1
                yield _Place(f"image {number} in memory", place.image) if in_memory else place
    else:
        if hasattr(source, "ndim") and source.ndim == 3:
            source = source[None]
        images = resolve_images(source)
        reader = prepared(images)
        for image_id in images.ids:
            image = images.reader.read(image_id) if reader is None else reader.values(image_id).transpose(2, 0, 1)
            yield _Place(image_id, image)


def _files(source: str | Path) -> Iterator[_Place]:
    """Yield the files of a path, a pattern, or a set's name."""
    path = user_path(source, ImageSetError)
    if path.is_file():
        yield _Place(str(source), path)
        return
    if _GLOB & set(str(source)) and not path.exists():
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - the pattern may be absolute
        files = [match for match in matches if match.is_file()]
        if not files:
            raise ImageSetError(f"No file matches {for_terminal(source)}.")
        yield from (_Place(str(file), file) for file in files)
        return
    if has_image_suffix(path.name) and not path.exists():
        raise ImageSetError(f"There is no image {for_terminal(source)}.")
    images = resolve_images(source)
    for index, image_id in enumerate(images.ids):
        root = getattr(images.reader, "root", None)
        if isinstance(root, Path):
            yield _Place(str(Path(source) / image_id), root / image_id)
        else:
            yield _Place(image_id, images.read(index))


def _batches(
    places: Sequence[_Place], network: Answering, skipped: dict[str, str], advance: Any
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield names and prepared images, (N, C, H, W), as many at once as memory likes. skipped: gets what could not be read."""
    at_once = images_at_once(network.preprocess.input_size)
    names: list[str] = []
    images: list[np.ndarray] = []
    for number, place in enumerate(places, start=1):
        try:
            images.append(_prepared(place, network))
            names.append(place.name)
        except BrokenImage as error:
            skipped[place.name] = str(error)
        if names and (len(names) == at_once or number == len(places)):
            yield names, np.ascontiguousarray(np.stack(images))
            names, images = [], []
        advance(1)
    if names:
        yield names, np.ascontiguousarray(np.stack(images))


def _prepared(place: _Place, network: Answering) -> np.ndarray:
    """Return one image as the network takes it, float32 (C, H, W)."""
    preprocess = network.preprocess
    if isinstance(place.image, np.ndarray):
        shape = (preprocess.in_channels, *preprocess.input_size)
        if place.image.shape != shape:
            raise ImageSetError(
                f"Prepared images for {network.runner.name} have the shape {shape} (channels, height, width); {place.name} has "
                f"{place.image.shape}."
            )
        return place.image.astype(np.float32, copy=False)
    if not network.prepares:
        raise ImageSetError(
            f"How photographs are prepared for {network.runner.name} is not known: it was made with tensors that nobody said the "
            "mean and std of. Quantise again with mean and std, or give prepared tensors."
        )
    picture = open_image(place.image) if isinstance(place.image, Path) else to_rgb(place.image)
    return preprocess.apply(picture)
