"""Weights files: what trainers wrap around them is removed, what is broken or dangerous is refused in words."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import CheckpointError, ModelConfigError, RunDirectoryError
from edgeconvnext.model import ConvNeXt, ConvNeXtConfig, Labels, LoadedModel, load_model
from edgeconvnext.model.checkpoint import read_checkpoint, save_checkpoint

CONFIG = ConvNeXtConfig(depths=(1, 1, 1, 1), dims=(8, 16, 16, 24), num_classes=3)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ConvNeXt(CONFIG).state_dict()


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"state_dict": s, "epoch": 3, "args": argparse.Namespace(lr=1e-3)},
        lambda s: {"model_ema": {"module": s}, "optimizer": {"state": {}}},
        lambda s: {"model": {f"module.{name}": tensor for name, tensor in s.items()}},
        lambda s: {f"_orig_mod.module.{name}": tensor for name, tensor in s.items()},
        lambda s: {"n_averaged": torch.tensor(5), **{f"module.{name}": tensor for name, tensor in s.items()}},
    ],
)
def test_wrappers_and_prefixes_are_removed(wrap, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(wrap(state), tmp_path / "model.pth")
    model = load_model(tmp_path / "model.pth")
    assert model.config == CONFIG
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_averaged_weights_are_taken_and_said(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": averaged}, tmp_path / "model.pth")
    model = load_model(tmp_path / "model.pth")
    assert torch.equal(model.module.head.bias, averaged["head.bias"])  # type: ignore[union-attr]
    assert "'model_ema' was taken" in model.notes[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_other_float_types_become_float32(
    dtype: torch.dtype, suffix: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    half = {name: tensor.to(dtype) for name, tensor in state.items()}
    path = tmp_path / f"model{suffix}"
    save_file(half, path) if suffix == ".safetensors" else torch.save(half, path)
    model = load_model(path)
    assert torch.equal(model.module.head.weight, half["head.weight"].float())  # type: ignore[union-attr]


def test_missing_empty_truncated_and_corrupt_files(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    assert "no weights file" in refused(tmp_path / "absent.pth")
    for suffix in (".pth", ".safetensors"):
        good, bad = tmp_path / f"good{suffix}", tmp_path / f"bad{suffix}"
        save_file(state, good) if suffix == ".safetensors" else torch.save(state, good)
        content = good.read_bytes()
        bad.write_bytes(b"")
        assert "is empty" in refused(bad)
        for length in (7, 100, len(content) // 2, len(content) - 1):
            bad.write_bytes(content[:length])
            assert "truncated" in refused(bad)
        bad.write_bytes(os.urandom(5000))
        assert "damaged" in refused(bad)
        bad.write_text("<html>404</html>")
        assert "again" in refused(bad)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_model(tmp_path / "old.pth")
    content = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "old.pth").write_bytes(content[: len(content) // 2])
    assert "truncated" in refused(tmp_path / "old.pth")


def test_a_flipped_bit_is_found(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    place = content.find(state["stages.3.0.pwconv1.weight"].numpy().tobytes()[:64])
    content[place + 40] ^= 0x10
    path.write_bytes(content)
    assert "checksum" in refused(path)


class _RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.marker),))


def test_code_in_a_pickle_is_refused_and_does_not_run(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"model": state, "hook": _RunsCode(marker)}, tmp_path / "model.pth")
    message = refused(tmp_path / "model.pth")
    assert "would run code" in message and "mkdir" in message and "at key 'hook'" in message
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(_RunsCode(marker), protocol=2))
    assert "would run code" in refused(tmp_path / "plain.bin")
    torch.save(ConvNeXt(CONFIG), tmp_path / "whole.pt")
    assert "state_dict()" in refused(tmp_path / "whole.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("names", "likeness"),
    [
        (
            ["cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight", "head.weight"],
            "a Vision Trans",
        ),
        (["conv_proj.weight", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"], "a Vision Transformer"),
        (["resnet.encoder.stages.0.layers.0.layer.0.convolution.weight", "classifier.1.weight"], "a ResNet"),
        (["layers.0.blocks.0.attn.relative_position_bias_table", "norm.weight", "head.weight"], "a Swin Transformer"),
        (["visual.trunk.stem.0.weight", "text.token_embedding.weight"], "a CLIP model"),
        (["something.weight"], "match no known layout"),
    ],
)
def test_other_networks_are_recognised(names: list[str], likeness: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.pth")
    message = refused(tmp_path / "model.pth")
    assert "not a ConvNeXt" in message and likeness in message


def test_nan_and_infinite_weights_are_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state["stages.1.0.pwconv1.weight"][0, 0] = float("nan")
    state["head.bias"][1] = float("inf")
    torch.save(state, tmp_path / "model.pth")
    message = refused(tmp_path / "model.pth")
    assert "NaN or infinite weights in 2 of" in message
    assert "stages.1.0.pwconv1.weight" in message and "head.bias" in message


def test_integer_weights_are_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state | {"head.weight": torch.zeros(3, 24, dtype=torch.int8)}, tmp_path / "model.pth")
    assert "already quantised?): head.weight" in refused(tmp_path / "model.pth")


def test_files_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, tmp_path / "model.pth")
    assert "holds no tensors (its keys: epoch, model)" in refused(tmp_path / "model.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "holds a list" in refused(tmp_path / "list.pth")
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert "no complete PyTorch checkpoint" in refused(tmp_path / "model.onnx")


def loaded(config: ConvNeXtConfig, **changes: object) -> LoadedModel:
    torch.manual_seed(1)
    preprocess = Preprocess((64, 32), 1.0, "squash", "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    labels = Labels(("n1", "n2", "n2"), ("crane", "a bird", "a machine"))
    model = LoadedModel(ConvNeXt(config).eval(), config, preprocess, labels, "small", "memory", "memory", "")
    return dataclasses.replace(model, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, layer_scale=False, head_norm="before_pool", norm_eps=1e-5, head_norm_eps=1e-12),
        dataclasses.replace(CONFIG, version=2, layer_scale=False, hidden=((20,), (64,), (30,), (96,))),
        dataclasses.replace(CONFIG, stem="overlap_tiered", kernel_size=5, patch_size=4, num_classes=3),
    ],
)
def test_saved_models_come_back_whole(config: ConvNeXtConfig, tmp_path: Path) -> None:
    model = loaded(config)
    save_checkpoint(model, tmp_path / "small.safetensors")
    again = load_model(tmp_path / "small.safetensors")
    assert (again.config, again.preprocess, again.labels, again.name) == (
        config,
        model.preprocess,
        model.labels,
        "small",
    )
    assert again.notes == () and again.layout == "edgeconvnext"
    for name, tensor in again.module.state_dict().items():
        assert torch.equal(tensor, model.module.state_dict()[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.json", "small.safetensors"]


def test_a_saved_config_that_contradicts_the_tensors(tmp_path: Path) -> None:
    config = {**dataclasses.asdict(CONFIG), "depths": [1, 1, 1, 2]}
    del config["hidden_widths"]
    metadata = {"edgeconvnext.config": json.dumps(config)}
    save_file(ConvNeXt(CONFIG).state_dict(), tmp_path / "model.safetensors", metadata)
    assert "9 missing: stages.3.1.gamma" in refused(tmp_path / "model.safetensors")
    metadata = {"edgeconvnext.config": json.dumps({**config, "depth": 3})}
    save_file(ConvNeXt(CONFIG).state_dict(), tmp_path / "model.safetensors", metadata)
    assert "edgeconvnext.config that does not hold" in refused(tmp_path / "model.safetensors")


def test_saving_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(30, "Read-only file system", str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RunDirectoryError, match="read-only"):
        save_checkpoint(loaded(CONFIG), tmp_path / "small.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_tensors_share_no_memory_with_the_file(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    checkpoint = read_checkpoint(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(checkpoint.tensors["head.weight"], state["head.weight"])


def test_resolution_must_fit_the_network(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ModelConfigError, match="Use --resolution 224 or 256"):
        load_model(tmp_path / "model.pth", resolution=230)
    assert load_model(tmp_path / "model.pth", resolution=96).preprocess.input_size == (96, 96)
