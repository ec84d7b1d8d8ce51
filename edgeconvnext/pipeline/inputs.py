"""The model and the images of a request, where a program holds them: read, recognised, and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeconvnext.backends.metadata import UNKNOWN_NORMALIZATION
from edgeconvnext.choices import Head, Interpolation
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.in_memory import IN_MEMORY, prepared, resolve_images
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.loader import batches
from edgeconvnext.data.prepared import PreparedReader, recognised_normalization
from edgeconvnext.data.size import Size
from edgeconvnext.data.subset import spread
from edgeconvnext.errors import ImageSetError, OptionError
from edgeconvnext.model.agreement import IMAGES, check_agreement
from edgeconvnext.model.heads import with_head
from edgeconvnext.model.in_memory import model_of, needs_agreement
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.progress import announce
from edgeconvnext.schema.format import error as error_text

# So many images show whether values are 8-bit levels.
_LOOKED_AT = 8


@dataclass(frozen=True)
class Inputs:
    """A model and its images. calibration, evaluation: None where none were named."""

    model: LoadedModel
    calibration: ImageSet | None
    evaluation: ImageSet | None
    notes: tuple[str, ...] = ()


def in_memory(value: Any) -> bool:
    """Say whether a model or images are an object of the program, and not a path or a name."""
    return value is not None and not isinstance(value, str | Path)


def read_set(value: Any, most: int | None = None, *, skip_broken: bool = False) -> ImageSet | None:
    """Return an image set of what a request names, None where it names nothing. The others are as `resolve_images` takes them."""
    return None if value is None else resolve_images(value, most, skip_broken=skip_broken)


def read_inputs(
    model: Any,
    calibration: ImageSet | None,
    evaluation: ImageSet | None,
    *,
    head: Head,
    weights_from: str | None,
    resolution: int | Size | None,
    crop_pct: float | None,
    interpolation: Interpolation | None,
    mean: Any,
    std: Any,
) -> Inputs:
    """Load a model and fit prepared images to it.

    Tensors in memory give the input size. Their mean and std are what the user says, else what the model says, else what the
    values themselves show. A module is compared with the network made of its tensors, on calibration images. Raises
    CheckpointError, ModelConfigError and ImageSetError.
    """
    readers = [reader for images in (calibration, evaluation) if images and (reader := prepared(images))]
    reader = readers[0] if readers else None
    defaults: dict[str, Any] = {}
    seen = None if reader is None or reader.mean is not None else recognised_normalization(_few(reader))
    if reader is not None:
        resolution = resolution or reader.size
        if reader.mean is None:
            nothing = ((0.0,) * reader.channels, (1.0,) * reader.channels)
            defaults = dict(zip(("mean", "std"), seen or nothing, strict=True))
    loaded = model_of(
        model,
        head=head,
        whole=needs_agreement(model),  # a module is compared with all that it has
        weights_from=weights_from,
        resolution=resolution,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=mean,
        std=std,
        defaults=defaults,
    )
    for given in readers:
        _check_shape(given, loaded)
    notes = _normalization_notes(reader, seen, loaded, said=mean is not None or std is not None)
    calibration, evaluation = (fitted(images, loaded) for images in (calibration, evaluation))
    loaded, named = _with_class_names(loaded, calibration, evaluation)
    notes += named
    if needs_agreement(model):
        if calibration is None:
            raise ImageSetError("A module in memory is checked on calibration images. Give them with calib.")
        notes.append(_agreement_note(model, loaded, calibration))
    return Inputs(with_head(loaded, head) if needs_agreement(model) else loaded, calibration, evaluation, tuple(notes))


def read_network(
    model: Any,
    calib: Any,
    most: int | None,
    *,
    weights_from: str | None,
    resolution: int | Size | None = None,
    skip_broken: bool = False,
) -> tuple[LoadedModel, ImageSet]:
    """Return the model and the images that a command without a run works on, each as `quantize` takes it.

    most: how many images are read of what a program holds; None reads all. What is taken for granted about objects in memory is
    announced, and is in the model's notes. Raises OptionError where weights of an object in memory are to be chosen from, and what
    `read_inputs` raises.
    """
    if in_memory(model) and weights_from is not None:
        raise OptionError(
            lambda spelled: f"{spelled('weights_from')} chooses weights of a file, and the model is loaded already."
        )
    inputs = read_inputs(
        model,
        resolve_images(calib, most, skip_broken=skip_broken),
        None,
        head="classifier",
        weights_from=weights_from,
        resolution=resolution,
        crop_pct=None,
        interpolation=None,
        mean=None,
        std=None,
    )
    for note in inputs.notes:
        announce(note)
    assert inputs.calibration is not None
    notes = tuple(dict.fromkeys((*inputs.model.notes, *inputs.notes)))
    return replace(inputs.model, notes=notes), inputs.calibration


def normalization_unknown(model: LoadedModel) -> bool:
    """Say whether a model's images came as tensors that nobody said the mean and std of."""
    return UNKNOWN_NORMALIZATION in model.notes


