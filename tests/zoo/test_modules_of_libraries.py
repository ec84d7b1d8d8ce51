"""Real modules go in as they are in memory: recognised, equal to ours, quantised, and loaded from their saved state dict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import edgeconvnext
from edgeconvnext.choices import Head
from edgeconvnext.errors import CheckpointError
from tests.model.foreign_modules import drawn, smooth_images

SIDE = 64
SMALL = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Float64 rounds to 2^-53. Between image and output lie fewer than 2^12 sums one after the other.
ROUNDING = 2.0**-53 * 2**12


def of_transformers(kind: str, config: str, **arguments: object) -> nn.Module:
    return getattr(transformers, kind)(getattr(transformers, config)(**SMALL, **arguments))


CLASSIFIERS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "timm convnext_atto": ("timm", lambda: timm.create_model("convnext_atto")),
    "timm convnext_atto_ols": ("timm", lambda: timm.create_model("convnext_atto_ols")),
    "timm convnext_tiny": ("timm", lambda: timm.create_model("convnext_tiny")),
    "timm convnext_tiny_hnf": ("timm (norm before pooling)", lambda: timm.create_model("convnext_tiny_hnf")),
    "timm convnextv2_atto": ("timm", lambda: timm.create_model("convnextv2_atto")),
    "timm convnextv2_femto": ("timm", lambda: timm.create_model("convnextv2_femto", num_classes=7)),
    "timm without layer scale": ("timm", lambda: timm.create_model("convnext_atto", ls_init_value=None)),
    "timm epsilon": ("timm", lambda: timm.create_model("convnext_atto", norm_eps=1e-3)),
    "torchvision convnext_tiny": ("torchvision", torchvision.models.convnext_tiny),
    "transformers ConvNextForImageClassification": (
        "transformers",
        lambda: of_transformers("ConvNextForImageClassification", "ConvNextConfig", num_labels=5),
    ),
    "transformers ConvNextV2ForImageClassification": (
        "transformers",
        lambda: of_transformers("ConvNextV2ForImageClassification", "ConvNextV2Config", num_labels=5),
    ),
    "transformers TimmWrapper": (
        "timm",
        lambda: transformers.TimmWrapperForImageClassification(
            transformers.TimmWrapperConfig(architecture="convnext_atto", num_labels=5)
        ),
    ),
}
BACKBONES: dict[str, tuple[str, Head, Callable[[], nn.Module]]] = {
    "timm num_classes=0": ("timm", "gap", lambda: timm.create_model("convnext_atto", num_classes=0)),
    "timm features_only": (
        "timm (features_only)",
        "features",
        lambda: timm.create_model("convnextv2_atto", features_only=True),
    ),
    "timm features_only, shallow": (
        "timm (features_only)",
        "features",
        lambda: timm.create_model("convnext_atto", features_only=True, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    ),
    "torchvision feature extractor": (
        "torchvision",
        "features",
        lambda: create_feature_extractor(
            torchvision.models.convnext_tiny(), {f"features.{2 * stage + 1}": str(stage) for stage in range(4)}
        ),
    ),
    "torchvision features": (
        "torchvision (features)",
        "none",
        lambda: torchvision.models.convnext_tiny().features,
    ),
    "transformers ConvNextModel": (
        "transformers",
        "gap",
        lambda: of_transformers("ConvNextModel", "ConvNextConfig"),
    ),
    "transformers ConvNextV2Model": (
        "transformers",
        "gap",
        lambda: of_transformers("ConvNextV2Model", "ConvNextV2Config"),
    ),
    "transformers DINOv3ConvNextModel": (
        "transformers (DINOv3)",
        "gap",
        lambda: of_transformers("DINOv3ConvNextModel", "DINOv3ConvNextConfig"),
    ),
    "transformers DINOv3ConvNextBackbone": (
        "transformers (DINOv3)",
        "features",
        lambda: of_transformers("DINOv3ConvNextBackbone", "DINOv3ConvNextConfig", out_features=STAGES),
    ),
}
# These put norms of their own on the outputs of their stages, which stay out.
WITH_NORMS_OF_THEIR_OWN = {
    "ConvNextBackbone": lambda: of_transformers("ConvNextBackbone", "ConvNextConfig", out_features=STAGES),
    "ConvNextV2Backbone": lambda: of_transformers("ConvNextV2Backbone", "ConvNextV2Config", out_features=STAGES),
}


def outputs_of(answer: object) -> list[torch.Tensor]:
    """Return the tensors of an answer, in order."""
    if isinstance(answer, torch.Tensor):
        return [answer]
    values = answer.values() if isinstance(answer, dict) else answer
    return [tensor for value in values for tensor in outputs_of(value)]


def assert_same_outputs(theirs: nn.Module, ours: nn.Module) -> None:
    """Compare every output of ours with theirs of the same shape, both in float64."""
    images = smooth_images(2, SIDE).double()
    with torch.inference_mode():
        expected, actual = outputs_of(theirs.double()(images)), ours.double().outputs(images)
    for output in actual:
        candidates = [value.reshape(output.shape) for value in expected if value.numel() == output.numel()]
        assert candidates, (output.shape, [value.shape for value in expected])
        nearest = min(float((value - output).abs().max()) for value in candidates)
        assert nearest <= ROUNDING * float(output.abs().max())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_equals_ours_in_memory_and_from_its_saved_state_dict(name: str, tmp_path: Path) -> None:
    layout, make = CLASSIFIERS[name]
    module = drawn(make())
    loaded = edgeconvnext.load_model(module, resolution=SIDE)
    assert loaded.layout == layout
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    saved = edgeconvnext.load_model(tmp_path / "weights.pth", resolution=SIDE)
    assert saved.layout == layout
    tensors = saved.module.state_dict()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in loaded.module.state_dict().items())
    if "epsilon" in name:  # no tensor shows it; a config.json beside the file does
        assert (loaded.config.norm_eps, saved.config.norm_eps) == (1e-3, 1e-6)
    else:
        assert saved.config == loaded.config
    assert_same_outputs(module, loaded.module)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_equals_ours_in_memory_and_from_its_saved_state_dict(name: str, tmp_path: Path) -> None:
    layout, head, make = BACKBONES[name]
    module = drawn(make())
    loaded = edgeconvnext.load_model(module, head=head, resolution=SIDE)
    assert loaded.layout == layout
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    saved = edgeconvnext.load_model(tmp_path / "weights.pth", head=head, resolution=SIDE)
    assert (saved.layout, saved.config) == (layout, loaded.config)
    tensors = saved.module.state_dict()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in loaded.module.state_dict().items())
    assert_same_outputs(module, loaded.module)


@pytest.mark.parametrize("name", WITH_NORMS_OF_THEIR_OWN)
def test_norms_on_stage_outputs_are_left_out_with_a_note(name: str) -> None:
    module = drawn(WITH_NORMS_OF_THEIR_OWN[name]())
    loaded = edgeconvnext.load_model(module, head="features", resolution=SIDE)
    assert "hidden_states_norms.stage1.weight" in " ".join(loaded.notes)
    images = smooth_images(2, SIDE).double()
    with torch.inference_mode():
        stages = loaded.module.double().outputs(images)
        expected = module.double()(images).feature_maps
    for number, (stage, feature_map) in enumerate(zip(stages, expected, strict=True), 1):
        with torch.inference_mode():
            normed = module.hidden_states_norms[f"stage{number}"](stage)
        assert float((normed - feature_map).abs().max()) <= ROUNDING * float(feature_map.abs().max())


@pytest.mark.parametrize(
    "name", [*CLASSIFIERS, *BACKBONES, *(f"transformers {name}" for name in WITH_NORMS_OF_THEIR_OWN)]
)
def test_a_module_is_quantised_from_tensors(name: str, tmp_path: Path) -> None:
    if name in CLASSIFIERS:
        head, make = "classifier", CLASSIFIERS[name][1]
    elif name in BACKBONES:
        _, head, make = BACKBONES[name]
    else:
        head, make = "features", WITH_NORMS_OF_THEIR_OWN[name.partition(" ")[2]]
    module = drawn(make())
    result = edgeconvnext.quantize(
        module, calib=smooth_images(24, SIDE), target="onnx", head=head, effort="quick", output=tmp_path / "run"
    )
    notes = " ".join(result.report.notes)
    assert "The module was recognised by its tensors" in notes
    assert ("outputs is not part of the network" in notes) == (
        head == "features" and "Backbone" in name and "DINO" not in name
    )
    images = smooth_images(4, SIDE, seed=1)
    reference = edgeconvnext.load_model(module, head=head, resolution=SIDE)
    with torch.inference_mode():
        expected = reference.module.double().outputs(images.double())
        simulated = outputs_of(result.module(images))
    for wide, int8 in zip(expected, simulated, strict=True):
        sqnr_db = 10 * torch.log10(wide.square().mean() / (wide - int8).square().mean())
        assert sqnr_db > 20, (wide.shape, float(sqnr_db))


REFUSED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "convnext_atto_rms": ("RMS norms", lambda: timm.create_model("convnext_atto_rms")),
    "convnext_zepto_rms_ols": (r"RMS norms.*overlap_act", lambda: timm.create_model("convnext_zepto_rms_ols")),
    "overlap_act": ("overlap_act", lambda: timm.create_model("convnext_atto", stem_type="overlap_act")),
    "patch_size 2": ("patch_size=2", lambda: timm.create_model("convnext_atto", patch_size=2)),
    "hidden head": ("convnext_large_mlp", lambda: timm.create_model("convnext_atto", head_hidden_size=64)),
    "conv_bias": ("conv_bias=False", lambda: timm.create_model("convnext_atto", conv_bias=False)),
    "test_convnext3": ("kernel_sizes", lambda: timm.create_model("test_convnext3")),
    "test_convnext": (r"mlp\.fc1 and mlp\.fc2.*tanh", lambda: timm.create_model("test_convnext")),
    "silu": (r"mlp\.fc1 and mlp\.fc2", lambda: timm.create_model("convnext_atto", act_layer="silu")),
    "max pooling": ("another pooling", lambda: timm.create_model("convnext_atto", global_pool="max")),
    "output_stride": (
        "downsampling in front of stage 4",
        lambda: timm.create_model("convnext_atto", output_stride=16),
    ),
    "features_only": ("--head features", lambda: timm.create_model("convnext_atto", features_only=True)),
    "relu": (
        r"pwconv1 and pwconv2",
        lambda: of_transformers("ConvNextForImageClassification", "ConvNextConfig", hidden_act="relu"),
    ),
    "grey": (
        "takes 1 input channels and nothing says how they are normalised",
        lambda: timm.create_model("convnext_atto", in_chans=1),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_variant_is_refused_by_its_name(name: str) -> None:
    words, make = REFUSED[name]
    with pytest.raises(CheckpointError, match=words):
        edgeconvnext.load_model(drawn(make()), resolution=SIDE)


def test_a_dilated_backbone_is_refused_though_three_of_its_outputs_agree() -> None:
    module = drawn(timm.create_model("convnext_atto", features_only=True, output_stride=16))
    with pytest.raises(CheckpointError, match="downsampling in front of stage 4"):
        edgeconvnext.load_model(module, head="features", resolution=SIDE)


def test_one_channel_with_its_mean_and_std() -> None:
    module = drawn(timm.create_model("convnext_atto", in_chans=1))
    loaded = edgeconvnext.load_model(module, resolution=SIDE, mean=(0.5,), std=(0.5,))
    assert loaded.config.in_channels == 1
