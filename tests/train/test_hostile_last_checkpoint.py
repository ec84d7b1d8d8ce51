"""A training folder from anybody: `last.ckpt` runs nothing, and what training cannot go on from is refused when it is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeconvnext.errors import TrainingError
from edgeconvnext.model import ConvNeXt, ConvNeXtConfig
from edgeconvnext.train.loop import LoopSettings, Trainer
from edgeconvnext.train.world import ALONE

CONFIG = ConvNeXtConfig(depths=(1,), dims=(8,), num_classes=2)


def trainer() -> Trainer[torch.Tensor]:
    torch.manual_seed(0)
    module = ConvNeXt(CONFIG)
    optimizer = torch.optim.AdamW([{"params": list(module.parameters()), "rate": 1e-3}])
    settings = LoopSettings("Training", 1, 4, lambda progress: 1.0)
    return Trainer(module, [optimizer], lambda part, step, number: module(part).square().mean(), settings, ALONE)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after one step."""
    path = tmp_path_factory.mktemp("begun") / "last.ckpt"
    first = trainer()
    first.step([torch.ones(2, 3, 8, 8)])
    first.save(path, "mine")
    return path


def test_training_goes_on_exactly(begun: Path) -> None:
    again, straight = trainer(), trainer()
    again.load(begun, "mine")
    straight.step([torch.ones(2, 3, 8, 8)])
    for each in (again, straight):
        each.step([torch.full((2, 3, 8, 8), 0.5)])
    assert again.steps == straight.steps == 2
    for ours, theirs in zip(again.module.parameters(), straight.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class _Touches:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("archive", [True, False])
def test_a_planted_call_does_not_run(archive: bool, begun: Path, tmp_path: Path) -> None:
    state = torch.load(begun, weights_only=True)
    state["notes"]["hook"] = _Touches(tmp_path / "ran")
    torch.save(state, tmp_path / "last.ckpt", _use_new_zipfile_serialization=archive)
    with pytest.raises(TrainingError, match=r"no checkpoint of this training; delete it .* would run code"):
        trainer().load(tmp_path / "last.ckpt", "mine")
    assert not (tmp_path / "ran").exists()


def _first_moment(state: dict[str, Any]) -> dict[str, Any]:
    return next(iter(state["optimizers"][0]["state"].values()))  # type: ignore[no-any-return]


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "identity": lambda state: state.update(identity="another"),
    "no identity": lambda state: state.pop("identity"),
    "steps as text": lambda state: state.update(steps="1"),
    "steps below zero": lambda state: state.update(steps=-1),
    "time": lambda state: state.update(spent_s=float("nan")),
    "endless time": lambda state: state.update(spent_s=float("inf")),
    "losses": lambda state: state.update(losses=["a"]),
    "losses as text": lambda state: state.update(losses="ab"),
    "a loss": lambda state: state.update(losses=[float("nan")]),
    "loss of the epoch": lambda state: state.update(epoch_loss=None),
    "notes": lambda state: state.update(notes=[1]),
    "nested": lambda state: state.update(notes=_nested(200)),
    "weights": lambda state: state["module"].pop("head.bias"),
    "shape": lambda state: state["module"].update({"head.bias": torch.zeros(3)}),
    "expanded": lambda state: state["module"].update({"head.bias": torch.zeros(1).expand(2**40)}),
    "sparse": lambda state: state["module"].update({"head.bias": torch.zeros(2).to_sparse()}),
    "no weights": lambda state: state.update(module=None),
    "no optimizers": lambda state: state.update(optimizers=[]),
    "optimizer": lambda state: state.update(optimizers=[None]),
    "betas": lambda state: state["optimizers"][0]["param_groups"][0].update(betas="ab"),
    "rate": lambda state: state["optimizers"][0]["param_groups"][0].pop("rate"),
    "rate as text": lambda state: state["optimizers"][0]["param_groups"][0].update(rate="fast"),
    "parameters": lambda state: state["optimizers"][0]["param_groups"][0].update(params=[0] * 3),
    "moment": lambda state: _first_moment(state).update(exp_avg=torch.zeros(7)),
    "moments of nothing": lambda state: state["optimizers"][0]["state"].update({10**6: {"exp_avg": torch.zeros(7)}}),
    "scaler": lambda state: state.update(scaler=3),
}  # fmt: skip


def _nested(levels: int) -> dict[str, Any]:
    return {"a": _nested(levels - 1)} if levels else {}


@pytest.mark.parametrize("change", CHANGES)
def test_what_training_cannot_go_on_from_is_refused(change: str, begun: Path, tmp_path: Path) -> None:
    state = torch.load(begun, weights_only=True)
    CHANGES[change](state)
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(TrainingError, match="no checkpoint of this training"):
        trainer().load(tmp_path / "last.ckpt", "mine")
