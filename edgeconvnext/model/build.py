"""From a configuration to its network, and from a configuration to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch

from edgeconvnext.errors import ModelConfigError
from edgeconvnext.model.convnext import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.network import Network
from edgeconvnext.model.resnet import ResNet, ResNetConfig

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
    """Read what `config_json` wrote; JSON has turned its tuples into lists.

    Raises ValueError, TypeError or ModelConfigError for other text.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ModelConfigError(f"a configuration is a JSON object, found {type(values).__name__}")
    kind = values.pop("network", "convnext")
    if kind not in ("convnext", "resnet"):
        raise ModelConfigError(f"there is no network {kind!r}")
    arguments = {name: _tuples(value) for name, value in values.items()}
    return ConvNeXtConfig(**arguments) if kind == "convnext" else ResNetConfig(**arguments)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
