"""Modules in memory are recognised by their tensors, and refused where their forward computes something else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from foreign_classifiers import AuthorsConvNeXt, TimmConvNeXt, TorchvisionConvNeXt
from micro import CONFIG, micro_model
from torch import nn

from edgeconvnext.errors import CheckpointError
from edgeconvnext.model.agreement import check_agreement
from edgeconvnext.model.in_memory import model_of, tensors_sha256
from edgeconvnext.model.loaded import LoadedModel

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
