"""Models that a program holds: modules of any library and state dicts, recognised by their tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeconvnext.choices import Head, Interpolation
from edgeconvnext.data.size import Size
from edgeconvnext.errors import CheckpointError
from edgeconvnext.escape import for_terminal
from edgeconvnext.model.checkpoint import Checkpoint, checkpoint_of
from edgeconvnext.model.heads import with_head
from edgeconvnext.model.input_size import check_input_size
from edgeconvnext.model.load import (
    assembled,
    load_model,
    preprocess_overrides,
    recognised,
    safe_name,
    with_defaults,
)
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.network import Network
from edgeconvnext.model.preprocessing import ModelFiles
from edgeconvnext.model.pretrained_config import PretrainedConfig, config_of
from edgeconvnext.model.renamed import Renamed

_TIMM_FIELDS = (
    "input_size",
    "crop_pct",
    "crop_mode",
    "interpolation",
    "mean",
    "std",
    "label_names",
    "label_descriptions",
)
_TRANSFORMERS_FIELDS = ("model_type", "id2label", "layer_norm_eps")
_EPSILONS = ("eps", "variance_epsilon")
_STEM = "downsample_layers.0.0.weight"
_TAKEN = "Give a path, a name, a torch.nn.Module, a state dict, or a pair of a state dict and its config."


def model_of(
    source: Any,
    *,
    head: Head = "classifier",
    weights_from: str | None = None,
    resolution: int | Size | None = None,
    crop_pct: float | None = None,
    interpolation: Interpolation | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    defaults: Mapping[str, Any] | None = None,
    whole: bool = False,
) -> LoadedModel:
    """Return the model of a path, a name, a module, a state dict, or a state dict with its config.

    A module is recognised by its tensors; whether it computes what they say is `agreement.check_agreement`'s to find out. A config
    is a mapping with the fields of timm's or transformers' config.json. whole: whether a module or state dict keeps the head that
    it has, whatever `head` says. The other arguments and errors are those of `load_model`.
    """
    if isinstance(source, str | Path):
        return load_model(
            source,
            head=head,
            weights_from=weights_from,
            resolution=resolution,
            crop_pct=crop_pct,
            interpolation=interpolation,
            mean=mean,
            std=std,
            defaults=defaults,
        )
    overrides = preprocess_overrides(resolution, crop_pct, mean, std, interpolation)
    if isinstance(source, LoadedModel):
        preprocess = replace(source.preprocess, **overrides)
        check_input_size(source.config, preprocess.input_size)
        return with_head(replace(source, preprocess=preprocess), head)
    module = source if isinstance(source, nn.Module) else None
    if module is not None:
        checkpoint, pretrained = _module_checkpoint(module), _module_config(module)
        name, what = _module_name(module), f"{type(module).__name__} in memory"
    else:
        tensors, document = source if isinstance(source, tuple) and len(source) == 2 else (source, None)
        checkpoint, pretrained = _state_dict(tensors), PretrainedConfig({})
        if document is not None:
            pretrained = config_of(_json_fields(dict(document), tuple(document)), Path("the config in memory"))
        name, what = "state_dict", "state dict in memory"
    files = ModelFiles(Path(what), None, None, safe_name(name), what, silent=f"the {what} does not say")
    loaded = assembled(checkpoint, with_defaults(pretrained, defaults), overrides, files, "", head, whole=whole)
    return replace(loaded, sha256=tensors_sha256(loaded.module.state_dict()))


def needs_agreement(source: Any) -> bool:
    """Say whether a model's own forward has to be compared with ours: that of a module which is none of this package."""
    return isinstance(source, nn.Module) and not isinstance(source, Network)


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash names, types, shapes and values of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _module_checkpoint(module: nn.Module) -> Checkpoint:
    checkpoint = checkpoint_of(module.state_dict(), f"{type(module).__name__} in memory")
    return replace(checkpoint, config=module.config) if isinstance(module, Network) else checkpoint


