"""A real ConvNeXt inside a real detector or segmenter is quantised in place and exported with the whole."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead

import edgeconvnext
from edgeconvnext.errors import OptionError, RewriteError
from tests.model.foreign_modules import drawn, smooth_images

SIDE = 64
DEPTHS, DIMS = (1, 1, 2, 1), (8, 16, 24, 32)
IMAGES = smooth_images(24, SIDE)


class TimmFpn(nn.Module):
    """timm's features_only network under torchvision's pyramid."""

    def __init__(self, name: str, **arguments: object) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, depths=DEPTHS, dims=DIMS, **arguments)
        self.fpn = torchvision.ops.FeaturePyramidNetwork(self.body.feature_info.channels(), 16)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn(OrderedDict((f"p{level}", level_map) for level, level_map in enumerate(self.body(images))))


def torchvision_pyramid() -> BackboneWithFPN:
    following = (*DIMS[1:], None)
    stages = [CNBlockConfig(dim, out, depth) for dim, out, depth in zip(DIMS, following, DEPTHS, strict=True)]
    levels = {str(2 * stage + 1): str(stage) for stage in range(4)}
    return BackboneWithFPN(ConvNeXt(stages).features, levels, list(DIMS), 16)


class DenseDetector(nn.Module):
    """torchvision's pyramid and the head of its region proposals, one for all levels: what Faster R-CNN computes before boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = torchvision_pyramid(), RPNHead(16, 3)

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.head(list(self.backbone(images).values()))


def faster_rcnn() -> FasterRCNN:
    anchors = AnchorGenerator(tuple((side,) for side in (8, 16, 32, 64, 64)), ((0.5, 1.0, 2.0),) * 5)
    return FasterRCNN(torchvision_pyramid(), num_classes=3, min_size=SIDE, max_size=SIDE, rpn_anchor_generator=anchors)


def upernet(version: str, **arguments: object) -> nn.Module:
    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = getattr(transformers, f"{version}Config")(
        depths=list(DEPTHS), hidden_sizes=list(DIMS), out_features=stages
    )
    config = transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, num_labels=3, **arguments)
    return transformers.UperNetForSemanticSegmentation(config)


LARGER: dict[str, tuple[str, str, int, Callable[[], nn.Module]]] = {
    "timm FPN": ("body", "timm (features_only)", 4, lambda: TimmFpn("convnext_atto")),
    "timm FPN, V2, two levels": (
        "body",
        "timm (features_only)",
        2,
        lambda: TimmFpn("convnextv2_atto", out_indices=(1, 2)),
    ),
    "torchvision dense detector": ("backbone.body", "torchvision (features)", 10, DenseDetector),
    "transformers UPerNet": (
        "backbone",
        "transformers",
        1,
        lambda: upernet("ConvNext", use_auxiliary_head=False),
    ),
    "transformers UPerNet, V2": (
        "backbone",
        "transformers",
        1,
        lambda: upernet("ConvNextV2", auxiliary_in_channels=DIMS[2]),
    ),
}


@pytest.mark.parametrize("name", LARGER)
def test_a_convnext_is_quantised_in_place(name: str, tmp_path: Path) -> None:
    path, layout, outputs, make = LARGER[name]
    whole = drawn(make())
    result = edgeconvnext.quantize_within(whole, calib=IMAGES, target="onnx")
    assert (result.backbone.path, result.backbone.layout) == (path, layout)
    assert len(result.names) == outputs
    # Float32 rounding of the folded backbone; `quantize_within` itself allows 1e-4.
    assert result.error < 1e-5
    artifact = result.export(tmp_path)
    assert all(check.passed for check in artifact.exported.checks)
    test = smooth_images(8, SIDE, seed=1)
    with torch.inference_mode():
        answer = whole(test)
    expected = torch.utils._pytree.tree_leaves(dict(answer) if isinstance(answer, dict) else answer)
    expected = [value for value in expected if isinstance(value, torch.Tensor)]
    actual = artifact.runner().outputs(test.numpy())
    for reference, output in zip(expected, actual, strict=True):
        noise = np.mean((reference.double().numpy() - output) ** 2)
        assert 10 * np.log10(float(reference.double().square().mean()) / noise) > 30


def test_the_pyramid_of_a_faster_rcnn_takes_its_place_quantised() -> None:
    detector = drawn(faster_rcnn())
    result = edgeconvnext.quantize_within(detector.backbone, calib=IMAGES)
    with torch.inference_mode():
        before = detector.backbone(IMAGES[:2])
        detector.backbone.forward = result.module.forward
        boxes = detector(list(IMAGES[:2]))
    assert list(before) == list(result.module(IMAGES[:2]))
    assert [set(one) for one in boxes] == [{"boxes", "labels", "scores"}] * 2


def test_what_returns_boxes_is_refused_with_the_way_round() -> None:
    with pytest.raises(OptionError, match="returns no float tensor with one row an image"):
        edgeconvnext.quantize_within(drawn(faster_rcnn()), calib=IMAGES)


def test_a_dilated_backbone_is_refused_and_the_place_is_named() -> None:
    with pytest.raises(RewriteError, match=r"first part that differs is body\.stages_3\.downsample"):
        edgeconvnext.quantize_within(drawn(TimmFpn("convnext_atto", output_stride=16)), calib=IMAGES)
