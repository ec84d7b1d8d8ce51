"""From a configuration to its network, and from a configuration to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import Any, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from edgeconvnext.errors import ModelConfigError
from edgeconvnext.escape import for_terminal
from edgeconvnext.model.convnext import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.network import Network
from edgeconvnext.model.resnet import ResNet, ResNetConfig
from edgeconvnext.received import parse_json

NetworkConfig = ConvNeXtConfig | ResNetConfig


def build(config: NetworkConfig) -> Network:
    """Return a network with new weights."""
    return ConvNeXt(config) if isinstance(config, ConvNeXtConfig) else ResNet(config)


def build_empty(config: NetworkConfig) -> Network:
    """Return a network without memory for its weights, in eval mode."""
    with torch.device("meta"):
        return build(config).eval()


def config_json(config: NetworkConfig) -> str:
    """Write a configuration as JSON, with the kind of network it is of where that is no ConvNeXt."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
    return json.dumps(values if isinstance(config, ConvNeXtConfig) else {"network": "resnet", **values})


def config_from_json(text: str) -> NetworkConfig:
    """Read what `config_json` wrote; JSON has turned its tuples into lists. Raises ModelConfigError for other text."""
    values = parse_json(text, "the configuration", ModelConfigError)
    if not isinstance(values, dict):
        raise ModelConfigError(f"A configuration is a JSON object, not {type(values).__name__}.")
    kind = values.pop("network", "convnext")
    config = {"convnext": ConvNeXtConfig, "resnet": ResNetConfig}.get(kind) if isinstance(kind, str) else None
    if config is None:
        raise ModelConfigError(f"There is no network {for_terminal(kind)[:80]}.")
    try:
        checked = _schema(config).model_validate_json(json.dumps(values))
    except ValidationError as error:
        problem = error.errors()[0]
        key = for_terminal(".".join(str(part) for part in problem["loc"]))[:80]
        raise ModelConfigError(f"{key}: {for_terminal(problem['msg'])}.") from error
    return config(**{name: getattr(checked, name) for name in type(checked).model_fields})


@cache
def _schema(config: type[NetworkConfig]) -> type[BaseModel]:
    """Return a model of the fields of `config`, so that no value of another type reaches a layer."""
    types = get_type_hints(config)
    fields: dict[str, Any] = {
        item.name: (types[item.name], ... if item.default is dataclasses.MISSING else item.default)
        for item in dataclasses.fields(config)
        if item.init
    }
    return create_model(
        config.__name__, __config__=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False), **fields
    )
