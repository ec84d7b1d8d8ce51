"""How the images of a checkpoint are prepared: what its JSON says, else what the library does that its names come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import CheckpointError, ConfigFileError, ModelConfigError
from edgeconvnext.model.families import match_architecture
from edgeconvnext.model.input_size import check_input_size
from edgeconvnext.model.network import NetworkConfig
from edgeconvnext.model.pretrained_config import PretrainedConfig

_SMALLEST_CROP, _LARGEST_VALUE = 0.1, 1e6
_ASSUMED = ("input_size", "crop_pct", "interpolation", "mean", "std")
"""Fields whose default a note names."""
# What torchvision resizes to before it crops 224, for its own weights of each architecture (models/convnext.py and resnet.py of
# torchvision 0.29). Its ConvNeXts that it has no weights for take those of the smallest.
_TORCHVISION_RESIZE = {"convnext_tiny": 236, "convnext_small": 230, "convnext_base": 232, "convnext_large": 232}
_TORCHVISION_CONVNEXT_RESIZE = 236
# From this size on facebookresearch/ConvNeXt (datasets.py) squashes images instead of cropping them.
_SQUASHED_FROM = 384
_BESIDE = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class ModelFiles:
    """Where the parts of a model lie. preprocessor: transformers' second JSON. silent: why there is no config."""

    weights: Path
    config: Path | None
    preprocessor: Path | None
    name: str
    source: str
    silent: str = "no JSON lies beside the weights"


def preprocess_of(
    pretrained: PretrainedConfig, overrides: dict[str, Any], config: NetworkConfig, layout: str, files: ModelFiles
) -> tuple[Preprocess, list[str]]:
    """Take each field from the flags, else from the JSON, else from the library of the layout; return notes beside it.

    The notes name what was assumed and why, and what a JSON says and is not followed. Raises ModelConfigError for values that make
    no preprocessing, and CheckpointError or ConfigFileError for channels that do not fit the network.
    """
    given = {**pretrained.preprocess, **overrides}
    assumed = [field for field in _ASSUMED if field not in given]
    if config.in_channels != 3 and {"mean", "std"} & set(assumed):
        raise CheckpointError(
            f"{files.source} takes {config.in_channels} input channels and nothing says how they are normalised ("
            "ImageNet's mean and std are for three). Give --mean and --std, or a JSON of the same stem beside the file."
        )
    if pretrained.in_channels not in (None, config.in_channels):
        raise ConfigFileError(
            f"{files.config} says the input has {pretrained.in_channels} channels; the stem of {files.source} takes "
            f"{config.in_channels}. Repair input_size in it."
        )
    library, defaults = _library_defaults(layout, config, given)
    preprocess = _checked({**defaults, **given}, config, files.source)
    return preprocess, [*_assumptions(preprocess, assumed, library, files), *_not_followed(pretrained, files)]


def _library_defaults(layout: str, config: NetworkConfig, given: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the library whose tensor names `layout` is, and what it does where a checkpoint says nothing.

    ("torchvision", {"interpolation": "bilinear", "crop_pct": 224 / 236}) for torchvision's ConvNeXt-Tiny.
    """
    if layout.startswith("torchvision (ResNet)"):
        return "torchvision", {"interpolation": "bilinear", "crop_pct": 224 / 256}
    if layout.startswith("torchvision"):
        known = match_architecture(config)
        resized = _TORCHVISION_RESIZE.get(known.name if known else "", _TORCHVISION_CONVNEXT_RESIZE)
        return "torchvision", {"interpolation": "bilinear", "crop_pct": 224 / resized}
    if layout.startswith("transformers"):
        return "transformers", {"crop_offset": "floor"}
    squashes = min(given.get("input_size", (0,))) >= _SQUASHED_FROM and given.get("crop_pct", 1.0) == 1.0
    if layout == "facebookresearch" and squashes:
        return "facebookresearch/ConvNeXt", {"crop_mode": "squash", "crop_pct": 1.0}
    return None, {}


def _checked(values: dict[str, Any], config: NetworkConfig, source: str) -> Preprocess:
    try:
        preprocess = Preprocess(**values)
        if preprocess.in_channels != config.in_channels:
            raise ModelConfigError(
                f"mean and std have {preprocess.in_channels} values; the network takes {config.in_channels} channels."
            )
    except ModelConfigError as error:
        raise ModelConfigError(f"The preprocessing of {source} does not hold: {error}") from error
    check_input_size(config, preprocess.input_size)
    if preprocess.crop_pct < _SMALLEST_CROP:
        raise ModelConfigError(
            f"crop_pct {preprocess.crop_pct} would resize images to {1 / _SMALLEST_CROP:.0f} times the input or more. Use a "
            "larger --crop-pct."
        )
    if min(preprocess.std) < 1 / _LARGEST_VALUE or max(map(abs, (*preprocess.mean, *preprocess.std))) > _LARGEST_VALUE:
        raise ModelConfigError(
            f"mean {preprocess.mean} and std {preprocess.std} are for pixels in 0..1; float32 has no room for what they make of "
            "them. Use other --mean and --std."
        )
    return preprocess


def _assumptions(preprocess: Preprocess, assumed: list[str], library: str | None, files: ModelFiles) -> list[str]:
    if not assumed:
        return []
    height, width = preprocess.resize_size
    resized = f"{height}" if height == width else f"{height}x{width}"
    squash = ", both sides" if preprocess.crop_mode == "squash" else ""
    values = {
        "input_size": "{}x{}".format(*preprocess.input_size),
        "crop_pct": f"{preprocess.crop_pct:.4g} (resize to {resized}{squash})",
        "interpolation": preprocess.interpolation,
        "mean": "ImageNet's",
        "std": "ImageNet's",
    }
    where = f"{files.config.name} does not say" if files.config else files.silent
    listed = ", ".join(f"{field} {values[field]}" for field in assumed)
    whose = f" as in {library}, whose names the tensors have" if library else ""
    return [
        f"Preprocessing assumed{whose}, because {where}: {listed}. Give --resolution, --crop-pct, --interpolation, --mean, --std "
        "to change it."
    ]


def _not_followed(pretrained: PretrainedConfig, files: ModelFiles) -> list[str]:
    """Name what a JSON says of the preprocessing and is not done, and JSON files beside the weights that were not read."""
    notes = [f"Preprocessing that is not followed: {text}." for text in pretrained.not_followed]
    if files.config is None and files.weights.exists():
        unread = [name for name in _BESIDE if (files.weights.parent / name).is_file()]
        if unread:
            notes.append(
                f"Preprocessing that is not followed: {' and '.join(unread)}, which belongs to the folder; name the folder in "
                "place of the file to follow it."
            )
    return notes
