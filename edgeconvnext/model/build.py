"""From a configuration to its network, and from a configuration to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import suppress
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import torch

from edgeconvnext.errors import ModelConfigError
from edgeconvnext.escape import for_terminal
from edgeconvnext.model.families import FAMILIES, family_of
from edgeconvnext.model.network import Network, NetworkConfig
from edgeconvnext.received import parse_json

_UNNAMED = "convnext"
"""The family of configurations that name none."""


def build(config: NetworkConfig) -> Network:
    """Return a network with new weights."""
    return family_of(config).network(config)


def build_empty(config: NetworkConfig) -> Network:
    """Return a network without memory for its weights, in eval mode."""
    with torch.device("meta"):
        return build(config).eval()


def config_json(config: NetworkConfig) -> str:
    """Write a configuration as JSON, with the family of the network where that is not ConvNeXt."""
    family = family_of(config).name
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(cast(Any, config)) if item.init}
    return json.dumps(values if family == _UNNAMED else {"network": family, **values})


def config_from_json(text: str) -> NetworkConfig:
    """Read what `config_json` wrote; JSON has turned its tuples into lists. Raises ModelConfigError for other text."""
    values = parse_json(text, "the configuration", ModelConfigError)
    if not isinstance(values, dict):
        raise ModelConfigError(f"A configuration is a JSON object, not {type(values).__name__}.")
    name = values.pop("network", _UNNAMED)
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise ModelConfigError(f"There is no network {for_terminal(name)[:80]}.")
    types = get_type_hints(family.config)
    fields = {item.name: item for item in dataclasses.fields(cast(Any, family.config)) if item.init}
    for name in values.keys() - fields.keys():
        raise ModelConfigError(f"{for_terminal(name, 80)}: a configuration has no such key.")
    checked = {}
    for name, item in fields.items():
        if name not in values:
            if item.default is dataclasses.MISSING:
                raise ModelConfigError(f"{name}: it is missing.")
            continue
        try:
            checked[name] = _fitting(values[name], types[name])
        except (ValueError, OverflowError):
            shown = for_terminal(json.dumps(values[name]), 80)
            raise ModelConfigError(f"{name}: {shown} is of another type or not among the known values.") from None
    return family.config(**checked)


def _fitting(value: Any, hint: Any) -> Any:
    """Return a JSON value as the type hint of a configuration's field wants it; raises ValueError for one that does not fit.

    By hand: the machine with the GPU that reads configurations may have torch, numpy and safetensors alone.
    """
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        if any(type(value) is type(part) and value == part for part in parts):
            return value
    elif kind in (Union, UnionType):
        for part in parts:
            with suppress(ValueError):
                return _fitting(value, part)
    elif kind is tuple:
        if isinstance(value, list):
            return tuple(_fitting(item, parts[0]) for item in value)
    elif hint is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif type(value) is hint:  # a bool is no int
        return value
    raise ValueError
