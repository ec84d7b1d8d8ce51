"""A ConvNeXt inside a larger module is recognised by its tensors, and its parts are replaced at their own places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgeconvnext.errors import CheckpointError
from edgeconvnext.model.enclosed import find_backbone, first_difference
from tests.model.foreign_modules import (
    OwnBackbone,
    Segmenter,
    TimmBackbone,
    TorchvisionBackbone,
    TransformersBackbone,
    drawn,
    smooth_images,
)

PLACES = {
    TimmBackbone: ["stem", "stages.0.blocks.0", "stages.1.downsample", "stages.1.blocks.0", "stages.1.blocks.1"],
    TorchvisionBackbone: ["features.0", "features.1.0", "features.2", "features.3.0", "features.3.1"],
    TransformersBackbone: [
        "embeddings",
        "encoder.stages.0.layers.0",
        "encoder.stages.1.downsampling_layer.0",
        "encoder.stages.1.layers.0",
        "encoder.stages.1.layers.1",
    ],
    OwnBackbone: ["downsample_layers.0", "stages.0.0", "downsample_layers.1", "stages.1.0", "stages.1.1"],
}
# Rounding of float32 by other orders of the same sums: 64 products a sum, 2^-24 each.
ROUNDING = 64 * 2.0**-24


@pytest.mark.parametrize("kind", PLACES)
def test_each_part_computes_the_same_at_its_place(kind: type[nn.Module]) -> None:
    whole = drawn(Segmenter(kind()))
    backbone = find_backbone(whole)
    assert backbone.path == "encoder"
    assert [part.place for part in backbone.parts] == [f"encoder.{place}" for place in PLACES[kind]]
    replaced = backbone.within(whole, backbone.module)
    images = smooth_images(4)
    with torch.no_grad():
        expected, actual = whole(images), replaced(images)
    for name, output in expected.items():
        assert float((actual[name] - output).abs().max()) <= ROUNDING * float(output.abs().max())
    assert first_difference(whole, replaced, backbone, images, ROUNDING) is None


def test_places_of_layers() -> None:
    backbone = find_backbone(Segmenter(TransformersBackbone()))
    assert backbone.place_of("stages.1.0.pwconv1") == "encoder.encoder.stages.1.layers.0.pwconv1"
    assert backbone.place_of("downsample_layers.1.1") == "encoder.encoder.stages.1.downsampling_layer.0.1"


def test_the_larger_module_stays_as_it_is() -> None:
    whole = drawn(Segmenter(TimmBackbone()))
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    backbone = find_backbone(whole)
    with torch.no_grad():
        for parameter in backbone.within(whole, backbone.module).parameters():
            parameter.zero_()
        for parameter in backbone.module.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())


def test_a_backbone_may_be_the_module_itself() -> None:
    whole = drawn(TimmBackbone())
    backbone = find_backbone(whole)
    assert backbone.path == ""
    assert backbone.parts[1].place == "stages.0.blocks.0"


def test_the_first_part_that_differs_is_named() -> None:
    whole = drawn(Segmenter(TimmBackbone(nn.GELU(approximate="tanh"))))
    backbone = find_backbone(whole)
    replaced = backbone.within(whole, backbone.module)
    assert first_difference(whole, replaced, backbone, smooth_images(4), ROUNDING) == "encoder.stages.0.blocks.0"


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = TimmBackbone(), TorchvisionBackbone()


def test_one_of_several_is_named() -> None:
    with pytest.raises(CheckpointError, match=r'several backbones: left, right\. .*backbone="left"'):
        find_backbone(TwoTowers())
    assert find_backbone(TwoTowers(), "right").layout == "torchvision"


def test_a_module_without_one() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(CheckpointError, match="Sequential holds no ConvNeXt"):
        find_backbone(plain)
    with pytest.raises(CheckpointError, match=r"Sequential has no module 'encoder'. Its own modules are 0, 1"):
        find_backbone(plain, "encoder")
    with pytest.raises(CheckpointError, match=r"Sequential\.0 is not a backbone .* weight, bias"):
        find_backbone(plain, "0")


def tree_of(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Return a module with these parameters at these paths, and no forward."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        owner = root
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_buffer(last, tensor)
    return root


def test_a_resnet_is_refused_by_its_name() -> None:
    stored = load_file(Path(__file__).parents[1] / "fixtures" / "layouts" / "torchvision_resnet.safetensors")
    tensors = {name.removeprefix("weights."): value for name, value in stored.items() if name.startswith("weights.")}
    whole = nn.ModuleDict({"body": tree_of(tensors)})
    with pytest.raises(CheckpointError, match="only a ConvNeXt can be quantised inside a larger module"):
        find_backbone(whole, "body")
