"""What describes weights may come from anybody, too: configurations in metadata, JSON files beside weights, names of models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import save

from edgeconvnext.errors import CheckpointError, ConfigFileError, EdgeConvNextError, ModelConfigError
from edgeconvnext.model import ConvNeXt, ConvNeXtConfig, hub, load_model
from edgeconvnext.model.build import config_from_json, config_json
from edgeconvnext.model.hub import parse_hub_name
from edgeconvnext.model.resnet.network import ResNetConfig

CONFIG = ConvNeXtConfig(depths=(1, 1, 1, 1), dims=(8, 16, 16, 24), num_classes=3)
SIZES = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 24], "num_classes": 3}
RESNET = {"network": "resnet", "depths": [1], "dims": [8], "hidden": [8]}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ConvNeXt(CONFIG).state_dict()


@pytest.fixture
def weights(state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    torch.save(state, tmp_path / "model.pth")
    return tmp_path / "model.pth"


CONFIGS: dict[str, tuple[object, str]] = {
    "four million blocks": ({**SIZES, "depths": [10**6] * 4}, "4 stages of 4,000,000 blocks"),
    "201 blocks": ({**SIZES, "depths": [1, 1, 198, 1]}, "4 stages of 201 blocks"),
    "17 stages": ({"depths": [1] * 17, "dims": [8] * 17}, "17 stages"),
    "10**12 channels": ({**SIZES, "dims": [8, 16, 16, 10**12]}, "1,000,000,000,000 were asked for"),
    "10**9 hidden": ({**SIZES, "hidden": [[1], [1], [1], [10**9]]}, "1,000,000,000 were asked for"),
    "no hidden": ({**SIZES, "hidden": [[1], [1], [1], [0]]}, "must all be at least 1"),
    "10**9 inputs": ({**SIZES, "in_channels": 10**9}, "1,000,000,000 were asked for"),
    "10**9 classes": ({**SIZES, "num_classes": 10**9}, "num_classes go up to 1,000,000"),
    "a kernel of 257": ({**SIZES, "kernel_size": 257}, "257 were asked for"),
    "patches of 256": ({**SIZES, "patch_size": 256}, "256 were asked for"),
    "half a channel": ({**SIZES, "dims": [8.5, 16, 16, 24]}, "dims: [8.5, 16, 16, 24] is of another type"),
    "a text": ({**SIZES, "depths": "1111"}, 'depths: "1111" is of another type'),
    "true classes": ({**SIZES, "num_classes": True}, "num_classes: true is of another type"),
    "version 3": ({**SIZES, "version": 3}, "version: 3 is of another type or not among the known values"),
    "nan": ({**SIZES, "norm_eps": float("nan")}, "norm_eps: NaN is of another type"),
    "infinite": ({**SIZES, "norm_eps": float("inf")}, "norm_eps: Infinity is of another type"),
    "below zero": ({**SIZES, "head_norm_eps": -1e-6}, "not below 0"),
    "another key": ({**SIZES, "\x1b[2J": 1}, r"\x1b[2J: a configuration has no such key"),
    "another norm": ({**SIZES, "identity_norms": ["\x1b[2J"]}, r"\x1b[2J, which is no norm"),
    "a list": ([], "is a JSON object, not list"),
    "another network": ({**SIZES, "network": "\x1b"}, r"There is no network \x1b"),
    "a network of lists": ({**SIZES, "network": [[]]}, "There is no network"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "nested values": ('{"depths":' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
    "5,000 digits": ('{"num_classes":' + "9" * 5000 + "}", "too many digits"),
    "4,000 digits": ('{"depths":[' + "9" * 4000 + '],"dims":[1]}', "at most 16 stages and 200 blocks"),
    "no JSON": ("{", "cannot be read"),
    "a ResNet of a million blocks": ({**RESNET, "depths": [10**6]}, "1,000,000 blocks"),
    "a ResNet of 10**9 channels": ({**RESNET, "stem_dim": 10**9}, "1,000,000,000 were asked for"),
    "a ResNet of nothing": ({"network": "resnet", "depths": [], "dims": [], "hidden": []}, "same number of stages"),
}


@pytest.mark.parametrize("config", CONFIGS)
def test_stored_configurations_are_refused_before_they_are_built(
    config: str, state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, words = CONFIGS[config]
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "model.safetensors").write_bytes(save(state, {"edgeconvnext.config": text}))
    monkeypatch.setattr("edgeconvnext.model.tensor_check.build_empty", lambda config: pytest.fail("it was built"))
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "model.safetensors")
    message = str(caught.value)
    assert words in message and "does not hold" in message and message.isprintable() and len(message) < 1000


@pytest.mark.parametrize(
    "config",
    [
        ConvNeXtConfig(
            depths=(1, 2), dims=(8, 16), version=2, hidden=((30,), (1, 2)), identity_norms=("norm",), norm_eps=0
        ),
        ConvNeXtConfig(depths=(50, 50, 50, 50), dims=(2**14,) * 4, num_classes=10**6, kernel_size=255, patch_size=255),
        ResNetConfig(groups=None, depthwise_first=True, kernel_size=7, num_classes=0, ends_with="stages"),
    ],
)
def test_configurations_within_the_bounds_come_back(config: ConvNeXtConfig | ResNetConfig) -> None:
    assert config_from_json(config_json(config)) == config


def test_the_largest_published_networks_are_far_within_the_bounds() -> None:
    for config in (
        ConvNeXtConfig(depths=(3, 3, 27, 3), dims=(352, 704, 1408, 2816), num_classes=21_841),
        ResNetConfig(depths=(3, 8, 36, 3)),
    ):
        assert sum(config.depths) * 4 <= 200 and max(config.dims) * 16 <= 2**16


# JSON beside the weights

TIMM: dict[str, object] = {
    "input_size": [3, 64, 64], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"
}  # fmt: skip
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("crop_pct", value) for value in (0, 5, -1, 1e-3, 5e-324, NAN, INFINITE, 10**400, "x", True, [])],
        *[("input_size", [3, value, value]) for value in (0, -5, 10**9, 10**400, 1.5, NAN, INFINITE, "a", None)],
        *[("input_size", value) for value in ([3, 64], [], "224", [10**30, 64, 64], [0, 64, 64])],
        *[("std", [value] * 3) for value in (0, -1, 1e-300, 1e300, NAN, INFINITE, "a")],
        *[("mean", [value] * 3) for value in (1e300, -1e300, NAN, INFINITE, "a")],
        *[(name, value) for name in ("mean", "std") for value in ([], [0.5], [0.5] * 4, 0.5)],
        *[("label_names", value) for value in ([1, 2, 3], ["a"] * 100_000, ["a"], "abc", [["a"]] * 3, {"a": 1})],
        ("label_descriptions", {"a": 1}),
        ("crop_mode", "\x1b[2J"),
        ("interpolation", "x" * 10_000),
    ],
)
def test_preprocessing_that_does_not_hold(key: str, value: object, weights: Path) -> None:
    weights.with_suffix(".json").write_text(json.dumps({"architecture": "a", "pretrained_cfg": {**TIMM, key: value}}))
    with pytest.raises((ConfigFileError, ModelConfigError)) as caught:
        load_model(weights)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested too deeply"),
        (b'{"crop_pct":' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"pretrained_cfg":{"label_names":["\\ud800","b","c"]}}', "not UTF-8"),
        (b"[]", "must hold a JSON object"),
        (b"", "is not valid JSON"),
        (b" " * (16 * 2**20 + 1), "at most 16,777,216 are read"),
    ],
)
def test_json_that_is_none(content: bytes, words: str, weights: Path) -> None:
    weights.with_suffix(".json").write_bytes(content)
    with pytest.raises(ConfigFileError) as caught:
        load_model(weights)
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_json_files_that_are_no_files(weights: Path) -> None:
    beside = weights.with_suffix(".json")
    os.mkfifo(beside)
    with pytest.raises(ConfigFileError, match="is a named pipe"):
        load_model(weights)
    beside.unlink()
    beside.symlink_to("/dev/zero")
    with pytest.raises(ConfigFileError, match="is a device"):
        load_model(weights)


@pytest.mark.parametrize(
    ("config", "preprocessor"),
    [
        *[({}, {"size": size}) for size in (0, -5, 10**9, 10**400, 1.5, NAN, INFINITE, "a", True, [])],
        *[({}, {"size": {"shortest_edge": edge}}) for edge in (0, -5, 10**9, 10**400, NAN, "a")],
        *[({}, {"size": {"height": 64, "width": width}}) for width in (0, -5, 10**9, NAN)],
        *[({}, {"image_processor_type": "X", "size": 64, "crop_size": crop}) for crop in (0, -5, 10**400, 128, [])],
        ({}, {"image_processor_type": "X", "size": 60_000, "crop_size": 32}),
        ({}, {"rescale_factor": INFINITE}),
        ({}, {"resample": 10**30}),
        ({}, {"image_std": [0, 0, 0]}),
        ({"layer_norm_eps": INFINITE}, {}),
        ({"hidden_act": "\x1b[2J" * 1000}, {}),
        *[({"id2label": {key: "a"}}, {}) for key in ("1", "-1", "00", "٣", "9" * 5000, "\x1b", "", "1.0")],
        *[({"id2label": value}, {}) for value in (["a"], {"0": 1}, {"0": "a", "2": "b"}, "a")],
    ],
)
def test_files_of_transformers(
    config: object, preprocessor: object, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "convnext", **config}))  # type: ignore[dict-item]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    with pytest.raises(EdgeConvNextError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000


# Names


@pytest.mark.parametrize(
    "name",
    [
        "a\0b", "~nosuchuser/model.pth", "x" * 5000, "x/" * 3000, "\x1b[31m", "a b/c d", "../x/y", "org/..", "../..", "@", "a/b@",
        "a/b@/etc/passwd", "a/b@../../x", "a/b@main/../..", "convnext_tiny@", "hf-hub:", "hf-hub:a", "a//b", "a/b/c", "💣/💣",
        "--output", "file:///etc/passwd", "https://example.com/model.pth", "convnext_tiny.\x1b",
    ],
)  # fmt: skip
def test_odd_names_of_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError) as caught:
        load_model(name)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1500


def test_revisions_that_lead_out_of_the_cache_are_no_names() -> None:
    for revision in ("/etc/passwd", "../../x", "main/../..", ".", "refs//pr"):
        assert parse_hub_name(f"org/name@{revision}") is None


# The hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_downloads_are_bounded(file: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MOST_CONFIG_BYTES", 1000)
    monkeypatch.setattr(hub, "MOST_WEIGHTS_BYTES", 1000)
    server = HubServer({"org/large": {"config.json": b"{}", "model.safetensors": b"", file: bytes(1001)}})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with server.running(), pytest.raises(CheckpointError, match=r"1,001 bytes or more, and at most 1,000 are fetched"):
        load_model("org/large")
    assert not any(method == "GET" and path.endswith(file) for method, path in server.requests)
    assert not list(cache.rglob(file))


def test_an_answer_without_an_end_is_cut_off() -> None:
    """What a server sends in chunks has no length that could be compared before."""
    bar = hub._bounded_progress("model.safetensors of org/name", 1000)(disable=True)
    for _ in range(10):
        bar.update(100)
    with pytest.raises(CheckpointError, match="1,001 bytes or more"):
        bar.update(1)


def test_only_weights_and_json_are_asked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that a repository holds for transformers' trust_remote_code stays there."""
    config = {"model_type": "convnext", "auto_map": {"AutoModel": "modeling.Evil"}, "custom_pipelines": {"a": {}}}
    files = {"config.json": json.dumps(config).encode(), "modeling.py": b"raise SystemExit", "model.safetensors": b"x"}
    server = HubServer({"org/code": files})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with server.running(), pytest.raises(CheckpointError):
        load_model("org/code")
    asked = {path.rpartition("/")[2] for _, path in server.requests}
    assert asked == {"config.json", "preprocessor_config.json", "model.safetensors"}
