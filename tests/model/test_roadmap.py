"""The road from ResNet-50 to ConvNeXt-T: multiply-adds as printed, torchvision's ResNets at one end, our ConvNeXt at the other."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from resnets import CONFIGS, narrow, trained_like
from safetensors.torch import load_file
from torch import nn

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import CheckpointError, ModelConfigError
from edgeconvnext.model import ConvNeXt, LoadedModel, load_model
from edgeconvnext.model.build import build_empty
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.convnext.presets import PRESETS
from edgeconvnext.model.describe import describe
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.macs import count_macs, count_parameters, layer_macs
from edgeconvnext.model.resnet.network import ResNet, ResNetConfig
from edgeconvnext.model.resnet.roadmap import RESNET50, RESNEXT50, STEPS, as_convnext, match_step, select_steps
from edgeconvnext.model.units import units_of

FIXTURES = Path(__file__).parent.parent / "fixtures" / "layouts"
LAST = STEPS["convnext_tiny"].config


@pytest.mark.parametrize("name", STEPS)
def test_counted_multiply_adds_are_the_papers(name: str) -> None:
    step = STEPS[name]
    error = count_macs(step.config) / 1e9 / step.published_gflops - 1
    if step.gflops_count_norms:
        assert -0.08 < error < -0.06  # 4.146 counted, 4.46 printed
    else:
        assert abs(error) < 0.015


def test_the_road_is_the_papers_and_each_step_changes_what_it_says() -> None:
    main = [step for step in STEPS.values() if step.published_top1 is not None]
    assert [step.published_gflops for step in main] == [
        4.09, 4.53, 4.42, 2.35, 5.27, 4.64, 4.07, 4.15, 4.15, 4.15, 4.15, 4.46, 4.49,
    ]  # fmt: skip
    assert (main[0].published_top1, main[-1].published_top1) == (78.82, 81.97)
    changed = [
        {f.name for f in fields(ResNetConfig) if getattr(a.config, f.name) != getattr(b.config, f.name)}
        for a, b in pairwise(main)
    ]
    assert changed == [
        {"depths"}, {"stem"}, {"groups"}, {"dims", "hidden", "stem_dim"}, {"dims", "hidden"}, {"depthwise_first"},
        {"kernel_size"}, {"activation"}, {"few_activations"}, {"few_norms"}, {"norm"},
        {"separate_downsampling", "layer_scale"},
    ]  # fmt: skip
    assert {STEPS[f"kernel_{k}"].config.kernel_size for k in (5, 7, 9, 11)} == {5, 7, 9, 11}


def test_the_first_step_and_resnext_have_torchvisions_parameters() -> None:
    # The counts that torchvision's documentation gives for resnet50 and resnext50_32x4d.
    assert count_parameters(RESNET50) == 25_557_032
    assert count_parameters(RESNEXT50) == 25_028_904


def test_the_last_step_is_convnext_tiny_weight_for_weight() -> None:
    config = as_convnext(LAST)
    assert config == PRESETS["convnext_tiny"].config
    ours, theirs = (build_empty(c).state_dict() for c in (LAST, config))
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
    small = narrow(LAST)
    last, convnext = trained_like(small), ConvNeXt(as_convnext(small)).eval()
    convnext.load_state_dict(last.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(last(images), convnext(images))
    assert all(as_convnext(step.config) is None for step in STEPS.values() if step.name != "convnext_tiny")


@pytest.mark.parametrize("name", CONFIGS)
def test_weighted_layers_are_all_that_carry_weights_in_the_order_of_data(name: str) -> None:
    module = trained_like(narrow(CONFIGS[name]))
    run: list[str] = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda _m, _i, _o, path=path: run.append(path))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits = module(images)
        assert list(weighted_layers(module)) == [*sorted(run, key=_shortcut_last(run))]
        # Units one after the other are the network; residual ones hold their input.
        x = images
        for unit in units_of(module):
            before, x = x, unit.run(module, x)
            if unit.residual:
                assert torch.allclose(before + unit.branch(module, before), x, atol=1e-5)
        assert torch.equal(x, logits)
    assert logits.shape == (1, 7)


def _shortcut_last(run: list[str]) -> Any:
    """Order as run, but a block's shortcut behind its other convs, wherever the block computes it."""

    def key(path: str) -> tuple[int, int]:
        block = path.rpartition(".shortcut.")[0]
        position = run.index(path)
        if not block:
            return position, 0
        return max(i for i, other in enumerate(run) if other.startswith(f"{block}.") and "shortcut" not in other), 1

    return key


