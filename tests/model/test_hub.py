"""Models by hub name, against a local server that speaks the hub's protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, HubServer
from safetensors.torch import load_file, save

from edgeconvnext.errors import CheckpointError
from edgeconvnext.model import load_model
from edgeconvnext.model.hub import parse_hub_name

FIXTURES = Path(__file__).parent.parent / "fixtures" / "layouts"
TIMM_CONFIG = {
    "architecture": "convnext_tiny",
    "num_classes": 11,
    "pretrained_cfg": {
        "input_size": [3, 64, 64],
        "crop_pct": 0.95,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    },
}
TRANSFORMERS_CONFIG = {
    "model_type": "convnextv2",
    "architectures": ["ConvNextV2ForImageClassification"],
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "id2label": {str(index): f"thing {index}" for index in range(11)},
}
PREPROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 64},
    "crop_pct": 0.875,
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def weights(fixture: str) -> dict[str, torch.Tensor]:
    tensors = load_file(FIXTURES / f"{fixture}.safetensors")
    return {name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")}


def pickled(tensors: dict[str, torch.Tensor], folder: Path) -> bytes:
    torch.save(tensors, folder / "weights.bin")
    return (folder / "weights.bin").read_bytes()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """Three repositories: timm's, transformers' with both files, and one with nothing of use."""
    # Read when huggingface_hub is imported, so the environment comes too late here; test_a_fresh_process goes that way.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    timm, transformers = save(weights("timm_conv")), pickled(weights("transformers_v2"), tmp_path)
    server = HubServer(
        {
            "timm/convnext_tiny.in12k_ft_in1k": {
                "config.json": json.dumps(TIMM_CONFIG).encode(),
                "model.safetensors": timm,
                "pytorch_model.bin": b"never asked for",
            },
            "someone/convnextv2-small": {
                "config.json": json.dumps(TRANSFORMERS_CONFIG).encode(),
                "preprocessor_config.json": json.dumps(PREPROCESSOR).encode(),
                "pytorch_model.bin": transformers,
            },
            "someone/without-config": {"model.safetensors": timm},
            "someone/empty": {"README.md": b"nothing here"},
        }
    )
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return server


def test_timm_repository_by_preset_name(server: HubServer) -> None:
    with server.running():
        model = load_model("convnext_tiny")
    assert (model.name, model.layout) == ("convnext_tiny.in12k_ft_in1k", "timm")
    assert model.source == f"timm/convnext_tiny.in12k_ft_in1k@{COMMIT[:12]}"
    assert (model.preprocess.crop_pct, model.preprocess.mean, model.notes) == (0.95, (0.5, 0.5, 0.5), ())
    assert not any("pytorch_model.bin" in path for _, path in server.requests)


def test_transformers_repository(server: HubServer) -> None:
    with server.running():
        model = load_model("hf-hub:someone/convnextv2-small@main")
    assert model.layout == "transformers" and model.config.version == 2
    assert model.labels is not None and model.labels.names[3] == "thing 3"
    assert (model.preprocess.input_size, model.preprocess.crop_pct) == ((64, 64), 0.875)


def test_a_second_load_needs_no_server(server: HubServer) -> None:
    names = ("convnext_tiny", "someone/convnextv2-small", "someone/without-config")
    with server.running():
        first = [load_model(name, resolution=64) for name in names]
    asked = len(server.requests)
    second = [load_model(name, resolution=64) for name in names]
    assert [model.sha256 for model in second] == [model.sha256 for model in first]
    assert [model.preprocess for model in second] == [model.preprocess for model in first]
    assert len(server.requests) == asked


def test_offline_without_a_cached_copy(server: HubServer) -> None:
    with server.running():
        pass
    with pytest.raises(CheckpointError) as caught:
        load_model("facebook/convnext-tiny-224")
    message = str(caught.value)
    assert caught.value.exit_code == 1 and "\n" not in message
    assert server.url in message and "HF_ENDPOINT" in message and "digits" in message


def test_repositories_and_revisions_that_do_not_exist(server: HubServer) -> None:
    with server.running():
        with pytest.raises(CheckpointError, match="no repository someone/absent"):
            load_model("someone/absent")
        with pytest.raises(CheckpointError, match="no revision 'v9'"):
            load_model("someone/empty@v9")
        with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
            load_model("someone/empty")
        with pytest.raises(CheckpointError, match="is no hub name"):
            load_model("some..one/model")


def test_names() -> None:
    assert parse_hub_name("timm/convnext_tiny.fb_in1k") == ("timm/convnext_tiny.fb_in1k", None)
    assert parse_hub_name("hf-hub:timm/a@refs/pr/1") == ("timm/a", "refs/pr/1")
    assert parse_hub_name("runs/first/model") is None
    assert parse_hub_name("convnext_tiny") is None


def test_a_fresh_process_honours_the_environment(server: HubServer, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    code = "from edgeconvnext.model import load_model; print(load_model('convnext_tiny').name)"
    with server.running():
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
    assert done.stdout.strip() == "convnext_tiny.in12k_ft_in1k", done.stderr
    assert (tmp_path / "home" / "hub").is_dir()
