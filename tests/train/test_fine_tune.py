"""Fine-tuning: from the digits network to a few of its classes, faster than from scratch and with what it knew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.label_names import Labels
from edgeconvnext.errors import ModelConfigError
from edgeconvnext.model.load import load_model
from edgeconvnext.train.networks import with_classes
from edgeconvnext.train.recipe import Recipe, choose_recipe
from edgeconvnext.train.training import TrainRequest, count_right, train_model

KEPT = (3, 5, 8)


def shapes(split: str) -> ImageSet:
    """Three of the digits under other names: classes the network has never heard of."""
    whole = digits_set(split)  # type: ignore[arg-type]
    assert whole.labels is not None
    chosen = whole.select([index for index, label in enumerate(whole.labels) if label in KEPT])
    assert chosen.labels is not None
    labels = tuple(KEPT.index(label) for label in chosen.labels)
    return dataclasses.replace(chosen, labels=labels, class_names=("three", "five", "eight"))


def recipe(**changes: object) -> Recipe:
    given = {"sizes": (32,), "crop_pct": 1.0, "epochs": 4, "batch_size": 20, "flip": 0.0, "rand_augment": 0.0}
    return choose_recipe("fine-tune", given | {"rate_batch": 20, "warm_up_epochs": 0.5} | changes)


def test_a_trained_network_learns_other_classes(tmp_path: Path) -> None:
    images, test = shapes("calibration"), shapes("test")
    request = TrainRequest(images, test, recipe(), tmp_path / "run", evaluate_every=4)
    model = with_classes(load_model("digits"), request.labels, request.recipe)
    assert test.labels is not None
    before, of = count_right(model, test, np.array(test.labels))
    trained = train_model(model, request, lambda line: None)
    after = trained.rows[-1].right
    # Four epochs of six steps: from a new head's guess to nearly all.
    assert after is not None and before < 0.7 * of and after > 0.93 * of
    loaded = load_model(trained.path)
    assert loaded.labels is not None and loaded.labels.names == ("three", "five", "eight")
    assert loaded.config.num_classes == 3 and loaded.preprocess.mean == load_model("digits").preprocess.mean


def test_the_model_handed_in_stays_and_the_body_is_its_own() -> None:
    model = load_model("digits")
    changed = with_classes(model, Labels(("a", "b"), ("a", "b")), recipe())
    for name, tensor in model.module.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(changed.module.state_dict()[name], tensor)
    assert model.config.num_classes == 10 and changed.config.num_classes == changed.module.config.num_classes == 2
    assert changed.module.head.weight.shape == (2, 128)  # type: ignore[union-attr]


def test_the_networks_own_classes_keep_their_head() -> None:
    model = load_model("digits")
    assert model.labels is not None
    changed = with_classes(model, model.labels, recipe())
    assert torch.equal(changed.module.head.weight, model.module.head.weight)  # type: ignore[arg-type, union-attr]


def test_a_size_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(ModelConfigError, match="multiples of 32"):
        with_classes(load_model("digits"), Labels(("a", "b"), ("a", "b")), recipe(sizes=(32, 40)))