@pytest.mark.parametrize("name", ["resnet50", "resnext50", "width_96", "kernel_7", "layer_norm"])
def test_macs_of_every_layer_are_weights_times_positions(name: str) -> None:
    module = trained_like(narrow(CONFIGS[name]))
    outputs: dict[str, int] = {}
    for path in weighted_layers(module):
        module.get_submodule(path).register_forward_hook(
            lambda _m, _i, o, path=path: outputs.update({path: o[0].numel()})
        )
    with torch.no_grad():
        module(torch.randn(1, 3, 96, 64))
    for path, macs in layer_macs(module, (96, 64)).items():
        weight = module.get_parameter(f"{path}.weight")
        assert macs == outputs[path] * weight[0].numel(), path


@pytest.mark.parametrize("name", ["torchvision_resnet", "torchvision_resnext"])
def test_old_checkpoints_without_counters_load(name: str, tmp_path: Path) -> None:
    state = torchvision_state(name)
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert counters
    torch.save({key: tensor for key, tensor in state.items() if key not in counters}, tmp_path / "m.pth")
    model = load_model(tmp_path / "m.pth", resolution=64)
    torch.save(state, tmp_path / "new.pth")
    assert all(
        torch.equal(tensor.float(), model.module.state_dict()[key].float())
        for key, tensor in load_model(tmp_path / "new.pth", resolution=64).module.state_dict().items()
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_step_loads_as_it_was(name: str, tmp_path: Path) -> None:
    config = narrow(CONFIGS[name])
    module = trained_like(config)
    model = LoadedModel(module, config, Preprocess((64, 64)), None, name, "", "", "")
    save_checkpoint(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    # The last step comes back as the ConvNeXt that it is, with all its folds.
    assert loaded.config == (as_convnext(config) or config)
    assert isinstance(loaded.module, ConvNeXt if name == "convnext_tiny" else ResNet)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(images), module(images))


def test_inspect_names_the_step_and_what_folds() -> None:
    module = build_empty(RESNET50)
    found = describe(LoadedModel(module, module.config, Preprocess((224, 224)), None, "m", "", "m.pth", "0" * 64))
    assert (found.architecture, found.published_gflops, found.parameters) == ("resnet50", 4.09, 25_557_032)
    assert len(found.norms) == 53
    assert found.norms[1].name == "stages.0.0.norm1" and found.norms[1].folds_into == "stages.0.0.conv1"
    assert match_step(replace(RESNET50, num_classes=10)) is STEPS["resnet50"]
    assert match_step(RESNEXT50) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer2.0.conv3.weight": None}, ("incomplete ResNet", "stages.1.0.conv3.weight")),
        ({"layer3.1.bn2.bias": None}, ("1 missing: layer3.1.bn2.bias", "fit the ResNet")),
        ({"fc.weight": torch.zeros(11, 5)}, ("misshapen: fc.weight is (11, 5), expected (11, 128)",)),
        ({"layer1.0.se.fc1.weight": torch.zeros(2, 2)}, ("1 unexpected: layer1.0.se.fc1.weight",)),
        ({"layer1.0.conv1.weight": torch.zeros(8, 4, 1, 1, dtype=torch.int8)}, ("already quantised",)),
    ],
)
def test_misfits_are_named_as_in_the_file(
    change: dict[str, torch.Tensor | None], words: tuple[str, ...], tmp_path: Path
) -> None:
    state = torchvision_state("torchvision_resnext") | change
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "m.pth")
    assert all(word in str(caught.value) for word in words), caught.value


def torchvision_state(name: str) -> dict[str, Any]:
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    return {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}


def test_resnets_of_two_convs_a_block_are_refused(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}
    torch.save(state, tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match="ResNet-18"):
        load_model(tmp_path / "resnet18.pth")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depths": (3, 4)}, "same number of stages"),
        ({"groups": 7}, "must divide the hidden widths"),
        ({"kernel_size": 4}, "odd"),
        ({"depthwise_first": True}, "groups=None"),
        ({"few_norms": True}, "depthwise_first"),
        ({"separate_downsampling": True}, "layer"),
        ({"norm": "layer", "folded": True}, "BatchNorms"),
    ],
)
def test_impossible_networks_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelConfigError, match=words):
        ResNetConfig(**arguments)


def test_steps_are_selected_by_name() -> None:
    assert [step.name for step in select_steps("kernel_7, resnet50")] == ["resnet50", "kernel_7"]
    assert select_steps(None) == list(STEPS.values())
    with pytest.raises(ModelConfigError, match="Did you mean kernel_7"):
        select_steps("kernel7")
    with pytest.raises(ModelConfigError, match="No step was named"):
        select_steps(" ,")
