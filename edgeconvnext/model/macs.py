"""Multiply-adds and parameters of a ConvNeXt."""

from __future__ import annotations

import torch

from edgeconvnext.model.convnext import ConvNeXt, ConvNeXtConfig, check_input_size
from edgeconvnext.model.layers import weighted_layers


def layer_macs(model: ConvNeXt | ConvNeXtConfig, input_size: tuple[int, int]) -> dict[str, int]:
    """Return the multiply-adds of each conv and linear, batch 1, by layer name in forward order.

    input_size: (height, width) in pixels. A layer costs its number of weights times the positions it is applied to:
    pwconv1 of Tiny's first stage at 224 has 96 * 384 weights and 56 * 56 positions, 115.6 million. Norms, activations
    and biases are not counted. Raises ModelConfigError for an input size that does not fit.
    """
    module = _on_meta(model)
    config = module.config
    check_input_size(config, input_size)
    macs = {}
    for name, operator in weighted_layers(module).items():
        weight = module.get_parameter(f"{name}.weight")
        if operator == "head":
            positions = 1
        else:
            stride = _output_stride(config, name)
            positions = (input_size[0] // stride) * (input_size[1] // stride)
        macs[name] = weight.numel() * positions
    return macs


def count_macs(model: ConvNeXt | ConvNeXtConfig, input_size: tuple[int, int] = (224, 224)) -> int:
    """Return the multiply-adds of all convs and linears, batch 1."""
    return sum(layer_macs(model, input_size).values())


def count_parameters(model: ConvNeXt | ConvNeXtConfig) -> int:
    """Return the number of parameters, classifier included."""
    return sum(parameter.numel() for parameter in _on_meta(model).parameters())


def _on_meta(model: ConvNeXt | ConvNeXtConfig) -> ConvNeXt:
    """Build a config without memory for its weights."""
    if isinstance(model, ConvNeXt):
        return model
    with torch.device("meta"):
        return ConvNeXt(model)


def _output_stride(config: ConvNeXtConfig, layer: str) -> int:
    """Input pixels per output position of `layer`; "stages.s..." and "downsample_layers.s.1" are at stage s."""
    parts = layer.split(".")
    if config.stem != "patch" and layer == "downsample_layers.0.0":
        return 2
    return config.stem_stride * 2 ** int(parts[1])
