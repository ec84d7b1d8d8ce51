"""Checkpoints of every layout load, and their logits are those of the library that wrote them.

The fixtures were recorded from timm, torchvision and transformers by tests/fixtures/make_layout_fixtures.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgeconvnext.errors import CheckpointError
from edgeconvnext.model import ConvNeXtConfig, load_model
from edgeconvnext.model.convnext.layouts import rename
from edgeconvnext.model.resnet.network import ResNetConfig

FOLDER = Path(__file__).parent.parent / "fixtures" / "layouts"
SMALL = ConvNeXtConfig(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=11)
SMALL_RESNET = ResNetConfig(
    depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), hidden=(4, 8, 16, 32), stem_dim=4, num_classes=11
)
SMALL_RESNEXT = dataclasses.replace(SMALL_RESNET, hidden=(8, 16, 32, 64), groups=4)
V2 = dataclasses.replace(SMALL, version=2, layer_scale=False)

EXPECTED = {
    "facebookresearch": ("facebookresearch", SMALL),
    "facebookresearch_v2": ("facebookresearch", V2),
    "timm_linear": ("timm", SMALL),
    "timm_conv": ("timm", SMALL),
    "timm_overlap": ("timm", dataclasses.replace(SMALL, stem="overlap")),
    "timm_overlap_tiered": ("timm", dataclasses.replace(SMALL, dims=(16, 24, 32, 40), stem="overlap_tiered")),
    "timm_hnf": ("timm (norm before pooling)", dataclasses.replace(SMALL, head_norm="before_pool")),
    "timm_v2_linear": ("timm", V2),
    "timm_v2_conv": ("timm", V2),
    "timm_kernel5_patch3_grey": ("timm", dataclasses.replace(SMALL, kernel_size=5, patch_size=3, in_channels=1)),
    "timm_no_layer_scale": ("timm", dataclasses.replace(SMALL, layer_scale=False)),
    "timm_features": ("timm", dataclasses.replace(SMALL, num_classes=0)),
    "torchvision": ("torchvision", SMALL),
    "torchvision_resnet": ("torchvision (ResNet)", SMALL_RESNET),
    "torchvision_resnext": ("torchvision (ResNet)", SMALL_RESNEXT),
    "transformers_v1": ("transformers", dataclasses.replace(SMALL, head_norm_eps=1e-12)),
    "transformers_v2": ("transformers", dataclasses.replace(V2, head_norm_eps=1e-12)),
}


def weights(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")}


def test_every_fixture_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_logits_agree_with_the_library_that_wrote_the_checkpoint(name: str, tmp_path: Path) -> None:
    tensors = load_file(FOLDER / f"{name}.safetensors")
    torch.save(weights(tensors), tmp_path / "model.pth")
    layout, config = EXPECTED[name]
    grey = {"mean": (0.5,), "std": (0.5,)} if config.in_channels == 1 else {}
    model = load_model(tmp_path / "model.pth", resolution=tensors["input"].shape[-1], **grey)
    with torch.no_grad():
        logits = model.module(tensors["input"].float())
    # The order of sums differs between libraries: 1e-5 of the largest logit is some 80 float32 roundings.
    assert (logits - tensors["logits"]).abs().max() <= 1e-5 * tensors["logits"].abs().max()
    assert (model.layout, model.config) == (layout, config)
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert not model.module.training


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("facebookresearch", "stages.2.1.pwconv2.bias", "head.weight"),
        ("timm_conv", "stages.2.blocks.1.mlp.fc2.bias", "head.fc.weight"),
        ("torchvision", "features.5.1.block.5.bias", "classifier.2.weight"),
        ("transformers_v2", "convnextv2.encoder.stages.2.layers.1.pwconv2.bias", "classifier.weight"),
    ],
)
def test_misfits_are_named_as_in_the_file(name: str, first: str, last: str, tmp_path: Path) -> None:
    state = weights(load_file(FOLDER / f"{name}.safetensors"))
    del state[first]
    state[last] = torch.zeros(11, 5)
    state["surplus.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "model.pth")
    message = str(caught.value)
    assert f"1 missing: {first}" in message
    assert "1 unexpected: surplus.weight" in message
    assert f"1 misshapen: {last} is (11, 5), expected (11, 32)" in message
    assert EXPECTED[name][0] in message and "depths [1, 1, 2, 1]" in message


def test_pruned_widths_are_read_per_block() -> None:
    state = weights(load_file(FOLDER / "facebookresearch.safetensors"))
    block = "stages.2.0"
    state[f"{block}.pwconv1.weight"] = state[f"{block}.pwconv1.weight"][:40]
    state[f"{block}.pwconv1.bias"] = state[f"{block}.pwconv1.bias"][:40]
    state[f"{block}.pwconv2.weight"] = state[f"{block}.pwconv2.weight"][:, :40]
    from edgeconvnext.model.convnext.infer import infer_config
    from edgeconvnext.model.tensor_check import check_tensors

    renamed = rename({name: tensor.float() for name, tensor in state.items()})
    assert renamed is not None
    config = infer_config(renamed, "pruned.pth")
    assert config.hidden == ((32,), (64,), (40, 96), (128,))
    check_tensors(renamed, config, "pruned.pth")


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"head.pre_logits.fc.weight": (32, 32)}, "hidden layer (timm's convnext_large_mlp)"),
        ({"stages.0.downsample.0.weight": (8,)}, "patch_size=2"),
        ({"stem.3.weight": (8,)}, "overlap_act"),
        ({"stages.0.downsample.0.weight": (8,), "stem.3.weight": (8,)}, "(timm's overlap_act), and a first stage"),
        (
            {"stages.0.blocks.0.conv_dw.weight": (8, 1, 3, 3), "stages.1.blocks.0.conv_dw.weight": (16, 1, 3, 3)},
            "kernel_sizes",
        ),
        ({"stem.0.weight": (8, 3, 8, 8)}, "timm then dilates the convs"),
    ],
)
def test_unsupported_timm_variants_are_called_by_name(
    change: dict[str, tuple[int, ...]], hint: str, tmp_path: Path
) -> None:
    state = weights(load_file(FOLDER / "timm_linear.safetensors"))
    torch.save(state | {name: torch.ones(shape) for name, shape in change.items()}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="not supported") as caught:
        load_model(tmp_path / "model.pth")
    assert hint in str(caught.value)


def test_rms_norms_and_pretraining_weights_are_recognised(tmp_path: Path) -> None:
    state = weights(load_file(FOLDER / "timm_v2_linear.safetensors"))
    torch.save({n: t for n, t in state.items() if not n.endswith("norm.bias")}, tmp_path / "rms.pth")
    with pytest.raises(CheckpointError, match="RMS norms"):
        load_model(tmp_path / "rms.pth")
    torch.save({n: t for n, t in state.items() if not n.endswith("conv_dw.bias")}, tmp_path / "no_bias.pth")
    with pytest.raises(CheckpointError, match=r"conv_bias=False") as caught:
        load_model(tmp_path / "no_bias.pth")
    assert "RMS" not in str(caught.value)
    torch.save({n: t for n, t in state.items() if n != "stages.1.blocks.0.norm.bias"}, tmp_path / "damaged.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: stages\.1\.blocks\.0\.norm\.bias\.$"):
        load_model(tmp_path / "damaged.pth")
    torch.save({n: t for n, t in state.items() if not n.startswith("head.")}, tmp_path / "fcmae.pth")
    with pytest.raises(CheckpointError, match=r"no head: .* pretraining .* --head features"):
        load_model(tmp_path / "fcmae.pth")


def test_a_missing_block_is_named(tmp_path: Path) -> None:
    state = weights(load_file(FOLDER / "facebookresearch.safetensors"))
    torch.save({n: t for n, t in state.items() if not n.startswith("stages.2.0.")}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"no tensors for block 0 of stage 2"):
        load_model(tmp_path / "model.pth")


def test_an_absurd_index_costs_nothing() -> None:
    state = weights(load_file(FOLDER / "facebookresearch.safetensors"))
    renamed = rename(state | {"stages.0.999999999.gamma": torch.ones(8)})
    assert renamed is not None
    assert renamed.unexpected == ("stages.0.999999999.gamma",)
