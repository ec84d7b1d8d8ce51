"""The benchmark of recipes: its trainings run and resume, and its table says what was measured and what was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import recipes
from edgeconvnext.data.digits import digits_set

FEW = {"sizes": (32,), "epochs": 2, "batch_size": 50, "precision": "fp32"}


def test_every_case_is_a_recipe_of_its_own() -> None:
    settings = [case.settings() for case in recipes.CASES]
    assert len(settings) == 8 and len({repr((case.network, case.settings())) for case in recipes.CASES}) == 8
    equal = {(s.epochs, s.sizes, s.batch_size, s.crop_pct, s.layer_scale, s.precision) for s in settings}
    assert len(equal) == 1


@pytest.mark.parametrize("case", [recipes.CASES[0], recipes.CASES[-1]], ids=lambda case: case.name)
@pytest.mark.exhaustive
def test_a_case_trains_and_is_kept(case: recipes.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "CACHE", tmp_path)
    images, evaluation = digits_set("calibration"), digits_set("test").take(100)
    rows = recipes.train_case(case, images, evaluation, **FEW)
    assert [row.epoch for row in rows] == [1, 2] and all(row.images == 100 for row in rows)
    assert recipes.train_case(case, images, evaluation, **FEW) == rows  # nothing is trained again


def test_the_table_says_what_is_missing() -> None:
    def row(network: str, recipe: str, seed: int, right: int, epoch: int = recipes.EPOCHS) -> recipes.Row:
        return recipes.Row(
            network=network, recipe=recipe, seed=seed, epochs=recipes.EPOCHS, epoch=epoch, size=64, steps=1,
            learning_rate=0.1, loss=1.0, minutes=1.0, right=right, images=1000,
        )  # fmt: skip

    rows = [
        row("ResNet-style", recipe, seed, right) for recipe, right in (("old", 700), ("modern", 730)) for seed in (0, 1)
    ]
    rows.append(row("ConvNeXt-style", "old", 0, 500, epoch=3))  # not finished
    resnet, convnext = recipes.table(rows)[2:4]
    assert "70.00 % (67.09 to 72.76); 70.00 %" in resnet and "+3.00 points" in resnet
    assert convnext.count("not measured yet") == 3
