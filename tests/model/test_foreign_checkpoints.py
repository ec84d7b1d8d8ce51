"""Checkpoints as trainers leave them: any ending, any wrapper, any prefix, several networks, other things beside the weights."""

from __future__ import annotations

import argparse
import datetime
import json
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeconvnext.errors import CheckpointError
from edgeconvnext.model.convnext.layouts import LAYOUTS
from edgeconvnext.model.load import load_model
from tests.in_process import fails, run_command
from tests.micro import micro_model, write_micro

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return {name: tensor.clone() for name, tensor in micro_model().module.state_dict().items()}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def logits(images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return micro_model().module(images)


def in_layout(state: State, number: int) -> State:
    """Return the tensors under the names of another library."""
    names = dict(LAYOUTS[number].names(stages=2, blocks=1))
    return {names[name]: tensor for name, tensor in state.items()}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def other(state: State) -> State:
    """Return another network of the same sizes."""
    return {name: tensor * 0.5 for name, tensor in state.items()}


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def outputs(path: Path, images: torch.Tensor, **options: Any) -> Any:
    with torch.no_grad():
        return load_model(path, **options).module(images)


@pytest.mark.parametrize(
    "name", ["model_best.pth.tar", "epoch=3-step=100.ckpt", "model.pkl", "weights", "model.weights"]
)
def test_any_ending(state: State, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path, name: str) -> None:
    assert torch.equal(outputs(saved({"state_dict": state}, tmp_path / name), images), logits)


def test_safetensors_under_another_ending(
    state: State, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    save_file(state, tmp_path / "model.bin")
    assert torch.equal(outputs(tmp_path / "model.bin", images), logits)


def test_a_json_beside_a_double_ending(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path / "model_best.pth.tar")
    (tmp_path / "model_best.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, 32, 32]}}))
    assert load_model(path).preprocess.input_size == (32, 32)
    assert load_model(path).name == "model_best"


def test_a_folder_with_a_lone_checkpoint(
    state: State, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    saved({"state_dict": prefixed(state, "model.")}, tmp_path / "last.ckpt")
    saved({}, tmp_path / "optimizer.pt")
    assert torch.equal(outputs(tmp_path, images), logits)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state": state, "epoch": 3},
        lambda state: {"params": {"generator": state}},
        lambda state: {"checkpoint": {"epoch": 1, "weights": {"inner": state}}},
        lambda state: OrderedDict(state),
    ],
    ids=["one key", "two keys", "three keys", "ordered"],
)
def test_any_wrapper(
    state: State, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path, wrap: Callable[[State], Any]
) -> None:
    assert torch.equal(outputs(saved(wrap(state), tmp_path / "m.pth"), images), logits)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "encoder.", "backbone.", "model.net.encoder.", "a.b.c.d."])
