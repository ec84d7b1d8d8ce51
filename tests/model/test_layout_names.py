"""Names of every layout, written out for one block, and networks of any size through each layout and back."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeconvnext.model.convnext.layouts import LAYOUTS, Layout, rename
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig

# Ours to theirs: stem, second downsampling, second block of the third stage, head. As the libraries' own checkpoints have them.
OURS = (
    "downsample_layers.0.0.weight",
    "downsample_layers.0.1.bias",
    "downsample_layers.2.0.weight",
    "downsample_layers.2.1.bias",
    "stages.2.1.dwconv.weight",
    "stages.2.1.norm.bias",
    "stages.2.1.pwconv1.weight",
    "stages.2.1.pwconv2.bias",
    "stages.2.1.grn.gamma",
    "stages.2.1.grn.beta",
    "stages.2.1.gamma",
    "norm.weight",
    "head.bias",
)
TIMM = (
    "stem.0.weight",
    "stem.1.bias",
    "stages.2.downsample.0.weight",
    "stages.2.downsample.1.bias",
    "stages.2.blocks.1.conv_dw.weight",
    "stages.2.blocks.1.norm.bias",
    "stages.2.blocks.1.mlp.fc1.weight",
    "stages.2.blocks.1.mlp.fc2.bias",
    "stages.2.blocks.1.mlp.grn.weight",
    "stages.2.blocks.1.mlp.grn.bias",
    "stages.2.blocks.1.gamma",
    "head.norm.weight",
    "head.fc.bias",
)
TRANSFORMERS = (
    "embeddings.patch_embeddings.weight",
    "embeddings.layernorm.bias",
    "encoder.stages.2.downsampling_layer.0.weight",
    "encoder.stages.2.downsampling_layer.1.bias",
    "encoder.stages.2.layers.1.dwconv.weight",
    "encoder.stages.2.layers.1.layernorm.bias",
    "encoder.stages.2.layers.1.pwconv1.weight",
    "encoder.stages.2.layers.1.pwconv2.bias",
    "encoder.stages.2.layers.1.grn.weight",
    "encoder.stages.2.layers.1.grn.bias",
    "encoder.stages.2.layers.1.layer_scale_parameter",
    "layernorm.weight",
)
TORCHVISION = (
    "features.0.0.weight",
    "features.0.1.bias",
    "features.4.0.weight",
    "features.4.1.bias",
    "features.5.1.block.0.weight",
    "features.5.1.block.2.bias",
    "features.5.1.block.3.weight",
    "features.5.1.block.5.bias",
    None,
    None,
    "features.5.1.layer_scale",
    "classifier.0.weight",
    "classifier.2.bias",
)
MMPRETRAIN = (
    "downsample_layers.0.0.weight",
    "downsample_layers.0.1.bias",
    "downsample_layers.2.0.weight",
    "downsample_layers.2.1.bias",
    "stages.2.1.depthwise_conv.weight",
    "stages.2.1.norm.bias",
    "stages.2.1.pointwise_conv1.weight",
    "stages.2.1.pointwise_conv2.bias",
    "stages.2.1.grn.gamma",
    "stages.2.1.grn.beta",
    "stages.2.1.gamma",
    "norm3.weight",
)
DINOV3 = (
    "stages.0.downsample_layers.0.weight",
    "stages.0.downsample_layers.1.bias",
    "stages.2.downsample_layers.0.weight",
    "stages.2.downsample_layers.1.bias",
    "stages.2.layers.1.depthwise_conv.weight",
    "stages.2.layers.1.layer_norm.bias",
    "stages.2.layers.1.pointwise_conv1.weight",
    "stages.2.layers.1.pointwise_conv2.bias",
    None,
    None,
    "stages.2.layers.1.gamma",
    "layer_norm.weight",
    None,
)
EXPECTED: dict[int, tuple[str | None, ...]] = {
    0: OURS,
    1: TIMM,
    2: tuple("norm_pre.weight" if name == "head.norm.weight" else name for name in TIMM),
    3: TORCHVISION,
    4: (*(f"convnext.{name}" for name in TRANSFORMERS), "classifier.bias"),
    5: (*(f"convnextv2.{name}" for name in TRANSFORMERS), "classifier.bias"),
    6: (*TRANSFORMERS, "classifier.bias"),
    7: tuple(name.replace("stem.", "stem_").replace("stages.", "stages_") for name in TIMM),
    8: DINOV3,
    9: (*(f"backbone.{name}" for name in MMPRETRAIN), "head.fc.bias"),
    10: (*MMPRETRAIN, "head.fc.bias"),
    11: tuple(name and name.replace("stages.", "model.stages.") for name in DINOV3),
    12: tuple(name and name.removeprefix("features.") for name in TORCHVISION),
}


@pytest.mark.parametrize("number", EXPECTED)
def test_names_are_those_of_the_library(number: int) -> None:
    assert len(LAYOUTS) == len(EXPECTED)
    names = dict(LAYOUTS[number].names(stages=4, blocks=3))
    for ours, theirs in zip(OURS, EXPECTED[number], strict=True):
        assert theirs is None or names[ours] == theirs


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_name_stands_for_one_tensor(layout: Layout) -> None:
    names = list(layout.names(stages=4, blocks=5))
    assert len({ours for ours, _ in names}) == len({theirs for _, theirs in names}) == len(names)
    # Stem; two layers between stages, three times; four layers and three parameters a block; norm and head. Weights and biases.
    assert len(names) == 2 * len(layout.stem) + 3 * 4 + 4 * 5 * (2 * 4 + 3) + 4


def test_what_no_tensor_shows() -> None:
    shown = [(layout.name, layout.head_norm, layout.head_norm_eps) for layout in LAYOUTS]
    assert shown == [
        ("facebookresearch", "after_pool", 1e-6),
        ("timm", "after_pool", 1e-6),
        ("timm (norm before pooling)", "before_pool", 1e-6),
        ("torchvision", "after_pool", 1e-6),
        *[("transformers", "after_pool", 1e-12)] * 3,
        ("timm (features_only)", "after_pool", 1e-6),
        ("transformers (DINOv3)", "after_pool", 1e-6),
        *[("mmpretrain", "after_pool", 1e-6)] * 2,
        ("transformers (DINOv3)", "after_pool", 1e-6),
        ("torchvision (features)", "after_pool", 1e-6),
    ]


def with_axes_of_one(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As libraries store them: linears as 1x1 convs, layer scale (C, 1, 1), GRN (1, 1, 1, C)."""
    if name.endswith(("pwconv1.weight", "pwconv2.weight", "head.weight")):
        return tensor[:, :, None, None]
    if "grn" in name:
        return tensor[None, None, None]
    return tensor[:, None, None] if name.endswith("gamma") else tensor


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    depths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    version=st.sampled_from([1, 2]),
    dims=st.sampled_from([(1, 2, 3, 5), (4, 1, 2, 3), (3, 3, 3, 3)]),
    classes=st.sampled_from([0, 1, 7]),
    axes=st.booleans(),
    shuffled=st.randoms(use_true_random=False),
)
def test_a_checkpoint_of_any_layout_comes_back_under_our_names(
    layout: Layout,
    depths: list[int],
    version: int,
    dims: tuple[int, ...],
    classes: int,
    axes: bool,
    shuffled: random.Random,
) -> None:
    if version == 2 and layout.name.startswith("torchvision"):
        version = 1  # torchvision has no V2
    config = ConvNeXtConfig(tuple(depths), dims[: len(depths)], num_classes=classes, version=version, kernel_size=1)
    # A value of its own for every tensor: names that were swapped would show.
    state = {
        name: torch.full_like(tensor, number)
        for number, (name, tensor) in enumerate(ConvNeXt(config).state_dict().items())
    }
    names = dict(layout.names(len(depths), max(depths)))
    file = [(names[name], with_axes_of_one(name, tensor) if axes else tensor) for name, tensor in state.items()]
    file += [("surplus.7.weight", torch.ones(2)), ("num_batches_tracked", torch.tensor(3))]
    shuffled.shuffle(file)
    renamed = rename(dict(file))
    assert renamed is not None
    assert renamed.layout == layout.name
    assert sorted(renamed.unexpected) == ["num_batches_tracked", "surplus.7.weight"]
    assert renamed.tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert renamed.tensors[name].shape == tensor.shape, name
        assert torch.equal(renamed.tensors[name], tensor), name
        assert renamed.theirs[name] == names[name]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_four_stages_of_one_block_each(layout: Layout) -> None:
    state = ConvNeXt(ConvNeXtConfig((1,) * 4, (2,) * 4, num_classes=3, kernel_size=1)).state_dict()
    names = dict(layout.names(4, 1))
    renamed = rename({names[name]: tensor for name, tensor in state.items()})
    assert renamed is not None
    assert renamed.tensors.keys() == state.keys()


