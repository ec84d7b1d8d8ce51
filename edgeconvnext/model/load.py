"""One way in: a path, a hub name, a preset or a shipped model becomes a LoadedModel."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeconvnext.choices import Head, Interpolation
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.size import Size
from edgeconvnext.errors import CheckpointError, ConfigFileError, nearest
from edgeconvnext.escape import for_terminal
from edgeconvnext.files import tree_sha256
from edgeconvnext.model.build import build_empty
from edgeconvnext.model.checkpoint import (
    SHARD_INDEX,
    WEIGHTS_SUFFIXES,
    Checkpoint,
    holds_weights,
    read_checkpoint,
    shards_of,
)
from edgeconvnext.model.families import FAMILIES, architecture_hub_name, architectures, family_of
from edgeconvnext.model.family import Family
from edgeconvnext.model.foreign import looks_like
from edgeconvnext.model.heads import with_head
from edgeconvnext.model.hub import fetch, parse_hub_name
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.network import EndsWith, Network, NetworkConfig
from edgeconvnext.model.preprocessing import ModelFiles, preprocess_of
from edgeconvnext.model.pretrained_config import PretrainedConfig, read_config
from edgeconvnext.model.renamed import OWN_LAYOUT, Renamed, listed, own_names
from edgeconvnext.model.tensor_check import check_tensors
from edgeconvnext.model.weight_sets import is_measure
from edgeconvnext.received import reading, require_regular_file

_SHOWN = 200
"""Characters of a name that a message repeats."""
_STAGE_ENDS: dict[Head, EndsWith] = {"features": "stages", "none": "last_stage"}
# What transformers' Trainer and Accelerate write beside the weights.
_TRAINER_STATE = re.compile(
    r"(optimizer|scheduler|scaler|rng_state(_\d+)?|training_args|random_states_\d+)\.(pt|pth|bin|pkl)"
)
_SHIPPED = Path(__file__).resolve().parent / "weights"


def load_model(
    path_or_name: str | Path,
    *,
    head: Head = "classifier",
    weights_from: str | None = None,
    resolution: int | Size | None = None,
    crop_pct: float | None = None,
    interpolation: Interpolation | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a trained ConvNeXt, ResNet or ResNeXt from a weights file, a folder, a hub or preset name, or a shipped model.

    head: what the network ends with; all but "classifier" make a backbone of it (`heads.with_head`). weights_from: which of
    several networks in a file, by its key; None takes averaged weights first. resolution: side of a square
    input in pixels, or (height, width); crop_pct, interpolation, mean, std: as in Preprocess. They override the checkpoint.
    defaults: fields of Preprocess where neither says anything.

    Raises CheckpointError for weights that cannot be read as a ConvNeXt, ConfigFileError for a JSON that does not hold,
    and ModelConfigError for an input size the network cannot take.
    """
    files = find_model(path_or_name)
    checkpoint = read_checkpoint(files.weights, weights_from)
    pretrained = read_config(files.config, files.preprocessor) if files.config else PretrainedConfig({})
    pretrained = with_defaults(pretrained, defaults)
    overrides = preprocess_overrides(resolution, crop_pct, mean, std, interpolation)
    sha256 = _weights_sha256(files.weights, weights_from)
    loaded = assembled(checkpoint, pretrained, overrides, files, sha256, head)
    return replace(loaded, weights_from=weights_from)


def with_defaults(pretrained: PretrainedConfig, defaults: Mapping[str, Any] | None) -> PretrainedConfig:
    """Return what a JSON says with `defaults`, fields of Preprocess, for what it does not say."""
    return replace(pretrained, preprocess={**(defaults or {}), **pretrained.preprocess})


def preprocess_overrides(
    resolution: int | Size | None,
    crop_pct: float | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    interpolation: Interpolation | None,
) -> dict[str, Any]:
    """Return the fields of Preprocess that a user named, as `load_model` takes them."""
    overrides: dict[str, Any] = {
        **{"crop_pct": crop_pct, "interpolation": interpolation},
        **{"mean": mean and tuple(mean), "std": std and tuple(std)},
    }
    if resolution is not None:
        overrides["input_size"] = (resolution, resolution) if isinstance(resolution, int) else resolution
    return {name: value for name, value in overrides.items() if value is not None}


def assembled(
    checkpoint: Checkpoint,
    pretrained: PretrainedConfig,
    overrides: dict[str, Any],
    files: ModelFiles,
    sha256: str,
    head: Head = "classifier",
    *,
    whole: bool = False,
) -> LoadedModel:
    """Make a model of tensors, of what a JSON says beside them, and of what the user says. Raises as `load_model` does.

    overrides: fields of Preprocess. files: where the tensors come from, for names and errors. sha256: of the weights.
    whole: whether a network that has a head keeps it, whatever `head` says.
    """
    built = built_network(checkpoint, pretrained, files.source, head)
    module, layout = built.module, built.layout
    preprocess, notes = preprocess_of(pretrained, overrides, module.config, layout, files)
    loaded = LoadedModel(
        module=module,
        config=module.config,
        preprocess=preprocess,
        labels=_labels(pretrained, module.config, files),
        name=files.name,
        layout=layout,
        source=files.source,
        sha256=sha256,
        notes=(*checkpoint.notes, *built.notes, *notes),
    )
    return loaded if built.headless or whole else with_head(loaded, head)


