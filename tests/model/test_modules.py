"""Modules in memory are recognised by their tensors, and refused where their forward computes something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from micro import CONFIG, micro_model
from torch import nn

import edgeconvnext
from edgeconvnext.errors import CheckpointError
from edgeconvnext.model.agreement import check_agreement
from edgeconvnext.model.in_memory import model_of, module_path, tensors_sha256
from edgeconvnext.model.loaded import LoadedModel
from tests.model.foreign_modules import (
    AuthorsConvNeXt,
    TimmBackbone,
    TimmConvNeXt,
    TorchvisionBackbone,
    TorchvisionConvNeXt,
    TransformersBackbone,
    drawn,
)

LIBRARIES = {"facebookresearch": AuthorsConvNeXt, "timm": TimmConvNeXt, "torchvision": TorchvisionConvNeXt}
SIZE = 16


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return micro_model()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 4 - 2


@pytest.mark.parametrize("layout", LIBRARIES)
def test_a_module_of_each_library_becomes_the_network_it_is(
    layout: str, model: LoadedModel, images: torch.Tensor
) -> None:
    module = LIBRARIES[layout](model)
    training = module.train().training
    loaded = model_of(module, resolution=SIZE)
    assert (loaded.layout, loaded.config) == (layout, CONFIG)
    agreement = check_agreement(module, loaded, images)
    assert 0 < agreement.error < agreement.tolerance < 1e-4
    with torch.inference_mode():
        # The largest logit is about 10; float32 sums of some hundred terms are off by about 1e-6 of it.
        assert torch.allclose(loaded.module(images), module.eval()(images), atol=1e-4)
    assert training and loaded.sha256 == tensors_sha256(model.module.state_dict())


@pytest.mark.parametrize(
    "library, layers", [(AuthorsConvNeXt, "pwconv1 and pwconv2"), (TimmConvNeXt, "mlp.fc1 and mlp.fc2")]
)
def test_another_activation_is_refused_and_the_place_is_named(
    library: type[nn.Module], layers: str, model: LoadedModel, images: torch.Tensor
) -> None:
    module = library(model, nn.GELU(approximate="tanh"))
    with pytest.raises(CheckpointError, match=f"block 1 of stage 1 .*between its layers {layers} .*tanh"):
        check_agreement(module, model_of(module, resolution=SIZE), images)


def test_other_parts_that_differ_are_named(model: LoadedModel, images: torch.Tensor) -> None:
    class Softmax(AuthorsConvNeXt):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).softmax(1)

    class Scaled(AuthorsConvNeXt):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * 0.9 + 0.3)

    class Pooled(AuthorsConvNeXt):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, :3]

    for kind, words in ((Softmax, "the blocks agree"), (Scaled, "the stem"), (Pooled, "classifier")):
        module = kind(model)
        with pytest.raises(CheckpointError, match=words):
            check_agreement(module, model_of(module, resolution=SIZE), images)
    module = TimmConvNeXt(model)
    with pytest.raises(CheckpointError, match="does not run on images of 3 x 3 x 1 x 1"):
        check_agreement(module, model_of(module, resolution=SIZE), images[:, :, :1, :1])


def test_epsilons_and_preprocessing_are_read_off_the_module(model: LoadedModel, images: torch.Tensor) -> None:
    module = TimmConvNeXt(model)
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-3
    loaded = model_of(module)
    assert (loaded.config.norm_eps, loaded.config.head_norm_eps) == (1e-3, 1e-3)
    assert loaded.preprocess == model.preprocess
    assert loaded.name == "convnext_micro"
    check_agreement(module, loaded, images)


def test_a_half_precision_module_and_a_state_dict_with_its_config(model: LoadedModel, images: torch.Tensor) -> None:
    half = AuthorsConvNeXt(model).half()
    check_agreement(half, model_of(half, resolution=SIZE), images)
    assert next(half.parameters()).dtype == torch.float16
    config = {
        "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.1] * 3, "std": [0.2] * 3},
        "model_args": {"norm_eps": 1e-5},
    }
    loaded = model_of((model.module.state_dict(), config))
    assert loaded.preprocess.mean == (0.1,) * 3
    assert loaded.config == dataclasses.replace(CONFIG, norm_eps=1e-5, head_norm_eps=1e-5)
    with torch.inference_mode():
        plain = model_of(model.module.state_dict(), resolution=SIZE)
        assert torch.equal(plain.module(images), model.module(images))


@pytest.mark.parametrize(
    "source, words", [(3, "no model"), ({}, "no tensors"), ({"epoch": 3}, "epoch"), (nn.Linear(2, 2), "Linear")]
)
def test_what_is_no_model_is_refused(source: object, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        model_of(source)


def test_a_backbone_is_compared_by_its_outputs_or_by_its_parts(images: torch.Tensor) -> None:
    plain = drawn(TimmBackbone())
    agreement = check_agreement(plain, model_of(plain, head="features", resolution=SIZE), images)
    assert not agreement.by_parts
    normed = drawn(TransformersBackbone())  # with a norm on each output
    agreement = check_agreement(normed, model_of(normed, head="features", resolution=SIZE), images)
    assert agreement.by_parts and 0 < agreement.error < agreement.tolerance < 1e-4


def test_a_stage_of_another_stride_is_refused_though_the_others_agree(images: torch.Tensor) -> None:
    module = drawn(TimmBackbone())
    module.stages[1].downsample[1].stride = (1, 1)
    with pytest.raises(CheckpointError, match=r"downsampling in front of stage 2 \(stages\.1\.downsample\)"):
        check_agreement(module, model_of(module, head="features", resolution=SIZE), images)


def test_load_model_takes_modules_and_tries_them(model: LoadedModel) -> None:
    loaded = edgeconvnext.load_model(TimmConvNeXt(model), head="gap")
    assert (loaded.layout, loaded.config.num_classes) == ("timm", 0)
    with pytest.raises(CheckpointError, match=r"mlp\.fc1 and mlp\.fc2"):
        edgeconvnext.load_model(TimmConvNeXt(model, nn.GELU(approximate="tanh")), head="gap")
    with pytest.raises(CheckpointError, match="has no head"):
        edgeconvnext.load_model(drawn(TimmBackbone()), resolution=SIZE)


def test_a_layer_is_the_one_with_the_shortest_name() -> None:
    module = nn.ModuleDict({"embeddings": nn.ModuleDict({"layernorm": nn.LayerNorm(2)}), "layernorm": nn.LayerNorm(2)})
    assert module_path(module, "layernorm.weight") == "layernorm"
    assert module_path(nn.ModuleDict({"backbone": module}), "layernorm.weight") == "backbone.layernorm"


def test_a_config_of_other_channels_says_nothing_of_mean_and_std() -> None:
    module = drawn(TimmBackbone())
    module.stem[0] = nn.Conv2d(1, 8, 2, 2)
    module.pretrained_cfg = {"input_size": (3, SIZE, SIZE), "mean": (0.485,) * 3, "std": (0.229,) * 3, "crop_pct": 0.9}
    with pytest.raises(CheckpointError, match="takes 1 input channels and nothing says how they are normalised"):
        model_of(module, head="features")
    preprocess = edgeconvnext.load_model(module, head="features", mean=(0.5,), std=(0.25,)).preprocess
    assert (preprocess.mean, preprocess.std, preprocess.crop_pct) == ((0.5,), (0.25,), 0.9)


def test_the_features_of_torchvision_stand_alone_and_in_a_detector(tmp_path: Path) -> None:
    backbone = drawn(TorchvisionBackbone())
    loaded = edgeconvnext.load_model(backbone.features, head="none", resolution=SIZE)
    assert loaded.layout == "torchvision (features)"
    detector = nn.ModuleDict(
        {
            "backbone": nn.ModuleDict({"body": backbone.features, "fpn": nn.Conv2d(16, 8, 1)}),
            "rpn": nn.Sequential(nn.Sequential(nn.Conv2d(8, 3, 1))),  # its first conv is named as a stem is
        }
    )
    torch.save(detector.state_dict(), tmp_path / "detector.pth")
    saved = edgeconvnext.load_model(tmp_path / "detector.pth", head="none", resolution=SIZE)
    assert "'backbone.body.'" in " ".join(saved.notes)
    tensors = saved.module.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded.module.state_dict().items())


@pytest.mark.parametrize("version", [1, 2])
def test_modules_of_transformers(version: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    kind = "ConvNext" if version == 1 else "ConvNextV2"
    config = getattr(transformers, f"{kind}Config")(
        depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32], num_labels=3, id2label={0: "a", 1: "b", 2: "c"}
    )
    module = getattr(transformers, f"{kind}ForImageClassification")(config)
    images = torch.rand(2, 3, 64, 64)
    loaded = model_of(module, resolution=64)
    assert loaded.layout == "transformers"
    assert loaded.labels is not None and loaded.labels.names == ("a", "b", "c")
    agreement = check_agreement(module, loaded, images)
    assert agreement.error <= agreement.tolerance