def _few(reader: PreparedReader) -> np.ndarray:
    return np.array(reader.rows[spread(len(reader.rows), min(_LOOKED_AT, len(reader.rows)))])


def _check_shape(reader: PreparedReader, model: LoadedModel) -> None:
    if reader.channels != model.config.in_channels:
        raise ImageSetError(
            f"The images in memory have {reader.channels} channels, and {model.name} takes {model.config.in_channels}."
        )


def _normalization_notes(
    reader: PreparedReader | None, seen: tuple[Any, Any] | None, model: LoadedModel, *, said: bool
) -> list[str]:
    """Say what is taken for the mean and std of prepared images, and why."""
    if reader is None or reader.mean is not None or said:
        return []
    own = (model.preprocess.mean, model.preprocess.std)
    shown = f"mean {_numbers(own[0])} and std {_numbers(own[1])}"
    if seen is None:
        nothing = own == ((0.0,) * reader.channels, (1.0,) * reader.channels)
        return (
            [UNKNOWN_NORMALIZATION]
            if nothing
            else [f"The images in memory are taken as normalised by the model's own {shown}."]
        )
    if np.allclose(own, seen, atol=1e-6):
        return [f"The images in memory were normalised by {shown}: under these their values are 8-bit levels."]
    return [
        f"The model says {shown}, and the values of the images in memory are 8-bit levels under mean {_numbers(seen[0])} and std "
        f"{_numbers(seen[1])}. One of them is wrong; give mean and std."
    ]


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def fitted(images: ImageSet | None, model: LoadedModel) -> ImageSet | None:
    """Return prepared images that say by which mean and std they were normalised: the model's, where nobody said it."""
    reader = None if images is None else prepared(images)
    if images is None or reader is None or reader.mean is not None:
        return images
    return replace(images, reader=reader.normalized_by(model.preprocess.mean, model.preprocess.std))


def _with_class_names(
    model: LoadedModel, calibration: ImageSet | None, evaluation: ImageSet | None
) -> tuple[LoadedModel, list[str]]:
    """Give a model without class names those of a data set in memory with as many classes, in its order."""
    for images in (evaluation, calibration):
        if images is None or not images.name.endswith(IN_MEMORY) or model.labels is not None:
            continue
        if images.classes_from == "folders" and len(images.class_names) == model.config.num_classes:
            labels = Labels(images.class_names, images.class_names)
            return replace(model, labels=labels), [f"The classes are named as in {images.name}, in its order."]
    return model, []


def _agreement_note(module: torch.nn.Module, model: LoadedModel, calibration: ImageSet) -> str:
    indices = spread(len(calibration), min(IMAGES, len(calibration)))
    stream = batches(calibration, model.preprocess, indices=indices, description="Comparing with the module")
    agreement = check_agreement(module, model, torch.cat([batch.images for batch in stream]))
    own_end = " What the module makes of its stages' outputs is not part of the network." if agreement.by_parts else ""
    return (
        f"The module was recognised by its tensors ({model.layout} layout). On {agreement.images} images its own forward and the "
        f"network made of them agree within {error_text(agreement.error)} (float32 explains {error_text(agreement.tolerance)})."
        f"{own_end}"
    )