def shipped_models() -> dict[str, Path]:
    """Return the models that travel inside the package, by name."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.safetensors"))}


def find_model(path_or_name: str | Path) -> ModelFiles:
    """Find the files of a model; an existing weights file or model folder comes before names.

    Raises CheckpointError where nothing is found, with the nearest known names.
    """
    name = str(path_or_name)
    with reading(name[:_SHOWN], CheckpointError, "Name a weights file, a folder, or a model."):
        path = Path(path_or_name).expanduser()
        there = path.exists()
    if there and not path.is_dir():
        require_regular_file(path, CheckpointError)
    if path.is_file() or (path.suffix.lower() in WEIGHTS_SUFFIXES and not path.is_dir()):
        return _shards(path) if path.name.endswith(SHARD_INDEX) else _weights_file(path)
    if name and path.is_dir() and _weights_in(path):
        return _folder(path)
    shipped = shipped_models()
    if name in shipped:
        return _weights_file(shipped[name])
    if name and path.is_dir():
        raise CheckpointError(f"The folder {for_terminal(path)} holds no weights ({', '.join(WEIGHTS_SUFFIXES)}).")
    preset = architecture_hub_name(name)
    hub_name = parse_hub_name(preset or name)
    # "runs/model" beside an existing folder runs/ is a mistyped path, not a repository.
    if hub_name is not None and (preset or not path.parent.is_dir()):
        repository, revision = hub_name
        found = fetch(repository, revision)
        short = safe_name(repository.split("/")[1])
        return ModelFiles(found.weights, found.config, found.preprocessor, short, f"{repository}@{found.commit[:12]}")
    known, shown = [*shipped, *(known for known in architectures() if architecture_hub_name(known))], name[:_SHOWN]
    raise CheckpointError(
        f"There is no model {shown!r}: no such file or folder, and no known name.{nearest(shown, known)} Give a weights "
        f"file, a folder with config.json and weights, a hub name (org/name), or one of {', '.join(known)}."
    )


def _weights_file(path: Path) -> ModelFiles:
    stem = path.name
    while Path(stem).suffix.lower() in WEIGHTS_SUFFIXES:
        stem = Path(stem).stem
    beside = path.with_name(f"{stem}.json")
    return ModelFiles(path, beside if beside.exists() else None, None, safe_name(stem), str(path))


def _shards(index: Path) -> ModelFiles:
    """A checkpoint in several files, with what lies beside its index."""
    return _beside(index.parent, index, str(index))


def _folder(path: Path) -> ModelFiles:
    """A folder as hubs lay it out; with several weights files the hub's own names win."""
    candidates = _weights_in(path)
    preferred = [
        file for name in ("model.safetensors", "pytorch_model.bin") for file in candidates if file.name == name
    ]
    indices = [file for file in candidates if file.name.endswith(SHARD_INDEX)]
    if not preferred and not indices and len(candidates) > 1:
        names = listed([file.name for file in candidates])
        raise CheckpointError(
            f"The folder {path} holds {len(candidates)} weights files ({names}). Name the one you mean."
        )
    return _beside(path, (preferred or indices or candidates)[0], str(path))


def _beside(folder: Path, weights: Path, source: str) -> ModelFiles:
    config, preprocessor = folder / "config.json", folder / "preprocessor_config.json"
    if not config.exists():
        config = _weights_file(weights).config or config
    return ModelFiles(
        weights,
        config if config.exists() else None,
        preprocessor if preprocessor.exists() else None,
        safe_name(folder.resolve().name),
        source,
    )


def _weights_in(path: Path) -> list[Path]:
    """Return the weights files of a folder and indices of shards, by name; where no name says so, by content."""
    with reading(path, CheckpointError):
        files = sorted(file for file in path.iterdir() if file.is_file() or file.is_symlink())
    named = [
        file for file in files if file.suffix.lower() in WEIGHTS_SUFFIXES and not _TRAINER_STATE.fullmatch(file.name)
    ]
    named += [file for file in files if file.name.endswith(SHARD_INDEX)]
    return named or [file for file in files if file.is_file() and not file.suffix and holds_weights(file)]


def _weights_sha256(path: Path, weights_from: str | None) -> str:
    """Return the hash of a weights file, or of all shards; another set of weights of the same file has another."""
    parts = [tree_sha256(file) for file in ([path, *shards_of(path)] if path.name.endswith(SHARD_INDEX) else [path])]
    if len(parts) == 1 and weights_from is None:
        return parts[0]
    return hashlib.sha256(json.dumps([parts, weights_from]).encode()).hexdigest()