def _state_dict(source: Any) -> Checkpoint:
    if not isinstance(source, Mapping):
        raise CheckpointError(f"A {type(source).__name__} is no model. {_TAKEN}")
    others = [name for name, value in source.items() if not isinstance(value, torch.Tensor)]
    if others or not source:
        shown = f" (its first: {for_terminal(others[0], 80)})" if others else ""
        raise CheckpointError(
            f"The state dict in memory holds {len(others)} values that are no tensors{shown}, of {len(source)}. {_TAKEN}"
        )
    return checkpoint_of(source, "state dict in memory")


def _module_name(module: nn.Module) -> str:
    cfg = getattr(module, "pretrained_cfg", None)
    architecture = cfg.get("architecture") if isinstance(cfg, Mapping) else None
    return architecture if isinstance(architecture, str) and architecture else type(module).__name__.lower()


def _module_config(module: nn.Module) -> PretrainedConfig:
    """Return what a module says beside its tensors: timm's pretrained_cfg, transformers' config, and the epsilons of its norms."""
    cfg, config = getattr(module, "pretrained_cfg", None), getattr(module, "config", None)
    source = Path(f"{type(module).__name__} in memory")
    pretrained = PretrainedConfig({})
    if isinstance(cfg, Mapping):
        pretrained = config_of(_json_fields(cfg, _TIMM_FIELDS), source)
    elif config is not None and isinstance(getattr(config, "model_type", None), str):
        pretrained = config_of(
            _json_fields(vars(config), _TRANSFORMERS_FIELDS) | {"model_type": config.model_type}, source
        )
    if isinstance(module, Network):
        return pretrained
    _, renamed = recognised(_module_checkpoint(module), f"{type(module).__name__} in memory")
    every, head = _epsilons(module, renamed)
    own = replace(pretrained, norm_eps=every or pretrained.norm_eps, head_norm_eps=head or pretrained.head_norm_eps)
    return _for_channels(own, renamed)


def _json_fields(document: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of these names that JSON can say, as JSON gives them back."""
    fields = {}
    for name in names:
        value = document.get(name)
        if value is not None:
            with suppress(TypeError, ValueError):
                fields[name] = json.loads(json.dumps(value))
    return fields


def _for_channels(pretrained: PretrainedConfig, renamed: Renamed) -> PretrainedConfig:
    """Leave out mean and std of another number of channels: timm's pretrained_cfg is that of the published three always."""
    stem = renamed.tensors.get(_STEM)
    if stem is None or stem.dim() != 4 or pretrained.in_channels in (None, stem.shape[1]):
        return pretrained
    fields = {name: value for name, value in pretrained.preprocess.items() if name not in ("mean", "std")}
    return replace(pretrained, preprocess=fields, in_channels=None)


def _epsilons(module: nn.Module, renamed: Renamed) -> tuple[float | None, float | None]:
    """Return the epsilon of a module's norms and of the one in front of its classifier; None where it has no such norm."""
    norms = {ours: _epsilon(module, name) for ours, name in renamed.theirs.items() if ours.endswith("norm.weight")}
    head = norms.pop("norm.weight", None)
    return next((eps for eps in norms.values() if eps is not None), None), head


def _epsilon(module: nn.Module, tensor: str) -> float | None:
    path = module_path(module, tensor)
    with suppress(AttributeError):
        owner = module.get_submodule(path) if path is not None else None
        values = (getattr(owner, name, None) for name in _EPSILONS)
        return next((float(value) for value in values if isinstance(value, float) and value > 0), None)
    return None


def module_path(module: nn.Module, tensor: str) -> str | None:
    """Return the path of the layer that owns a tensor, named as in its layout, whatever prefix the module's own name has.

    The shortest name that ends so is meant: "layernorm.weight" lies beside "embeddings.layernorm.weight".
    """
    names = [name for name in module.state_dict() if name == tensor or name.endswith(f".{tensor}")]
    return min(names, key=len).rpartition(".")[0] if names else None
