"""Finding a model by path, folder or name, and what is assumed where nothing is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgeconvnext.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from edgeconvnext.errors import CheckpointError, ConfigFileError, ModelConfigError
from edgeconvnext.model import ConvNeXt, ConvNeXtConfig, Labels, load_model
from edgeconvnext.model.load import shipped_models

CONFIG = ConvNeXtConfig(depths=(1, 1, 1, 1), dims=(8, 16, 16, 24), num_classes=3)
PREPROCESS = {
    "input_size": [3, 64, 96],
    "crop_pct": 0.9,
    "crop_mode": "squash",
    "interpolation": "bilinear",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(ConvNeXt(CONFIG).state_dict(), tmp_path / "my model (1).pth")
    return tmp_path / "my model (1).pth"


def describe(weights: Path, document: Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    weights.with_suffix(".json").write_text(text, encoding="utf-8")


def test_a_bare_file_gets_the_defaults_and_says_so(weights: Path) -> None:
    model = load_model(weights)
    assert model.preprocess == Preprocess((224, 224), 0.875, "center", "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    assert model.labels is None and model.name == "my_model_1"
    assert "no JSON lies beside the weights: input_size 224x224, crop_pct 0.875" in model.notes[0]


def test_flags_come_before_the_json_and_the_json_before_defaults(weights: Path) -> None:
    describe(weights, {"pretrained_cfg": PREPROCESS})
    given = load_model(weights)
    assert given.preprocess == Preprocess((64, 96), 0.9, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert given.notes == ()
    changed = load_model(str(weights), resolution=128, crop_pct=1.0, mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0])
    assert changed.preprocess == Preprocess((128, 128), 1.0, "squash", "bilinear", (0.1, 0.2, 0.3), (1.0,) * 3)
    describe(weights, {"pretrained_cfg": {"input_size": [3, 64, 64]}})
    assert (
        ".json does not say: crop_pct 0.875 (resize to 73), interpolation bicubic, mean ImageNet's"
        in load_model(weights).notes[0]
    )


def test_labels(weights: Path) -> None:
    names = {"label_names": ["n01", "n02", "n03"], "label_descriptions": {"n01": "tench", "n03": "church"}}
    for document in ({**names}, {"pretrained_cfg": names}):
        describe(weights, document)
        assert load_model(weights).labels == Labels(("n01", "n02", "n03"), ("tench", "n02", "church"))
    describe(weights, {"label_names": ["a", "b", "c"], "label_descriptions": ["x", "y", "z"]})
    assert load_model(weights).labels == Labels(("a", "b", "c"), ("x", "y", "z"))
    describe(weights, {"label_names": ["a", "b"]})
    with pytest.raises(ConfigFileError, match=r"names 2 classes; .* has 3"):
        load_model(weights)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ('{"pretrained_cfg": ', "not valid JSON"),
        ("[1, 2]", "must hold a JSON object"),
        (
            {"pretrained_cfg": {"crop_pct": "0.9"}},
            "pretrained_cfg.crop_pct: input should be a valid number (found '0.9')",
        ),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop_pct: input should be greater than 0"),
        ({"pretrained_cfg": {"interpolation": "magic"}}, "interpolation: input should be 'nearest'"),
        ({"pretrained_cfg": {"input_size": 224}}, "input_size"),
        ({"pretrained_cfg": {"input_size": [1, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}}, "says the input has 1"),
        ({"label_names": ["a", "b", "c"], "label_descriptions": ["x"]}, "3 label_names and 1 label_descriptions"),
        ({"model_type": "convnext", "id2label": {"zero": "a"}}, "class numbers"),
        ({"model_type": "convnext", "id2label": {"0": "a", "2": "b"}}, "without gaps"),
    ],
)
def test_json_that_does_not_hold(document: Any, complaint: str, weights: Path) -> None:
    describe(weights, document)
    with pytest.raises(ConfigFileError) as caught:
        load_model(weights)
    assert complaint in str(caught.value) and str(weights.with_suffix(".json")) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_make_no_preprocessing(weights: Path) -> None:
    for flags, complaint in (
        ({"mean": (0.5,), "std": (0.5,)}, "the network takes 3 channels"),
        ({"std": (0.0, 1.0, 1.0)}, "above zero"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"resolution": 0}, "input_size"),
        ({"resolution": 100}, "multiples of 32"),
    ):
        with pytest.raises(ModelConfigError, match=complaint):
            load_model(weights, **flags)  # type: ignore[arg-type]


def test_an_unusual_number_of_channels_needs_its_mean_and_std(tmp_path: Path) -> None:
    config = ConvNeXtConfig((1, 1), (8, 16), 3, in_channels=1)
    save_file(ConvNeXt(config).state_dict(), tmp_path / "grey.safetensors")
    with pytest.raises(CheckpointError, match="takes 1 input channels and nothing says"):
        load_model(tmp_path / "grey.safetensors")
    assert load_model(tmp_path / "grey.safetensors", mean=(0.5,), std=(0.5,)).preprocess.in_channels == 1


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        ({"size": 64, "crop_pct": 0.8, "resample": 2}, Preprocess((64, 64), 0.8, "center", "bilinear")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.8, "resample": 3}, Preprocess((384, 384), 1.0, "squash")),
        (
            {"size": {"shortest_edge": 64}, "do_normalize": False},
            Preprocess((64, 64), 0.875, mean=(0.0,) * 3, std=(1.0,) * 3),
        ),
        (
            {
                "image_processor_type": "BitImageProcessor",
                "size": {"shortest_edge": 128},
                "crop_size": {"height": 96, "width": 96},
            },
            Preprocess((96, 96), 0.75),
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 96}},
            Preprocess((64, 96), 1.0, "squash"),
        ),
    ],
)
def test_a_folder_as_transformers_saves_it(preprocessor: dict[str, Any], expected: Preprocess, weights: Path) -> None:
    folder = weights.parent / "convnext-mine"
    folder.mkdir()
    weights.rename(folder / "pytorch_model.bin")
    save_file(ConvNeXt(CONFIG).state_dict(), folder / "model.safetensors")
    labels = {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}
    (folder / "config.json").write_text(json.dumps({"model_type": "convnext", "layer_norm_eps": 1e-7, **labels}))
    normal = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    (folder / "preprocessor_config.json").write_text(json.dumps({**normal, **preprocessor}))
    model = load_model(folder)
    assert model.preprocess == replace(expected, crop_offset="floor")
    assert model.labels is None  # transformers' placeholders name nothing
    assert (model.name, model.config.head_norm_eps, model.config.norm_eps) == ("convnext-mine", 1e-7, 1e-6)


def test_preprocessing_that_cannot_be_followed(weights: Path) -> None:
    folder = weights.parent
    (folder / "config.json").write_text('{"model_type": "convnext"}')
    (folder / "preprocessor_config.json").write_text('{"size": 64, "rescale_factor": 1.0}')
    with pytest.raises(ConfigFileError, match="rescale_factor"):
        load_model(folder)
    (folder / "preprocessor_config.json").write_text('{"size": 64, "resample": 5}')
    with pytest.raises(ConfigFileError, match="resample 5"):
        load_model(folder)


@pytest.mark.parametrize(
    "document",
    [
        {"architecture": "test_convnext3"},
        {"architecture": "convnext_tiny", "model_args": {"act_layer": "silu"}},
        {"model_type": "convnext", "hidden_act": "relu"},
    ],
)
def test_other_activations_are_refused(document: dict[str, Any], weights: Path) -> None:
    describe(weights, document)
    with pytest.raises(CheckpointError, match="only GELU"):
        load_model(weights)


def test_folders_without_a_clear_choice(weights: Path) -> None:
    assert load_model(weights.parent).name == weights.parent.name
    torch.save({}, weights.parent / "second.pth")
    with pytest.raises(CheckpointError, match="holds 2 weights files"):
        load_model(weights.parent)
    (weights.parent / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(weights.parent / "empty")


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(CheckpointError, match="Did you mean convnextv2_atto"):
        load_model("convnextv2_ato")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_model("runs/first/model")


def test_a_mistyped_path_does_not_go_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_model("models/mine")


def test_shipped_models_load_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # a folder of images called like the model does not hide it
    for name in shipped_models():
        model = load_model(name)
        assert model.name == name and model.labels is not None
        assert model.module(torch.zeros(1, 3, *model.preprocess.input_size)).shape == (1, model.config.num_classes)


@pytest.mark.data
def test_the_reference_checkpoint(atto_weights: Path) -> None:
    model = load_model(atto_weights)
    assert model.layout == "facebookresearch" and model.config.dims == (40, 80, 160, 320)
    assert model.labels is not None and model.labels.descriptions[0] == "tench"
    assert model.preprocess.input_size == (128, 128) and model.notes == ()
