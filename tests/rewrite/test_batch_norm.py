"""BatchNorms fold into the layers in front of them exactly, on every step of the road, and inexact folds are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from resnets import CONFIGS, narrow, trained_like
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import RewriteError
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.rewrite.batch_norm import fold_batch_norm
from edgeconvnext.rewrite.channel_scaling import ChannelScaling, absorbed, place_scaling
from edgeconvnext.rewrite.exact import fold_exact, fold_input_normalization

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
WITH_BATCH_NORM = [name for name, config in CONFIGS.items() if config.norm == "batch"]


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_batch_norms_fold_and_the_logits_stay(name: str) -> None:
    module = trained_like(narrow(CONFIGS[name]))
    before = copy.deepcopy(module.state_dict())
    result = fold_exact(module, IMAGES)
    # float32 weights rounded once, over up to ten layers.
    assert result.errors.keys() == {"batch_norm"} and result.errors["batch_norm"] < 1e-5
    assert not any(isinstance(part, nn.BatchNorm2d) for part in result.module.modules())
    assert list(weighted_layers(result.module)) == list(weighted_layers(module))
    assert all(result.module.get_submodule(layer).bias is not None for layer in weighted_layers(module))
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert fold_exact(result.module, IMAGES).errors == {}


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_folded_weights_are_those_of_torchs_own_fusion(name: str) -> None:
    module = trained_like(narrow(CONFIGS[name]), seed=1).double()
    folded = fold_batch_norm(module)
    for layer, norm in module.norms_behind():
        conv, batch_norm = module.get_submodule(layer), module.get_submodule(norm)
        fuse = fuse_conv_bn_weights if conv.weight.dim() == 4 else fuse_linear_bn_weights
        of_norm = (batch_norm.running_mean, batch_norm.running_var, batch_norm.eps, batch_norm.weight, batch_norm.bias)
        weight, bias = fuse(conv.weight, conv.bias, *of_norm)
        # The same products in another order: some float64 roundings, of terms that are below 10.
        torch.testing.assert_close(folded.get_parameter(f"{layer}.weight"), weight, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(folded.get_parameter(f"{layer}.bias"), bias, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["layer_norm", "convnext_tiny"])
def test_networks_without_batch_norms_are_copied(name: str) -> None:
    module = trained_like(narrow(CONFIGS[name]))
    folded = fold_batch_norm(module)
    assert folded is not module
    with torch.no_grad():
        assert torch.equal(folded(IMAGES), module(IMAGES))


def test_a_fold_that_is_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(module):
        folded = fold_batch_norm(module)
        folded.get_submodule("stages.0.0.conv2").bias.data.zero_()
        return folded

    monkeypatch.setattr("edgeconvnext.rewrite.exact.fold_batch_norm", careless)
    with pytest.raises(RewriteError, match="batch_norm is not exact"):
        fold_exact(trained_like(narrow(CONFIGS["resnet50"])), IMAGES)


def test_raw_pixels_fold_into_patch_stems_only() -> None:
    preprocess = Preprocess((64, 64))
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    patch = fold_batch_norm(trained_like(narrow(CONFIGS["patch_stem"])))
    raw = fold_input_normalization(patch, preprocess, "0..255")
    with torch.no_grad():
        expected, found = patch((pixels / 255 - mean) / std), raw(pixels)
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()
    with pytest.raises(RewriteError, match="padded stem of a ResNet"):
        fold_input_normalization(trained_like(narrow(CONFIGS["resnet50"])), preprocess, "0..255")


def test_an_affine_in_front_of_a_grouped_conv_changes_nothing() -> None:
    module = fold_batch_norm(trained_like(narrow(CONFIGS["resnext50"])))
    prepared = copy.deepcopy(module)
    conv = module.get_submodule("stages.0.0.conv2")
    assert isinstance(conv, nn.Conv2d) and 1 < conv.groups < conv.in_channels
    scaling = ChannelScaling(torch.rand(conv.in_channels) + 0.5, torch.zeros(conv.in_channels), "t")
    weight, bias = absorbed(conv, scaling)
    place_scaling(prepared, "stages.0.0.conv2", scaling)
    prepared.get_submodule("stages.0.0.conv2").weight.data.copy_(weight)
    prepared.get_submodule("stages.0.0.conv2").bias.data.copy_(bias)
    with torch.no_grad():
        expected, found = module(IMAGES), prepared(IMAGES)
    assert (expected - found).abs().max() < 1e-5 * expected.abs().max()
