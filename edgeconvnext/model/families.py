"""The families of networks that this package knows, and the published networks of them all."""

from __future__ import annotations

from edgeconvnext.model.convnext.family import ConvNeXtFamily
from edgeconvnext.model.family import Architecture, Family
from edgeconvnext.model.network import NetworkConfig
from edgeconvnext.model.resnet.family import ResNetFamily

FAMILIES: dict[str, Family] = {family.name: family for family in (ConvNeXtFamily(), ResNetFamily())}
"""By the name that stored configurations carry; a checkpoint belongs to the first family that can rename it."""


def family_of(config: NetworkConfig) -> Family:
    """Return the family of a configuration."""
    return next(family for family in FAMILIES.values() if type(config) is family.config)


def architectures() -> dict[str, Architecture]:
    """Return the published networks of all families by name."""
    return {name: known for family in FAMILIES.values() for name, known in family.architectures.items()}


def find_architecture(name: str) -> Architecture | None:
    """Return the published network of a name or one of its spellings."""
    return next((known for family in FAMILIES.values() if (known := family.find(name))), None)


def match_architecture(config: NetworkConfig) -> Architecture | None:
    """Return the published network with the architecture of `config`, whatever its classes and folding."""
    return family_of(config).match(config)


def architecture_hub_name(name: str) -> str | None:
    """Return the hub name of the weights that a plain model name stands for, "tiny" or "convnext_tiny.fb_in1k"."""
    return next((hub for family in FAMILIES.values() if (hub := family.hub_name(name))), None)