def safe_name(name: str) -> str:
    """Keep letters, digits, dots, dashes and underscores, so that a name can be part of a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "model"


@dataclass(frozen=True)
class BuiltNetwork:
    """A network with the tensors of a checkpoint. headless: it ends with its stages already, because the file has no head."""

    module: Network
    layout: str
    notes: tuple[str, ...]
    headless: bool


def built_network(checkpoint: Checkpoint, pretrained: PretrainedConfig, source: str, head: Head) -> BuiltNetwork:
    """Infer the architecture, check every tensor against it, and put the tensors into a network in eval mode.

    Raises CheckpointError for tensors that make no network, and for a file without a head where `head` needs one.
    """
    family, whole = recognised(checkpoint, source)
    renamed, notes = _without_others(whole, checkpoint, head, source)
    stored = checkpoint.config
    config = family.canonical(family.infer(renamed, source) if stored is None else stored)
    config = config.with_norm_eps(pretrained.norm_eps, pretrained.head_norm_eps)
    headless = stored is None and _is_headless(renamed, config)
    if headless:
        if head not in _STAGE_ENDS:
            raise CheckpointError(
                f"{source} has no head: neither its norm nor its classifier is in the file, as in pretraining (FCMAE) and in "
                "features-only checkpoints. Take its stages with --head features or --head none, or use a fine-tuned checkpoint."
            )
        config = config.with_end(_STAGE_ENDS[head])
    try:
        check_tensors(renamed, config, source)
    except CheckpointError:
        check_tensors(whole, config, source)  # what was left out may be what is missing
        raise
    module = build_empty(config)
    module.load_state_dict(renamed.tensors, assign=True)
    return BuiltNetwork(module.eval(), renamed.layout if stored is None else OWN_LAYOUT, tuple(notes), headless)


def _is_headless(renamed: Renamed, config: NetworkConfig) -> bool:
    """Whether the network has tensors behind its stages, and the file none of them."""
    behind = [name for name in build_empty(config).state_dict() if name.partition(".")[0] in ("norm", "head")]
    return bool(behind) and not any(name in renamed.tensors for name in (*behind, "head.weight"))


def _without_others(renamed: Renamed, checkpoint: Checkpoint, head: Head, source: str) -> tuple[Renamed, list[str]]:
    """Leave out what lies beside the network in its file, and say so.

    Raises CheckpointError where more weights lie beside a network without classifier, and no head is named: they may be it.
    """
    own = {name.partition(".")[0] for name in renamed.theirs.values()}
    outside = [name for name in renamed.unexpected if name.partition(".")[0] not in own]
    beside = checkpoint.beside | {name: checkpoint.tensors[name].dim() for name in outside}
    if not beside:
        return renamed, []
    weights = [name for name, dimensions in beside.items() if dimensions >= 2 and not is_measure(name)]
    if weights and head == "classifier" and "head.weight" not in renamed.tensors:
        raise CheckpointError(
            f"{source} holds a {renamed.layout} network without a classifier of its own, and beside it {listed(weights)}. This "
            "package builds no network of both. Take the ConvNeXt alone with --head features (or none, or gap)."
        )
    inside = tuple(name for name in renamed.unexpected if name not in set(outside))
    note = f"Left out, because the network has no place for them: {listed(list(beside))}."
    return replace(renamed, unexpected=inside), [note]


def recognised(checkpoint: Checkpoint, source: str) -> tuple[Family, Renamed]:
    """Return the family of a checkpoint and its tensors under our names. Raises CheckpointError where no family knows it."""
    tensors = checkpoint.tensors
    if checkpoint.config is not None:
        family = family_of(checkpoint.config)
        return family, family.rename(tensors, source) or own_names(tensors)
    for family in FAMILIES.values():
        if renamed := family.rename(tensors, source):
            return family, renamed
    first = ", ".join(for_terminal(name)[:80] for name in list(tensors)[:4])
    likeness = looks_like(tensors)
    finding = f"look like {likeness}" if likeness else "match no known layout"
    raise CheckpointError(
        f"{source} is not a ConvNeXt checkpoint: its tensors ({first}, ...) {finding}. "
        f"Readable are {', and '.join(family.readable for family in FAMILIES.values())}."
    )


def _labels(pretrained: PretrainedConfig, config: NetworkConfig, files: ModelFiles) -> Labels | None:
    if pretrained.labels is None or not config.num_classes:
        return None
    if len(pretrained.labels) != config.num_classes:
        raise ConfigFileError(
            f"{files.config} names {len(pretrained.labels)} classes; {files.source} has "
            f"{config.num_classes}. Repair the labels or remove them."
        )
    return pretrained.labels
