"""Presets have the published parameters, multiply-adds and names."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgeconvnext.errors import ModelConfigError
from edgeconvnext.model import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.convnext.presets import PRESETS, find_preset, get_preset, match_preset, preset_hub_name
from edgeconvnext.model.macs import count_macs, count_parameters, layer_macs

V1 = {f"convnext_{size}" for size in ["atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge"]}
V2 = {f"convnextv2_{size}" for size in ["atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"]}


def test_all_published_sizes_are_there() -> None:
    assert set(PRESETS) >= V1 | V2


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_match_to_the_printed_digit(name: str) -> None:
    preset = PRESETS[name]
    decimals = len(preset.parameters.partition(".")[2])
    assert f"{count_parameters(preset.config) / 1e6:.{decimals}f}" == preset.parameters


@pytest.mark.parametrize("name", PRESETS)
def test_macs_match_the_published_flops(name: str) -> None:
    preset = PRESETS[name]
    # 1.5 %: published figures have two or three digits and some count norms or activations.
    assert count_macs(preset.config) / 1e9 == pytest.approx(preset.gflops, rel=0.015)


@pytest.mark.parametrize("stem", ["patch", "overlap", "overlap_tiered"])
@pytest.mark.parametrize("version", [1, 2])
def test_macs_equal_what_torch_counts_while_running(stem: str, version: int) -> None:
    config = ConvNeXtConfig((1, 2), (16, 24), 7, version=version, stem=stem, hidden=((40,), (96, 30)))  # type: ignore[arg-type]
    module = ConvNeXt(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, 64, 96))
    # torch counts a multiply-add as two operations, of convs and matrix products only.
    assert 2 * count_macs(module, (64, 96)) == counter.get_total_flops()
    assert sum(layer_macs(config, (64, 96)).values()) == count_macs(module, (64, 96))


def test_macs_refuse_an_input_the_network_cannot_take() -> None:
    with pytest.raises(ModelConfigError, match="multiples of 32"):
        count_macs(PRESETS["convnext_tiny"].config, (230, 230))


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_is_matched_to_its_preset(name: str) -> None:
    config = PRESETS[name].config
    fine_tuned = dataclasses.replace(config, num_classes=10, layer_scale=False, head_norm_eps=1e-12)
    found = match_preset(fine_tuned)
    assert found is not None and found.name == name
    assert match_preset(dataclasses.replace(config, kernel_size=5)) is None


def test_names() -> None:
    assert find_preset("tiny") is find_preset("convnext-tiny") is PRESETS["convnext_tiny"]
    assert preset_hub_name("convnext_tiny") == "timm/convnext_tiny.in12k_ft_in1k"
    assert preset_hub_name("convnextv2_atto") == "timm/convnextv2_atto.fcmae_ft_in1k"
    assert preset_hub_name("convnext_atto_ols") == "timm/convnext_atto_ols.a2_in1k"
    assert preset_hub_name("convnext_tiny.fb_in1k") == "timm/convnext_tiny.fb_in1k"
    assert preset_hub_name("resnet50") is None
    with pytest.raises(ModelConfigError, match="Did you mean convnext_tiny"):
        get_preset("convnxt_tiny")
