"""What the recipe is worth, and what the network: two networks of one size, each with the old and the modern recipe.

    python -m benchmarks.recipes [--row TEXT] [--again]
    python -m benchmarks.recipes --estimate   # time a few steps of each network, and say how long all rows will take
    python -m benchmarks.recipes --page       # write docs/recipe.md's table from the CSV, train nothing

Each row is one training on Imagenette beside this checkout, the same number of epochs at the same size for all, scored on
imagenette_val at its end, which nothing is chosen on. A row that was interrupted goes on where it stopped; finished ones are kept.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from pydantic import BaseModel

import edgeconvnext
from benchmarks.accuracy import _cpu
from benchmarks.csv_rows import read_rows, write_rows
from benchmarks.photographs import use_photographs
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.model.macs import count_macs, count_parameters
from edgeconvnext.schema.format import points
from edgeconvnext.train.log import Curve, EpochRow, curves_svg
from edgeconvnext.train.networks import architecture_to_train, new_model
from edgeconvnext.train.recipe import Recipe, choose_recipe
from edgeconvnext.train.training import TrainRequest, train_model

HERE = Path(__file__).resolve().parent
RESULTS, CURVES = HERE / "results" / "recipes.csv", HERE / "results" / "recipes.svg"
CACHE = HERE / ".cache" / "recipes"
PAGE = HERE.parent / "docs" / "recipe.md"
MARKS = ("<!-- table: python -m benchmarks.recipes --page -->\n", "<!-- end of table -->")

EPOCHS, SIZE, BATCH, SEEDS = 12, 64, 64, (0, 1)
EQUAL = {
    "epochs": EPOCHS,
    "sizes": (SIZE,),
    "batch_size": BATCH,
    "crop_pct": 1.0,
    "layer_scale": 0.1,
    "precision": "bf16",
}
"""layer_scale is where the network starts, no matter of recipes: from the paper's 1e-6 SGD would not get a ConvNeXt going."""
NETWORKS = {"ResNet-style": "resnet_atto", "ConvNeXt-style": "convnext_atto"}
RECIPES = {"old": ("classic", {}), "modern": ("small-data", {"warm_up_epochs": 1.0})}
TIMED_STEPS = 8


class Row(BaseModel):
    """One epoch of one training; right, images: of the evaluation at its end. minutes: of processor time since the start."""

    network: str
    recipe: str
    seed: int
    epochs: int
    epoch: int
    size: int
    steps: int
    learning_rate: float
    loss: float
    minutes: float
    right: int
    images: int
    versions: str = ""
    cpu: str = ""

    @property
    def logged(self) -> EpochRow:
        return EpochRow(**{name: getattr(self, name) for name in EpochRow.__dataclass_fields__})


@dataclass(frozen=True)
class Case:
    """One training. network: a key of NETWORKS; recipe: a key of RECIPES."""

    network: str
    recipe: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.network}, {self.recipe} recipe, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return CACHE / f"{NETWORKS[self.network]}-{self.recipe}-{self.seed}"

    def settings(self, **changes: object) -> Recipe:
        preset, own = RECIPES[self.recipe]
        return choose_recipe(preset, {**EQUAL, **own, "seed": self.seed, **changes})


CASES = tuple(Case(network, recipe, seed) for network in NETWORKS for recipe in RECIPES for seed in SEEDS)