@pytest.mark.parametrize("layout", [0, 1, 3, 4, 6, 8, 9])
def test_any_prefix(
    state: State, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path, prefix: str, layout: int
) -> None:
    path = saved(prefixed(in_layout(state, layout), prefix), tmp_path / "m.pth")
    model = load_model(path)
    with torch.no_grad():
        assert torch.allclose(model.module(images), logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
    if prefix == "a.b.c.d.":
        assert any("'a.b.c.d.'" in note or "'a.b.c.d.convnext.'" in note for note in model.notes)


def test_losses_and_metrics_are_left_out_with_a_note(
    state: State, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    beside = {"criterion.weight": torch.ones(10, 4), "train_acc.tp": torch.tensor(3), "model_mean": torch.zeros(3)}
    model = load_model(saved(prefixed(state, "model.") | beside, tmp_path / "m.ckpt"))
    with torch.no_grad():
        assert torch.equal(model.module(images), logits)
    (note,) = model.notes[:1]
    assert all(name in note for name in beside)


def test_a_decoder_beside_an_encoder_is_not_left_out_silently(
    state: State, images: torch.Tensor, tmp_path: Path
) -> None:
    encoder = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    path = saved(prefixed(encoder, "encoder.") | {"decoder.conv.weight": torch.ones(4, 4, 1, 1)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"beside it decoder\.conv\.weight.* --head features"):
        load_model(path)
    model = load_model(path, head="features")
    assert any("decoder.conv.weight" in note for note in model.notes)
    assert len(model.module(images)) == 2


class TestSeveralNetworks:
    @pytest.mark.parametrize(
        ("make", "default", "second"),
        [
            (lambda a, b: {"model": b, "model_ema": a}, "model_ema", "model"),
            (lambda a, b: {"student": b, "teacher": prefixed(a, "backbone.")}, "teacher", "student"),
            (lambda a, b: prefixed(b, "model.") | prefixed(a, "ema_model.module."), "ema_model", "model"),
            (lambda a, b: {"state_dict": prefixed(b, "net.") | prefixed(a, "net_ema.")}, "net_ema", "net"),
        ],
        ids=["keys", "student and teacher", "one dictionary", "wrapped"],
    )
    def test_the_default_is_named_and_another_can_be_taken(
        self,
        state: State,
        images: torch.Tensor,
        logits: torch.Tensor,
        tmp_path: Path,
        make: Callable[[State, State], Any],
        default: str,
        second: str,
    ) -> None:
        path = saved(make(state, other(state)), tmp_path / "m.pth")
        model = load_model(path)
        assert any(f"({default}, {second}); '{default}' was taken" in note for note in model.notes)
        assert torch.equal(outputs(path, images), logits)
        assert torch.equal(outputs(path, images, weights_from=default), logits)
        taken = load_model(path, weights_from=second)
        assert torch.equal(taken.module.head.weight, 0.5 * state["head.weight"])
        assert not any("several" in note for note in taken.notes)
        assert len({model.sha256, taken.sha256}) == 2

    def test_an_unknown_key_lists_the_known_ones(self, state: State, tmp_path: Path) -> None:
        path = saved({"model": state, "model_ema": other(state)}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match=r"no set of weights 'modle'.*Did you mean model.*model_ema, model"):
            load_model(path, weights_from="modle")

    def test_a_run_is_of_the_network_that_was_taken(self, state: State, tmp_path: Path) -> None:
        path = saved({"model": state, "model_ema": other(state)}, tmp_path / "m.pth")
        write_micro(tmp_path / "micro.safetensors")
        (tmp_path / "micro.json").rename(tmp_path / "m.json")
        run = tmp_path / "run"
        options = ("--model", path, "--calib", "digits", "--num-images", "12", "--effort", "quick", "--output", run)
        done = run_command("quantize", *options, "--weights-from", "model")
        assert done.returncode == 0, done.stderr
        config = json.loads((run / "manifest.json").read_text())["config"]
        assert config["model"]["weights_from"] == "model"
        assert run_command("validate", run, "--no-latency").returncode == 0
        fails(run_command("quantize", *options, "--weights-from", "model_ema"), 1, "a run of another model")

    def test_inspect_takes_it(self, state: State, tmp_path: Path) -> None:
        path = saved({"model": state, "model_ema": other(state)}, tmp_path / "m.pth")
        assert run_command("inspect", path, "--weights-from", "model").returncode == 0
        fails(run_command("inspect", path, "--weights-from", "optimizer"), 1, "no set of weights")


class TestHeads:
    @pytest.mark.parametrize(("layout", "head"), [(1, "head.fc"), (3, "classifier.2"), (6, "classifier")])
    def test_a_linear_in_a_sequence(
        self, state: State, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path, layout: int, head: str
    ) -> None:
        names = in_layout(state, layout)
        for part in ("weight", "bias"):
            names[f"{head}.1.{part}"] = names.pop(f"{head}.{part}")
        found = outputs(saved(names, tmp_path / "m.pth"), images)
        assert torch.allclose(found, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))

    def test_two_linears_are_refused_by_name(self, state: State, tmp_path: Path) -> None:
        names = in_layout(state, 1)
        weight = names.pop("head.fc.weight")
        names |= {"head.fc.1.weight": torch.eye(16), "head.fc.3.weight": weight}
        with pytest.raises(CheckpointError, match=r"head\.fc\.1\.weight, head\.fc\.3\.weight"):
            load_model(saved(names, tmp_path / "m.pth"))

    @pytest.mark.parametrize("layout", [0, 6, 7])
    def test_a_file_without_head_gives_its_stages(
        self, state: State, images: torch.Tensor, tmp_path: Path, layout: int
    ) -> None:
        stages = {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in ("norm", "head")}
        path = saved(prefixed(in_layout(stages, layout), "encoder.model."), tmp_path / "m.pth")
        with torch.no_grad():
            expected = micro_model().module.forward_stages(images)
        for ours, theirs in zip(outputs(path, images, head="features"), expected, strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(outputs(path, images, head="none"), expected[-1])
        for head in ("classifier", "gap"):
            with pytest.raises(CheckpointError, match=r"has no head.*--head features"):
                load_model(path, head=head)

    def test_a_network_without_classifier_is_an_embedding(
        self, state: State, images: torch.Tensor, tmp_path: Path
    ) -> None:
        names = in_layout({name: tensor for name, tensor in state.items() if not name.startswith("head.")}, 8)
        path = saved(names, tmp_path / "m.pth")
        with torch.no_grad():
            expected = micro_model().module.norm(micro_model().module.forward_stages(images)[-1].mean(dim=(2, 3)))
        assert torch.allclose(outputs(path, images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(outputs(path, images, head="gap"), outputs(path, images))


class TestShards:
    def write(self, state: State, folder: Path, safe: bool = True) -> None:
        names = list(state)
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        ending = "safetensors" if safe else "bin"
        files = [f"model-{number:05}-of-00002.{ending}" for number in (1, 2)]
        for file, half in zip(files, halves, strict=True):
            part = {name: state[name] for name in half}
            save_file(part, folder / file) if safe else torch.save(part, folder / file)
        where = {name: file for file, half in zip(files, halves, strict=True) for name in half}
        index = "model.safetensors.index.json" if safe else "pytorch_model.bin.index.json"
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))

    @pytest.mark.parametrize("safe", [True, False])
    def test_they_are_one_network(
        self, state: State, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path, safe: bool
    ) -> None:
        self.write(state, tmp_path, safe)
        assert torch.equal(outputs(tmp_path, images), logits)
        (index,) = tmp_path.glob("*.json")
        assert torch.equal(outputs(index, images), logits)

    def test_the_hash_is_of_all_shards(self, state: State, tmp_path: Path) -> None:
        self.write(state, tmp_path)
        before = load_model(tmp_path).sha256
        self.write({**state, "head.bias": state["head.bias"] + 1}, tmp_path)
        assert load_model(tmp_path).sha256 != before

    def test_a_missing_shard_is_named(self, state: State, tmp_path: Path) -> None:
        self.write(state, tmp_path)
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
            load_model(tmp_path)

    @pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors"])
    def test_a_shard_elsewhere_is_refused(self, state: State, tmp_path: Path, name: str) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"head.bias": name}}))
        with pytest.raises(CheckpointError, match="not a file beside it"):
            load_model(tmp_path)

    @pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{"])
    def test_an_index_that_does_not_hold(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(CheckpointError, match="index"):
            load_model(tmp_path)


class Config(argparse.Namespace):
    """A class of the user's own, which is refused by its name."""


class TestMetadata:
    @pytest.mark.parametrize(
        "value",
        [
            np.float64(85.0),
            np.float32(1.5),
            np.arange(3),
            np.dtype("float32"),
            argparse.Namespace(lr=1e-3, decay=None),
            Path("runs") / "best",
            datetime.datetime(2026, 1, 2, 3, 4),
            defaultdict(list, {"loss": [1.0]}),
            defaultdict(float),
            {1, 2},
            frozenset({"a"}),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_harmless_values_are_read_over(
        self, state: State, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path, value: Any
    ) -> None:
        for protocol in (2, 4):
            path = tmp_path / f"m{protocol}.pth"
            torch.save({"best": value, "state_dict": state, "more": [value]}, path, pickle_protocol=protocol)
            if protocol == 2:
                assert torch.equal(outputs(path, images), logits)

    def test_an_optimizer_beside_the_weights(
        self, state: State, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path
    ) -> None:
        module = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(module.parameters())
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        content = {"optimizer": optimizer.state_dict(), "model": state, "optimizer_states": [optimizer.state_dict()]}
        assert torch.equal(outputs(saved(content, tmp_path / "m.ckpt"), images), logits)

    def test_what_is_refused_is_named_with_its_key(self, state: State, tmp_path: Path) -> None:
        path = saved({"state_dict": state, "hyper_parameters": Config(lr=1.0)}, tmp_path / "m.pth")
        with pytest.raises(
            CheckpointError, match=r"test_foreign_checkpoints\.Config, at key 'hyper_parameters'"
        ) as caught:
            load_model(path)
        assert "whole model" not in str(caught.value)

    def test_a_whole_model_is_named_as_one(self, tmp_path: Path) -> None:
        path = saved(nn.Linear(2, 2), tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match="instead of the whole model"):
            load_model(path)

    def test_nothing_is_called(self, state: State, tmp_path: Path) -> None:
        class Runs:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "ran",))

        with pytest.raises((CheckpointError, pickle.PicklingError)):
            load_model(saved({"model": state, "x": Runs()}, tmp_path / "m.pth"))
        assert not (tmp_path / "ran").exists()


def test_pruning_masks_are_applied(state: State, images: torch.Tensor, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(state["stages.0.0.pwconv1.weight"].shape, generator=generator) > 0.5).float()
    names = dict(state)
    names["stages.0.0.pwconv1.weight_orig"] = names.pop("stages.0.0.pwconv1.weight")
    names["stages.0.0.pwconv1.weight_mask"] = mask
    model = load_model(saved(names, tmp_path / "m.pth"))
    assert torch.equal(
        model.module.get_parameter("stages.0.0.pwconv1.weight"), state["stages.0.0.pwconv1.weight"] * mask
    )
    assert any("pruning masks" in note for note in model.notes)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.ckpt"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("/annex/objects/SHA256E-s1--00.bin\n", "git annex get"),
    ],
)
def test_pointers_are_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(CheckpointError, match=words):
            load_model(path)


def test_a_link_into_the_annex_without_content(tmp_path: Path) -> None:
    (tmp_path / "m.pth").symlink_to(".git/annex/objects/xx/yy/SHA256E-s1--00.pth")
    with pytest.raises(CheckpointError, match="git annex get"):
        load_model(tmp_path / "m.pth")


def test_norms_without_bias_are_named(state: State, tmp_path: Path) -> None:
    names = {name: tensor for name, tensor in in_layout(state, 1).items() if "norm.bias" not in name}
    names.pop("stem.1.bias"), names.pop("stages.1.downsample.0.bias")
    with pytest.raises(CheckpointError, match="RMS norms"):
        load_model(saved(names, tmp_path / "m.pth"))
