"""Preprocessing and label names from the JSON files that travel with weights: timm's, transformers' and our own.

The architecture never comes from here, except for what no tensor shows: the epsilon of norms and the activation.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeconvnext.choices import CropOffset, Interpolation
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.size import LARGEST_SIDE, size_text
from edgeconvnext.errors import CheckpointError, ConfigFileError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import MIB, parse_json, read_bytes, reason

if TYPE_CHECKING:
    from edgeconvnext.model.loaded import LoadedModel

Values = dict[str, Any]
Schema = TypeVar("Schema", bound=BaseModel)
# A side in pixels. ImageNet-22k's config.json, with descriptions of all classes, has 2 MiB.
Positive = Annotated[int, Field(gt=0, le=LARGEST_SIDE * 16)]
_Side = Annotated[int, Field(ge=-LARGEST_SIDE, le=LARGEST_SIDE * 16)]
"""As written; what is no size at all is refused as any other input size is."""
MOST_CONFIG_BYTES = 16 * MIB
_SHOWN = 80
"""Characters of a value that a message repeats."""

# Activations no tensor shows, of timm models that are otherwise read without complaint.
_OTHER_ACTIVATIONS = {"test_convnext": "gelu_tanh", "test_convnext2": "gelu_tanh", "test_convnext3": "silu"}
_PILLOW_FILTERS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# Processors of transformers for which one number is height and width, not the shorter side.
_SQUARE_BY_ONE_NUMBER = ("ViT", "DeiT", "Beit", "DINOv3ViT", "Siglip")
# Steps that are followed, and those that change nothing on 8-bit colour images and their classes.
_KNOWN_STEPS = frozenset(
    {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels"}
)
_WARP_FROM = 384
"""transformers' ConvNeXt processor squashes images to this size and above instead of cropping."""


@dataclass(frozen=True)
class PretrainedConfig:
    """What a JSON says.

    preprocess: fields of Preprocess that were given, by name. in_channels: a claim to check against the tensors.
    norm_eps: of all norms; head_norm_eps: of the last one only. not_followed: what it says of the preprocessing and this package
    does not do, as in "preprocessor_config.json, do_pad true".
    """

    preprocess: Values
    labels: Labels | None = None
    in_channels: int | None = None
    norm_eps: float | None = None
    head_norm_eps: float | None = None
    not_followed: tuple[str, ...] = ()