def main() -> None:
    """Train what is asked for, row after row, then write CSV, curves and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", default="", help="only the rows with this text in their name")
    parser.add_argument("--again", action="store_true", help="train the chosen rows anew")
    parser.add_argument("--estimate", action="store_true", help="say how long all rows will take")
    parser.add_argument("--page", action="store_true", help="write the page, train nothing")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(read_rows(RESULTS, Row))
        return
    use_photographs()
    images, evaluation = resolve_image_set("imagenette"), resolve_image_set("imagenette_val")
    if arguments.estimate:
        print(f"all {len(CASES)} rows: about {estimate(images, evaluation):.0f} minutes of processor time")
        return
    rows = read_rows(RESULTS, Row)
    for case in CASES:
        if arguments.row not in case.name:
            continue
        if arguments.again:
            rows = [row for row in rows if not _is_of(row, case)]
            shutil.rmtree(case.folder, ignore_errors=True)
        if not any(_is_of(row, case) and row.epoch == EPOCHS for row in rows):
            rows = [row for row in rows if not _is_of(row, case)] + train_case(case, images, evaluation)
            write_rows(RESULTS, rows)
            write_page(rows)
    print(f"{RESULTS.name}: {len(_finished(rows))} of {len(CASES)} trainings")


def train_case(case: Case, images: ImageSet, evaluation: ImageSet, **changes: object) -> list[Row]:
    """Train one network, or go on with it, and return the rows of its epochs. changes: of the recipe, for trials."""
    recipe = case.settings(**changes)
    request = TrainRequest(images, evaluation, recipe, case.folder)
    case.folder.parent.mkdir(parents=True, exist_ok=True)
    print(case.name, flush=True)
    result = train_model(new_model(NETWORKS[case.network], request.labels, recipe), request)
    return [_row(case, recipe, row) for row in result.rows]


def _row(case: Case, recipe: Recipe, row: EpochRow) -> Row:
    versions = f"edgeconvnext {edgeconvnext.__version__}, torch {torch.__version__}"
    own = {name: getattr(row, name) for name in EpochRow.__dataclass_fields__}
    return Row(
        network=case.network, recipe=case.recipe, seed=case.seed, epochs=recipe.epochs, versions=versions, cpu=_cpu(), **own
    )  # fmt: skip


def estimate(images: ImageSet, evaluation: ImageSet) -> float:
    """Return the processor minutes of all rows, from a few steps of each network; an evaluation costs a third of training."""
    few = images.take(TIMED_STEPS * BATCH)
    minutes = 0.0
    for name in NETWORKS.values():
        recipe = choose_recipe("classic", {**EQUAL, "epochs": 1})
        with tempfile.TemporaryDirectory() as folder:
            request = TrainRequest(few, None, recipe, Path(folder) / "run")
            timed = train_model(new_model(name, request.labels, recipe), request, lambda line: None).rows[-1]
        an_image = timed.minutes / len(few)
        an_epoch = an_image * (len(images) + len(evaluation) / 3)
        minutes += an_epoch * EPOCHS * len(RECIPES) * len(SEEDS)
    return minutes


def _is_of(row: Row, case: Case) -> bool:
    return (row.network, row.recipe, row.seed) == (case.network, case.recipe, case.seed)


def _finished(rows: Sequence[Row]) -> list[Row]:
    """The last epochs of the trainings that are complete."""
    return [row for row in rows if row.epoch == row.epochs]


def write_page(rows: Sequence[Row]) -> None:
    """Draw the curves, and put the table between the marks of the page."""
    cases = [case for case in CASES if any(_is_of(row, case) for row in _finished(rows))]
    curves = [Curve(case.name, [row.logged for row in rows if _is_of(row, case)]) for case in cases]
    if curves:
        CURVES.write_text(curves_svg("Two networks, two recipes, Imagenette", curves), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(MARKS[0])
    text = "\n".join(table(rows)) + "\n"
    PAGE.write_text(before + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")
    print(f"written: {PAGE.name}")


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table: a network a row, a recipe a column, each seed with its interval."""
    lines = [
        f"| network, from scratch, {EPOCHS} epochs at {SIZE} px | MACs | parameters | old recipe | modern recipe "
        "| difference of the means |",
        "|---|---|---|---|---|---|",
    ]
    finished = _finished(rows)
    for network, name in NETWORKS.items():
        config = architecture_to_train(name)[1].replace(num_classes=10)
        macs, parameters = count_macs(config, (SIZE, SIZE)), count_parameters(config)
        cells = [f"{network} (`{name}`)", f"{macs / 1e6:.0f} M", f"{parameters / 1e6:.2f} M"]
        means = []
        for recipe in RECIPES:
            scored = [row.logged for row in finished if (row.network, row.recipe) == (network, recipe)]
            cells.append("; ".join(_scored(row) for row in scored) or "not measured yet")
            means += [fmean(row.top1 for row in scored if row.top1 is not None)] if scored else []
        cells.append(f"{points(means[1] - means[0])} points" if len(means) == len(RECIPES) else "not measured yet")
        lines.append(f"| {' | '.join(cells)} |")
    if finished:
        lines += ["", f"{finished[0].images:,} images of imagenette_val; {finished[0].cpu}; {finished[0].versions}."]
    return lines


def _scored(row: EpochRow) -> str:
    assert row.interval is not None
    return f"{row.top1:.2f} % ({row.interval[0]:.2f} to {row.interval[1]:.2f})"


if __name__ == "__main__":
    main()
