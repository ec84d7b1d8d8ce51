"""Backbones: stage outputs and embeddings are what the classifier computes on the way to its logits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from edgeconvnext.errors import ModelConfigError
from edgeconvnext.model.build import build
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.convnext.network import ConvNeXtConfig
from edgeconvnext.model.describe import describe
from edgeconvnext.model.heads import require_answers, with_head
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.macs import layer_macs
from edgeconvnext.model.resnet.network import ResNet, ResNetConfig
from edgeconvnext.model.units import units_of

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def classifier() -> LoadedModel:
    return load_model("digits")


def resnet() -> LoadedModel:
    torch.manual_seed(0)
    config = ResNetConfig(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), hidden=(4, 8, 16, 32), stem_dim=8, num_classes=5)
    return dataclasses.replace(load_model("digits"), module=ResNet(config).eval(), config=config)


@pytest.mark.parametrize("make", [lambda: load_model("digits"), resnet], ids=["convnext", "resnet"])
@torch.no_grad()
def test_features_are_the_stage_outputs_at_strides_4_to_32(make) -> None:  # type: ignore[no-untyped-def]
    model = make()
    backbone = with_head(model, "features").module
    outputs = backbone(IMAGES)
    assert backbone.output_names == ("stage1", "stage2", "stage3", "stage4")
    assert [tuple(output.shape[2:]) for output in outputs] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for output, stage in zip(outputs, model.module.forward_stages(IMAGES), strict=True):
        torch.testing.assert_close(output, stage, rtol=0, atol=0)
    (last,) = with_head(model, "none").module.outputs(IMAGES)
    torch.testing.assert_close(last, outputs[-1], rtol=0, atol=0)
    assert with_head(model, "none").module.output_names == ("stage4",)


@pytest.mark.parametrize("make", [lambda: load_model("digits"), resnet], ids=["convnext", "resnet"])
@torch.no_grad()
def test_the_embedding_gives_the_logits_through_the_classifier(make) -> None:  # type: ignore[no-untyped-def]
    model = make()
    gap = with_head(model, "gap").module
    assert gap.output_names == ("embedding",)
    torch.testing.assert_close(model.module.head(gap(IMAGES)), model.module(IMAGES))


def test_a_backbone_shares_the_weights_and_leaves_the_classifier_alone(classifier: LoadedModel) -> None:
    backbone = with_head(classifier, "features")
    mine = dict(classifier.module.named_parameters())
    for name, parameter in backbone.module.named_parameters():
        assert parameter.data_ptr() == mine[name].data_ptr()
    assert classifier.config.num_classes == 10 and classifier.module.output_names == ("logits",)
    assert backbone.labels is None and backbone.sha256 == classifier.sha256
    assert with_head(classifier, "classifier") is classifier


@torch.no_grad()
def test_a_network_whose_head_norm_was_replaced_becomes_a_backbone(classifier: LoadedModel) -> None:
    config = classifier.config.replace(layer_scale=False, identity_norms=("stages.3.0.norm", "norm"))
    replaced = dataclasses.replace(classifier, module=build(config).eval(), config=config)
    backbone = with_head(replaced, "features")
    assert backbone.config.identity_norms == ("stages.3.0.norm",)
    assert with_head(replaced, "gap").config.identity_norms == config.identity_norms
    assert torch.equal(backbone.module(IMAGES)[-1], replaced.module.forward_stages(IMAGES)[-1])


def test_nothing_of_the_head_is_left_to_quantise_or_to_count(classifier: LoadedModel) -> None:
    backbone = with_head(classifier, "features").module
    assert "head" not in weighted_layers(backbone) and units_of(backbone)[-1].name == "stages.3.0"
    whole, macs = layer_macs(classifier.module, (32, 32)), layer_macs(backbone, (32, 32))
    assert macs == {layer: count for layer, count in whole.items() if layer != "head"}
    assert "norm" not in [row.name for row in describe(with_head(classifier, "features")).norms]


@torch.no_grad()
def test_a_saved_backbone_loads_as_one(classifier: LoadedModel, tmp_path: Path) -> None:
    backbone = with_head(classifier, "features")
    save_checkpoint(backbone, tmp_path / "backbone.safetensors")
    loaded = load_model(tmp_path / "backbone.safetensors")
    assert loaded.config == backbone.config
    for a, b in zip(loaded.module(IMAGES), backbone.module(IMAGES), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert load_model(tmp_path / "backbone.safetensors", head="none").module.output_names == ("stage4",)
    with pytest.raises(ModelConfigError, match="take --head none"):
        load_model(tmp_path / "backbone.safetensors", head="gap")


def test_what_is_judged_by_logits_is_refused_for_stages(classifier: LoadedModel) -> None:
    require_answers(classifier)
    with pytest.raises(ModelConfigError, match="ends with stage1, stage2, stage3, stage4"):
        require_answers(with_head(classifier, "features"))


@pytest.mark.parametrize("config", [ConvNeXtConfig, ResNetConfig])
def test_stages_have_no_classifier(config: type) -> None:
    with pytest.raises(ModelConfigError, match="num_classes must be 0"):
        config(depths=(1,), dims=(8,), num_classes=3, ends_with="stages") if config is ConvNeXtConfig else config(
            num_classes=3, ends_with="stages"
        )