class _Json(BaseModel):
    """Base of the schemas: keys of others are ignored, values are not coerced."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class _TimmPreprocessing(_Json):
    input_size: tuple[_Side, _Side, _Side] | None = None
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    crop_mode: Literal["center", "squash"] | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    test_input_size: tuple[_Side, _Side, _Side] | None = None
    test_crop_pct: float | None = Field(default=None, gt=0, le=1)
    label_names: tuple[str, ...] | None = None
    label_descriptions: dict[str, str] | tuple[str, ...] | None = None


class _TimmArguments(_Json):
    act_layer: str = "gelu"
    norm_eps: float | None = Field(default=None, gt=0)


class _TimmConfig(_Json):
    architecture: str | None = None
    pretrained_cfg: _TimmPreprocessing | None = None
    model_args: _TimmArguments = _TimmArguments()
    crop_offset: CropOffset | None = None
    label_names: tuple[str, ...] | None = None
    label_descriptions: dict[str, str] | tuple[str, ...] | None = None


class _TransformersConfig(_Json):
    id2label: dict[int, str] | None = None
    hidden_act: str = "gelu"
    layer_norm_eps: float = Field(default=1e-12, gt=0)


class _Size(_Json):
    shortest_edge: Positive | None = None
    height: Positive | None = None
    width: Positive | None = None


class _Preprocessor(_Json):
    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: bool = True
    do_center_crop: bool | None = None
    do_rescale: bool = True
    do_normalize: bool = True
    size: Positive | _Size | None = None
    crop_size: Positive | _Size | None = None
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    resample: int | None = None
    rescale_factor: float = Field(default=1 / 255, gt=0)
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None


def read_config(config: Path, preprocessor: Path | None = None) -> PretrainedConfig:
    """Read a timm `config.json` (or a JSON with its fields) or a transformers `config.json` with its preprocessor file.

    Raises ConfigFileError for JSON that is malformed or mistyped, CheckpointError for a variant that is not supported.
    """
    return config_of(_read_json(config), config, preprocessor)


def config_of(document: Values, source: Path, preprocessor: Path | None = None) -> PretrainedConfig:
    """Return what a document with timm's or transformers' fields says. source: what errors call it. Raises as `read_config`."""
    if "model_type" in document and "pretrained_cfg" not in document and "architecture" not in document:
        return _read_transformers(document, source, preprocessor)
    pretrained = _read_timm(document, source)
    if preprocessor is None:
        return pretrained
    unread = f"{preprocessor.name}, since {source.name} is timm's and says how images are prepared"
    return replace(pretrained, not_followed=(*pretrained.not_followed, unread))


def to_timm_config(model: LoadedModel) -> Values:
    """Describe a model's preprocessing and labels in timm's field names.

    timm has no field for the offset of a crop and refuses others in pretrained_cfg, so it stands beside that.
    """
    preprocess = model.preprocess
    fields: Values = {
        "input_size": [preprocess.in_channels, *preprocess.input_size],
        "crop_pct": preprocess.crop_pct,
        "crop_mode": preprocess.crop_mode,
        "interpolation": preprocess.interpolation,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }
    if model.labels:
        fields["label_names"] = list(model.labels.names)
        if len(set(model.labels.names)) == len(model.labels):
            fields["label_descriptions"] = dict(zip(model.labels.names, model.labels.descriptions, strict=True))
        else:  # a mapping would lose classes that share a name (ImageNet has two cranes)
            fields["label_descriptions"] = list(model.labels.descriptions)
    described: Values = {"architecture": model.name, "num_classes": model.config.num_classes, "pretrained_cfg": fields}
    return described if preprocess.crop_offset == "nearest" else described | {"crop_offset": preprocess.crop_offset}


def _read_timm(document: Values, path: Path) -> PretrainedConfig:
    config = _parse(_TimmConfig, document, path)
    if config.architecture in _OTHER_ACTIVATIONS or config.model_args.act_layer != "gelu":
        activation = _OTHER_ACTIVATIONS.get(
            config.architecture or "", for_terminal(config.model_args.act_layer)[:_SHOWN]
        )
        raise CheckpointError(f"{path} describes a ConvNeXt with {activation} activations; only GELU is supported.")
    # Before 2023 timm wrote these fields at the top level.
    fields = config.pretrained_cfg or _parse(_TimmPreprocessing, document, path)
    given: Values = {
        "crop_pct": fields.crop_pct,
        "crop_mode": fields.crop_mode,
        "interpolation": fields.interpolation,
        "mean": fields.mean,
        "std": fields.std,
        "crop_offset": config.crop_offset,
    }
    if fields.input_size:
        given["input_size"] = fields.input_size[1:]
    return PretrainedConfig(
        preprocess={name: value for name, value in given.items() if value is not None},
        labels=_timm_labels(
            config.label_names or fields.label_names, config.label_descriptions or fields.label_descriptions, path
        ),
        in_channels=fields.input_size[0] if fields.input_size else None,
        norm_eps=config.model_args.norm_eps,
        not_followed=_test_settings(fields, path),
    )


def _test_settings(fields: _TimmPreprocessing, path: Path) -> tuple[str, ...]:
    """Name the settings that timm's validation script takes in place of those of its models; here the models' are."""
    size = fields.test_input_size and size_text(fields.test_input_size[1:])
    named = {"test_input_size": size, "test_crop_pct": fields.test_crop_pct}
    flags = {"test_input_size": "--resolution", "test_crop_pct": "--crop-pct"}
    given = {key: value for key, value in named.items() if value is not None}
    if not given:
        return ()
    way = " ".join(f"{flags[key]} {value}" for key, value in given.items())
    return (f"{path.name}, {' and '.join(f'{key} {value}' for key, value in given.items())} (take them with {way})",)


def _timm_labels(
    names: tuple[str, ...] | None, descriptions: dict[str, str] | tuple[str, ...] | None, path: Path
) -> Labels | None:
    if not names:
        return None
    if not descriptions:
        return Labels(names, names)
    if isinstance(descriptions, dict):
        return Labels(names, tuple(descriptions.get(name, name) for name in names))
    if len(descriptions) != len(names):
        raise ConfigFileError(
            f"{path} has {len(names)} label_names and {len(descriptions)} label_descriptions; they must be as many."
        )
    return Labels(names, descriptions)


def _read_transformers(document: Values, path: Path, preprocessor: Path | None) -> PretrainedConfig:
    # JSON keys are strings; the schema wants class numbers.
    if isinstance(document.get("id2label"), dict):
        document = {
            **document,
            "id2label": {_class_number(key, path): value for key, value in document["id2label"].items()},
        }
    config = _parse(_TransformersConfig, document, path)
    if config.hidden_act != "gelu":
        raise CheckpointError(
            f"{path} describes a ConvNeXt with {for_terminal(config.hidden_act)[:_SHOWN]} activations; only GELU is supported."
        )
    labels = None
    if config.id2label:
        if sorted(config.id2label) != list(range(len(config.id2label))):
            raise ConfigFileError(
                f"{path}: id2label must number the classes from 0 to {len(config.id2label) - 1} without gaps."
            )
        names = tuple(config.id2label[index] for index in range(len(config.id2label)))
        if not all(name == f"LABEL_{index}" for index, name in enumerate(names)):
            labels = Labels(names, names)
    given, not_followed = ({}, ()) if preprocessor is None else _read_preprocessor(preprocessor)
    return PretrainedConfig(given, labels, head_norm_eps=config.layer_norm_eps, not_followed=not_followed)


def _class_number(key: str, path: Path) -> int:
    if not re.fullmatch(r"0|[1-9]\d{0,8}", key, re.ASCII):
        raise ConfigFileError(
            f"{for_terminal(path)}: id2label has the key {key[:_SHOWN]!r}; its keys must be class numbers."
        )
    return int(key)


def _read_preprocessor(path: Path) -> tuple[Values, tuple[str, ...]]:
    """Translate a preprocessor_config.json; return fields of Preprocess, and what is not followed.

    The ConvNeXt processor resizes the shorter side to size / crop_pct and crops below 384 pixels, and squashes from
    there on. Other processors resize the shorter side to `size`, or squash to (height, width), and crop `crop_size`. All round the
    offset of the crop down.
    """
    document = _read_json(path)
    config = _parse(_Preprocessor, document, path)
    if not config.do_resize or not config.do_rescale or abs(config.rescale_factor * 255 - 1) > 1e-6:
        raise ConfigFileError(
            f"{path} does not resize images and scale them to 0..1 (do_resize, do_rescale, rescale_factor), so its "
            "preprocessing cannot be followed. Load the bare weights file with --resolution, --crop-pct, --mean, --std."
        )
    given: Values = {"mean": config.image_mean, "std": config.image_std, "crop_offset": "floor"}
    if not config.do_normalize:
        given |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if config.resample is not None:
        if config.resample not in _PILLOW_FILTERS:
            raise ConfigFileError(
                f"{path}: resample {config.resample} is not supported; it must be one of {list(_PILLOW_FILTERS)}."
            )
        given["interpolation"] = _PILLOW_FILTERS[config.resample]
    kind = config.image_processor_type or config.feature_extractor_type or "ConvNext"
    size = config.size
    if isinstance(size, int):
        size = _Size(height=size, width=size) if kind.startswith(_SQUARE_BY_ONE_NUMBER) else _Size(shortest_edge=size)
    if size and size.shortest_edge:
        edge = size.shortest_edge
        if kind.startswith("ConvNext"):
            given |= {"input_size": (edge, edge)}
            if edge >= _WARP_FROM:
                given |= {"crop_mode": "squash", "crop_pct": 1.0}
            else:
                given |= {"crop_mode": "center", "crop_pct": config.crop_pct or 224 / 256}
        else:
            height, width = _crop(config.crop_size, edge) if config.do_center_crop is not False else (edge, edge)
            given |= {"input_size": (height, width), "crop_mode": "center", "crop_pct": min(height, width) / edge}
    elif size and size.height and size.width:
        given |= {"input_size": (size.height, size.width), "crop_mode": "squash", "crop_pct": 1.0}
        if config.do_center_crop:
            given |= _squash_and_crop(config, size.height, size.width, path)
    return {name: value for name, value in given.items() if value is not None}, _other_steps(document, path)


def _squash_and_crop(config: _Preprocessor, height: int, width: int, path: Path) -> Values:
    """Return the fields for images that are squashed to (height, width) before the crop."""
    crop = _crop(config.crop_size, min(height, width))
    if crop[0] * width != crop[1] * height or crop[0] > height:
        raise ConfigFileError(
            f"{path}: images are resized to {height}x{width} and {crop[0]}x{crop[1]} is cropped, another shape or more than there "
            "is, which cannot be followed. Load the bare weights file with --resolution, --crop-pct, --mean, --std."
        )
    return {"input_size": crop, "crop_pct": crop[0] / height}


def _other_steps(document: Values, path: Path) -> tuple[str, ...]:
    """Name the steps that a processor does besides those that are followed, and code of its own."""
    steps = [
        key for key, value in document.items() if key.startswith("do_") and value is True and key not in _KNOWN_STEPS
    ]
    own_code = ["auto_map (a processor with code of its own)"] if document.get("auto_map") else []
    return tuple(
        for_terminal(f"{path.name}, {text}") for text in (*(f"{key[:_SHOWN]} true" for key in steps), *own_code)
    )


def _crop(crop: int | _Size | None, edge: int) -> tuple[int, int]:
    if isinstance(crop, int):
        return crop, crop
    return ((crop.height or edge), (crop.width or edge)) if crop else (edge, edge)


def _read_json(path: Path) -> Values:
    content = read_bytes(path, ConfigFileError, most=MOST_CONFIG_BYTES)
    try:
        document = parse_json(content, path, ConfigFileError)
    except ConfigFileError as error:
        raise ConfigFileError(
            f"{for_terminal(path)} is not valid JSON: {reason(error.__cause__ or error)}. Repair it, or remove it and give the "
            "values as flags."
        ) from error
    if not isinstance(document, dict):
        raise ConfigFileError(f"{path} must hold a JSON object with timm's or transformers' config fields.")
    return document


def _parse(schema: type[Schema], document: Values, path: Path) -> Schema:
    """Validate; every problem becomes one ConfigFileError that names its key. JSON mode lets lists be tuples."""
    try:
        return schema.model_validate_json(json.dumps(document))
    except ValidationError as error:
        problems = []
        for problem in error.errors()[:4]:
            key, message = ".".join(str(part) for part in problem["loc"])[:_SHOWN], problem["msg"]
            shown = f"{key}: {message[0].lower()}{message[1:]} (found {repr(problem['input'])[:_SHOWN]})"
            problems.append(for_terminal(shown))
        raise ConfigFileError(f"{path} does not hold: {'; '.join(problems)}.") from error
