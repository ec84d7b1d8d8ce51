"""Multiply-adds and parameters of a network."""

from __future__ import annotations

import torch
from torch import nn

from edgeconvnext.model.build import build_empty
from edgeconvnext.model.input_size import check_input_size
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network, NetworkConfig


def layer_macs(model: Network | NetworkConfig, input_size: tuple[int, int]) -> dict[str, int]:
    """Return the multiply-adds of each conv and linear, batch 1, by layer name in forward order.

    input_size: (height, width) in pixels. A layer costs its number of weights times the positions it is applied to:
    pwconv1 of Tiny's first stage at 224 has 96 * 384 weights and 56 * 56 positions, 115.6 million. Norms, activations
    and biases are not counted. Raises ModelConfigError for an input size that does not fit.
    """
    config = model.config if isinstance(model, Network) else model
    check_input_size(config, input_size)
    module = build_empty(config)
    macs: dict[str, int] = {}

    def count(name: str) -> None:
        def hook(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            weight = layer.get_parameter("weight")
            macs[name] = weight.numel() * output.numel() // len(weight)

        module.get_submodule(name).register_forward_hook(hook)

    for name in weighted_layers(module):
        count(name)
    with torch.no_grad():
        module(torch.empty(1, config.in_channels, *input_size, device="meta"))
    return {name: macs[name] for name in weighted_layers(module)}


def count_macs(model: Network | NetworkConfig, input_size: tuple[int, int] = (224, 224)) -> int:
    """Return the multiply-adds of all convs and linears, batch 1."""
    return sum(layer_macs(model, input_size).values())


def count_parameters(model: Network | NetworkConfig) -> int:
    """Return the number of parameters, classifier included."""
    module = model if isinstance(model, Network) else build_empty(model)
    return sum(parameter.numel() for parameter in module.parameters())
