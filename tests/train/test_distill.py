"""Label-free recovery: it helps, it resumes exactly, and it says what it cannot do."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.rewrite.exact import fold_layer_scale
from edgeconvnext.train import distill as distillation
from edgeconvnext.train import loop
from edgeconvnext.train.distill import DistillOptions, distill
from edgeconvnext.train.optimizer import recovery_optimizers
from edgeconvnext.train.world import own_device

OPTIONS = DistillOptions(epochs=2)


@pytest.fixture(scope="module")
def digits() -> LoadedModel:
    return load_model("digits")


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Without labels: recovery must not want them."""
    return dataclasses.replace(digits_set("calibration").take(200), labels=None)


@pytest.fixture(scope="module")
def hurt(digits: LoadedModel) -> ConvNeXt:
    """The network with as much noise on its weights as they have deviation."""
    return noisy(digits, 1.0)


def noisy(digits: LoadedModel, share: float) -> ConvNeXt:
    module = fold_layer_scale(digits.module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.add_(share * float(parameter.std()) * torch.randn(parameter.shape, generator=generator))
    return module


def logit_error(module: ConvNeXt, digits: LoadedModel) -> float:
    test = digits_set("test").take(100)
    pixels = [digits.preprocess.pixels(test.read(index)) for index in range(len(test))]
    batch = torch.stack([torch.from_numpy(digits.preprocess.normalize(p[None])[0]).permute(2, 0, 1) for p in pixels])
    with torch.no_grad():
        expected, found = digits.module(batch), module(batch)
    return float((expected - found).square().sum() / expected.square().sum())


def test_a_hurt_network_recovers_without_labels(digits: LoadedModel, images: ImageSet, hurt: ConvNeXt) -> None:
    before = copy.deepcopy(hurt.state_dict())
    options = dataclasses.replace(OPTIONS, epochs=10)
    result = distill(hurt, digits.module, images, digits.preprocess, options)
    assert logit_error(result.module, digits) < 0.5 * logit_error(hurt, digits)
    assert result.losses[-1] < result.losses[0]
    assert result.steps == 10 * (200 // 32) and not result.module.training
    for name, tensor in hurt.state_dict().items():  # the network handed in stays as it was
        assert torch.equal(tensor, before[name])


def test_a_student_near_the_teacher_takes_smaller_steps(
    digits: LoadedModel, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = noisy(digits, 0.03)
    assert 1e-6 < logit_error(near, digits) < 1e-3
    smaller = distill(near, digits.module, images, digits.preprocess, OPTIONS)
    monkeypatch.setattr(distillation, "FAR", 1e-9)
    full = distill(near, digits.module, images, digits.preprocess, OPTIONS)
    # Twelve steps at the full rate carry it away.
    assert logit_error(smaller.module, digits) < 0.2 * logit_error(full.module, digits)


def test_muon_trains_the_blocks_matrices_alone(digits: LoadedModel) -> None:
    module = copy.deepcopy(digits.module)
    muon, adamw = recovery_optimizers(module, 1e-3)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    by_muon, by_adamw = (
        {names[id(p)] for group in each.param_groups for p in group["params"]} for each in (muon, adamw)
    )
    assert by_muon == {name for name in names.values() if "pwconv" in name and name.endswith("weight")}
    assert by_adamw == set(names.values()) - by_muon and "head.weight" in by_adamw


def test_resumed_training_is_the_same_step_by_step(
    digits: LoadedModel, images: ImageSet, hurt: ConvNeXt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distill(hurt, digits.module, images, digits.preprocess, OPTIONS)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    steps = 0
    step = loop.Trainer.step

    def interrupted(trainer: loop.Trainer[torch.Tensor], parts: Sequence[torch.Tensor]) -> None:
        nonlocal steps
        if steps == 8:  # in the second epoch
            raise KeyboardInterrupt
        steps += 1
        step(trainer, parts)

    checkpoint = tmp_path / "recovery.pt"
    monkeypatch.setattr(loop.Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(hurt, digits.module, images, digits.preprocess, OPTIONS, checkpoint=checkpoint)
    monkeypatch.setattr(loop.Trainer, "step", step)
    resumed = distill(hurt, digits.module, images, digits.preprocess, OPTIONS, checkpoint=checkpoint)
    # On a GPU gradients are summed in whatever order they come: 4e-6 of the losses on an H100.
    exact = own_device().type == "cpu"
    assert resumed.steps == whole.steps
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-12 if exact else 1e-4)
    for name, tensor in whole.module.state_dict().items():
        assert not exact or torch.equal(tensor, resumed.module.state_dict()[name]), name


def test_a_budget_ends_training(digits: LoadedModel, images: ImageSet, hurt: ConvNeXt) -> None:
    options = dataclasses.replace(OPTIONS, epochs=1000, budget_minutes=1 / 60)
    result = distill(hurt, digits.module, images, digits.preprocess, options)
    assert 1 / 60 <= result.minutes < 1 and result.steps < 1000 * 6


def test_what_cannot_be_done_is_said(digits: LoadedModel, images: ImageSet, hurt: ConvNeXt, tmp_path: Path) -> None:
    with pytest.raises(RewriteError, match="too few"):
        distill(hurt, digits.module, images, digits.preprocess, OPTIONS, indices=[3])
    wild = dataclasses.replace(OPTIONS, learning_rate=1e30)
    with pytest.raises(RewriteError, match="diverged"):
        distill(hurt, digits.module, images, digits.preprocess, wild)
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(3)}, other)
    with pytest.raises(RewriteError, match="no checkpoint of this recovery"):
        distill(hurt, digits.module, images, digits.preprocess, OPTIONS, checkpoint=other)
    short = dataclasses.replace(OPTIONS, epochs=1)
    distill(hurt, digits.module, images, digits.preprocess, short, checkpoint=tmp_path / "mine.pt", indices=range(64))
    with pytest.raises(RewriteError, match="no checkpoint of this recovery"):  # other images
        distill(hurt, digits.module, images, digits.preprocess, short, checkpoint=tmp_path / "mine.pt")
