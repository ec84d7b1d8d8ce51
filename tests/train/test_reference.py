"""A finished training is shipped in half precision, with a card that says what the file scores."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import TrainingError
from edgeconvnext.model.load import load_model
from edgeconvnext.train.networks import new_model
from edgeconvnext.train.recipe import choose_recipe
from edgeconvnext.train.reference import read_part, ship
from edgeconvnext.train.training import Trained, TrainRequest, train_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    recipe = choose_recipe("small-data", {"sizes": (32,), "epochs": 2, "warm_up_epochs": 0.5, "ema_decay": 0.9})
    images = resolve_image_set("digits")
    request = TrainRequest(images, resolve_image_set("digits_test"), recipe, tmp_path_factory.mktemp("run") / "trained")
    return train_model(new_model("digits", request.labels, recipe), request, lambda line: None)


def test_the_file_is_half_as_large_and_scores_what_its_card_says(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "small_digits.safetensors"
    right, images = ship([trained.path.parent], "digits_test", output)
    shipped, card = load_model(output), output.with_suffix(".md").read_text()
    assert output.stat().st_size < 0.6 * trained.path.stat().st_size
    for name, tensor in trained.model.module.state_dict().items():
        assert torch.equal(shipped.module.state_dict()[name], tensor.half().float()), name
    assert shipped.labels == trained.model.labels
    assert f"({right} of {images} images" in card
    # Half precision may turn an undecided image, no more.
    assert trained.rows[-1].right is not None and abs(right - trained.rows[-1].right) <= 2
    assert re.search(r"^epochs = 2$", card, re.MULTILINE)
    assert f"| 2 | {trained.rows[-1].top1:.2f} % |" in card


def test_parts_are_listed_in_order(trained: Trained, tmp_path: Path) -> None:
    ship([trained.path.parent, trained.path.parent], "digits_test", tmp_path / "twice.safetensors")
    card = (tmp_path / "twice.md").read_text()
    assert card.index("### Part 1: train") < card.index("### Part 2: fine-tune, from the weights of part 1")


def test_an_unfinished_training_is_refused(trained: Trained, tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.json", "log.csv"):
        (tmp_path / name).write_bytes((trained.path.parent / name).read_bytes())
    recipe = (trained.path.parent / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(recipe.replace("epochs = 2\n", "epochs = 3\n", 1))
    with pytest.raises(TrainingError, match="2 of 3 epochs"):
        ship([tmp_path], "digits_test", tmp_path / "out.safetensors")
    with pytest.raises(TrainingError, match="holds no training"):
        ship([tmp_path / "nowhere"], "digits_test", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "log",
    [
        "",
        "epoch,minutes,top1\n",
        "epoch,minutes\n1,2\n2,3\n",
        "epoch,minutes,top1\n1,2,3\nx,2,3\n",
        "epoch,minutes,top1\n1,2,3\n2,nan,3\n",
        "epoch,minutes,top1\n1,2,3\n2,2,1e999\n",
        "epoch,minutes,top1\n1,2,3\n2,2," + "9" * 131_073 + "\n",
        "epoch,minutes,top1\n1,2,3\n" + "9" * 5000 + ",2,3\n",
        "\x00" * 100,
    ],
    ids=lambda log: repr(log[:40]),
)
def test_a_log_that_is_none_is_one_error(trained: Trained, tmp_path: Path, log: str) -> None:
    run = trained.path.parent
    for name in ("model.safetensors", "recipe.toml"):
        (tmp_path / name).symlink_to(run / name)
    (tmp_path / "log.csv").write_text(log)
    with pytest.raises(TrainingError, match=r"cannot be read|0 of 2 epochs"):
        read_part(tmp_path)
