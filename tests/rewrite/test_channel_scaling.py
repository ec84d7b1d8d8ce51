"""Scalings in front of layers leave the network's function alone, or are refused."""

import copy

import pytest
import torch

from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.rewrite.channel_scaling import ChannelScaling, absorbed, norm_before, place_scaling, takes_shift


def network(version: int = 1, stem: str = "patch", head_norm: str = "after_pool") -> ConvNeXt:
    torch.manual_seed(0)
    config = ConvNeXtConfig((1, 1), (8, 16), num_classes=5, version=version, stem=stem, head_norm=head_norm)
    module = ConvNeXt(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def insert_scaling(module: ConvNeXt, layer: str, scaling: ChannelScaling) -> None:
    """Put `scaling` in front of a layer and take it back in the layer's weight and bias, as the accuracy engine does."""
    weight, bias = absorbed(module.get_submodule(layer), scaling)
    place_scaling(module, layer, scaling)
    module.get_submodule(layer).weight.data.copy_(weight)
    module.get_submodule(layer).bias.data.copy_(bias)


def input_channels(module: ConvNeXt, layer: str) -> int:
    layer_module = module.get_submodule(layer)
    return layer_module.in_channels if isinstance(layer_module, torch.nn.Conv2d) else layer_module.in_features


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("stem", ["patch", "overlap"])
@pytest.mark.parametrize("head_norm", ["after_pool", "before_pool"])
def test_a_scaling_in_front_of_every_layer_changes_nothing(version: int, stem: str, head_norm: str) -> None:
    module = network(version, stem, head_norm)
    images = torch.randn(2, 3, 32, 32)
    scaled = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    for layer in weighted_layers(module):
        channels = input_channels(module, layer)
        scale = torch.rand(channels, generator=generator) * 4 + 0.25
        shift = torch.randn(channels, generator=generator) * takes_shift(module, layer)
        insert_scaling(scaled, layer, ChannelScaling(scale, shift, "test"))
    with torch.inference_mode():
        expected, computed = module(images), scaled(images)
    # Eight float32 layers deep; scales up to 17 to 1 cost a digit.
    assert (computed - expected).abs().max() < 1e-4 * expected.abs().max()


def test_behind_a_norm_the_scaling_costs_no_operator() -> None:
    module = network()
    kinds = {layer: norm_before(module, layer) is not None for layer in weighted_layers(module)}
    assert {layer for layer, free in kinds.items() if free} == {
        "stages.0.0.pwconv1", "downsample_layers.1.1", "stages.1.0.pwconv1", "head",
    }  # fmt: skip
    insert_scaling(module, "stages.0.0.pwconv1", ChannelScaling(torch.full((8,), 2.0), torch.ones(8), "test"))
    assert not hasattr(module.stages[0][0].pwconv1, "channel_scaling")


def test_a_shift_is_not_taken_where_zeros_are_padded() -> None:
    module = network(stem="overlap")
    refused = {layer for layer in weighted_layers(module) if not takes_shift(module, layer)}
    assert refused == {"downsample_layers.0.0", "downsample_layers.0.1", "stages.0.0.dwconv", "stages.1.0.dwconv"}


def test_one_number_for_all_channels_stays_one_number() -> None:
    module = network()
    insert_scaling(module, "stages.0.0.pwconv2", ChannelScaling(torch.ones(32), torch.full((32,), -0.5), "shift"))
    scaling = module.stages[0][0].pwconv2.channel_scaling
    assert scaling.scale is None
    assert scaling.shift.numel() == 1


@pytest.mark.parametrize("layer", ["stages.0.0.dwconv", "stages.0.0.pwconv2", "downsample_layers.0.0"])
def test_a_scaled_layer_has_the_names_and_the_parameters_of_the_layer(layer: str) -> None:
    module = network()
    before = module.get_submodule(layer)
    names = [name for name, _ in module.named_modules()]
    parameters = [name for name, _ in module.named_parameters()]
    state, random_state = list(module.state_dict()), torch.get_rng_state()
    place_scaling(
        module, layer, ChannelScaling(torch.full((input_channels(module, layer),), 2.0), torch.zeros(1), "test")
    )
    scaled = module.get_submodule(layer)
    assert scaled is not before and scaled.weight is before.weight and scaled.bias is before.bias
    assert type(before) in (torch.nn.Linear, torch.nn.Conv2d) and not scaled.training
    assert [name for name, _ in module.named_parameters()] == parameters
    assert [name for name, _ in module.named_modules() if "channel_scaling" not in name] == names
    added = f"{layer}.channel_scaling.scale"
    assert [name for name in module.state_dict() if name != added] == state and added in module.state_dict()
    assert torch.equal(torch.get_rng_state(), random_state)