def test_only_axes_of_length_one_are_dropped() -> None:
    shapes = {
        "stages.0.0.dwconv.weight": (4, 1, 1, 1),
        "downsample_layers.1.1.weight": (8, 4, 1, 1),
        "stages.0.0.pwconv1.weight": (16, 4, 1, 2),
        "stages.0.0.pwconv2.weight": (4, 16, 1),
        "head.weight": (3, 8, 2, 2),
        "stages.0.0.gamma": (2, 2, 1),
        "stages.0.0.grn.beta": (1, 4, 2, 1),
        "stages.0.0.pwconv1.bias": (16, 1, 1),
    }
    renamed = rename({name: torch.zeros(shape) for name, shape in shapes.items()})
    assert renamed is not None
    assert {name: tuple(tensor.shape) for name, tensor in renamed.tensors.items()} == shapes


@pytest.mark.parametrize(("surplus", "is_convnext"), [(0, True), (4, True), (5, False)])
def test_a_layout_must_explain_half_of_the_tensors(surplus: int, is_convnext: bool) -> None:
    block = {f"stages.0.0.{part}": torch.zeros(4) for part in ("norm.weight", "norm.bias", "gamma", "dwconv.bias")}
    renamed = rename(block | {f"other.{number}": torch.zeros(4) for number in range(surplus)})
    assert (renamed is not None) is is_convnext


def test_tensors_without_a_block_are_of_no_layout() -> None:
    assert rename({}) is None
    assert rename({"norm.weight": torch.zeros(4), "head.weight": torch.zeros(3, 4)}) is None
    assert rename({"head.fc.weight": torch.zeros(3, 4)}) is None


def test_at_most_sixteen_stages_are_read() -> None:
    def blocks(count: int) -> dict[str, torch.Tensor]:
        return {f"stages.{stage}.0.gamma": torch.zeros(4) for stage in range(count)}

    sixteen, seventeen = rename(blocks(16)), rename(blocks(17))
    assert sixteen is not None and seventeen is not None
    assert sixteen.unexpected == () and seventeen.unexpected == ("stages.16.0.gamma",)
