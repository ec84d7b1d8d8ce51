"""The recipe: presets, flags, files, and the schedules that follow from it."""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeconvnext.cli.training import SWITCHES
from edgeconvnext.errors import ConfigFileError, TrainingError
from edgeconvnext.train.recipe import PRESETS, Recipe, choose_recipe, differences, read_recipe, recipe_toml
from edgeconvnext.train.schedule import rate_factor, recipe_factor, step_factor


def test_the_paper_preset_is_the_papers_table() -> None:
    paper = PRESETS["paper"]
    assert (paper.epochs, paper.batch_size, paper.learning_rate, paper.weight_decay) == (300, 4096, 4e-3, 0.05)
    assert (paper.warm_up_epochs, paper.schedule, paper.optimizer) == (20, "cosine", "adamw")
    assert (paper.mixup, paper.cutmix, paper.rand_augment, paper.rand_augment_std) == (0.8, 1.0, 9, 0.5)
    assert (paper.erasing, paper.label_smoothing, paper.drop_path) == (0.25, 0.1, 0.1)
    assert (paper.layer_scale, paper.ema_decay, paper.layer_decay) == (1e-6, 0.9999, 1)


def test_every_switch_has_an_option() -> None:
    assert list(SWITCHES) and set(SWITCHES) == set(Recipe.model_fields)


def test_the_learning_rate_follows_the_batch() -> None:
    assert choose_recipe("paper", {"batch_size": 256}).step_rate == pytest.approx(2.5e-4)
    assert PRESETS["paper"].step_rate == pytest.approx(4e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_survives_its_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_toml(PRESETS[name]))
    assert read_recipe(path) == PRESETS[name]
    changed = choose_recipe(str(path), {"mixup": 0.0 if PRESETS[name].mixup else 0.3, "sizes": (32, 64)})
    assert [line.split()[0] for line in differences(PRESETS[name], changed)] == ["sizes", "mixup"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"batch_size": 50, "accumulate": 3}, "must be a multiple of accumulate"),
        ({"epochs": 5}, "warm_up_epochs 20 must be fewer than the 5 epochs"),
        ({"sizes": (64, 0)}, "sizes.1: input should be greater than or equal to 1"),
        ({"sizes": ()}, "sizes"),
        ({"rand_augment": 11.0}, "rand_augment"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        choose_recipe("paper", changes)


def test_unknown_presets_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Did you mean small-data"):
        choose_recipe("smalldata", {})
    (tmp_path / "mine.toml").write_text("epoch = 3\n")
    with pytest.raises(ConfigFileError, match="Did you mean epochs"):
        choose_recipe(str(tmp_path / "mine.toml"), {})


NUMBERS = [name for name, field in Recipe.model_fields.items() if field.annotation in (int, float)]
HUGE = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e308",
    "-1e-308",
    "9223372036854775807",
    "1" + "0" * 400,
    "1e999",
    "true",
    '"1"',
    "[1]",
]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_of_a_file_overflows(name: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"{name} = {value}\n")
    with pytest.raises(ConfigFileError, match=name):
        read_recipe(path)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(1, 100_000),
            "batch_size": st.integers(2, 65_536),
            "learning_rate": st.floats(0, 1e4, exclude_min=True),
            "rate_batch": st.integers(1, 1_000_000),
            "min_rate": st.floats(0, 1e4),
            "mixup": st.floats(0, 1e4),
            "sizes": st.lists(st.integers(1, 16_384), min_size=1, max_size=5).map(tuple),
            "schedule": st.sampled_from(["cosine", "step"]),
            "channels_last": st.booleans(),
            "seed": st.integers(0, 2**31 - 1),
        },
    )
)
def test_every_recipe_survives_its_text(changes: dict[str, object]) -> None:
    recipe = Recipe.model_validate({"warm_up_epochs": 0.0, **changes})
    assert Recipe.model_validate(tomllib.loads(recipe_toml(recipe))) == recipe
    assert math.isfinite(recipe.step_rate)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_survives_too(text: str) -> None:
    """No switch takes any text today; quotes, line breaks, control characters and emoji would not end the string."""
    written = recipe_toml(Recipe.model_construct(**{**Recipe().model_dump(), "optimizer": text}))
    assert tomllib.loads(written)["optimizer"] == text


def test_a_recipe_file_is_a_small_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "large.toml").write_text("#" * 2**20 + "\n")
    for name, said in (
        ("pipe", "a named pipe"),
        ("zero", "a device"),
        ("large", "at most 1,048,576"),
        ("none", "no such file"),
    ):
        with pytest.raises(ConfigFileError, match=said):
            choose_recipe(str(tmp_path / f"{name}.toml"), {})


def test_a_cosine_follows_a_warm_up() -> None:
    assert rate_factor(0.0, 0.1) == pytest.approx(0.02)
    assert rate_factor(0.05, 0.1) == pytest.approx(0.5)
    assert rate_factor(0.1, 0.1) == pytest.approx(1.0)
    assert rate_factor(0.55, 0.1) == pytest.approx(0.5)
    assert rate_factor(1.0, 0.1) == pytest.approx(0.0)
    assert rate_factor(1.0, 0.1, floor=0.01) == pytest.approx(0.01)


def test_steps_come_at_the_thirds() -> None:
    factors = [step_factor(epoch / 90, 0.0) for epoch in range(90)]
    assert factors == pytest.approx([1.0] * 30 + [0.1] * 30 + [0.01] * 30)
    assert step_factor(1.0, 0.0) == pytest.approx(0.01)


def test_the_papers_schedule_ends_at_its_smallest_rate() -> None:
    paper = PRESETS["paper"]
    assert recipe_factor(paper, 20 / 300) == pytest.approx(1.0)
    assert recipe_factor(paper, 1.0) * paper.step_rate == pytest.approx(paper.min_rate)


def test_sizes_share_the_epochs() -> None:
    recipe = choose_recipe("paper", {"sizes": (64, 96, 128), "epochs": 30, "warm_up_epochs": 1.0})
    assert [recipe.size_of_epoch(epoch) for epoch in (0, 9, 10, 19, 20, 29)] == [64, 64, 96, 96, 128, 128]


def test_the_page_shows_every_preset_as_it_is() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "recipe.md").read_text(encoding="utf-8")
    columns = [dict(line.split(" = ", 1) for line in recipe_toml(recipe).splitlines()) for recipe in PRESETS.values()]
    for name in Recipe.model_fields:
        values = " | ".join(column[name].strip('"') for column in columns)
        assert f"| `{name}` | {values} |" in page, name
