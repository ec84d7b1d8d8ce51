"""Ship a finished training as a model of the package: half-precision weights, preprocessing and labels, and a card.

    edgeconvnext train convnext_atto --data imagenette --eval imagenette_val --preset small-data ... --output RUN
    python -m edgeconvnext.train.reference RUN [LATER_RUN ...] --eval imagenette_val \\
        --output edgeconvnext/model/weights/atto_imagenette.safetensors

Several folders are one training in parts, each but the first a `fine-tune` of the weights of the one before; the last
one's weights are shipped. What the card says of accuracy is measured on the very file that ships.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeconvnext.data.labels import match_labels
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import TrainingError
from edgeconvnext.escape import for_markdown, for_terminal
from edgeconvnext.evaluation.intervals import wilson
from edgeconvnext.files import atomic_write
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.macs import count_macs, count_parameters
from edgeconvnext.received import read_text, reading
from edgeconvnext.train.recipe import Recipe, read_recipe, recipe_toml
from edgeconvnext.train.training import LOG_FILE, MODEL_FILE, RECIPE_FILE, count_right


@dataclass(frozen=True)
class Part:
    """One training. evaluated: (epoch, top-1 in per cent) wherever it was evaluated; minutes: of processor or GPU time."""

    recipe: Recipe
    epochs: int
    minutes: float
    evaluated: tuple[tuple[int, float], ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="folders of trainings, in order")
    parser.add_argument("--eval", required=True, help="labelled evaluation images: a set's name or a folder")
    parser.add_argument("--output", type=Path, required=True, help="weights file to write, .safetensors")
    options = parser.parse_args()
    right, images = ship(options.run, options.eval, options.output)
    print(f"{options.output}: {right} of {images} right, {options.output.stat().st_size / 1e6:.2f} MB")


def ship(runs: Sequence[Path], evaluation: str, output: Path) -> tuple[int, int]:
    """Write weights, JSON and card of the last of `runs`, and return how many evaluation images the file gets right, of how many.

    Raises TrainingError for a folder that holds no finished training.
    """
    parts = [read_part(run) for run in runs]
    trained = load_model(runs[-1] / MODEL_FILE)
    save_checkpoint(replace(trained, module=trained.module.half()), output)
    shipped = load_model(output)
    images = resolve_image_set(evaluation)
    classes = match_labels(images, shipped.labels, shipped.config.num_classes)[np.array(images.labels, dtype=np.int64)]
    right, scored = count_right(shipped, images, classes)
    atomic_write(output.with_suffix(".md"), card(shipped, parts, evaluation, right, scored))
    return right, scored


def read_part(run: Path) -> Part:
    """Read what a training wrote beside its weights; raises TrainingError where that is missing, unfinished or damaged."""
    place = for_terminal(run)
    missing = [name for name in (MODEL_FILE, RECIPE_FILE, LOG_FILE) if not (run / name).is_file()]
    if missing:
        raise TrainingError(f"{place} holds no training: {' and '.join(missing)} missing. Name the --output of one.")
    recipe = read_recipe(run / RECIPE_FILE)
    log = read_text(run / LOG_FILE, TrainingError)
    with reading(run / LOG_FILE, TrainingError, "Name the --output of a training that was not changed."):
        rows = [(int(row["epoch"]), _finite(row["minutes"]), row["top1"]) for row in csv.DictReader(io.StringIO(log))]
        evaluated = tuple((epoch, _finite(top1)) for epoch, _, top1 in rows if top1)
    if len(rows) != recipe.epochs:
        raise TrainingError(
            f"The training in {place} has done {len(rows)} of {recipe.epochs} epochs. Finish it first: the same command goes on."
        )
    return Part(recipe, len(rows), rows[-1][1], evaluated)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no measured value")
    return value


def card(model: LoadedModel, parts: Sequence[Part], evaluation: str, right: int, images: int) -> str:
    """Return the model card: what the network is, its data, its accuracy, its log and its recipe."""
    low, high = wilson(right, images)
    height, width = model.preprocess.input_size
    labels = () if model.labels is None else model.labels.descriptions
    macs = f"{count_macs(model.config, (height, width)) / 1e6:.1f} M"
    sections = [_part_section(number, part, alone=len(parts) == 1) for number, part in enumerate(parts, 1)]
    return f"""# {model.name}

{count_parameters(model.config):,} parameters, {macs} multiply-adds at {height}x{width} pixels. Weights in half precision.
Classes: {", ".join(map(for_markdown, labels))}.

FP32 top-1 of this file on `{evaluation}`, {height}x{width} pixels: **{100 * right / images:.2f} %** ({right} of {images} images; \
95 % Wilson interval {100 * low:.2f} to {100 * high:.2f} %). Measure it again with

    edgeconvnext export --target onnx --model {model.name} --calib imagenette --eval {evaluation}

## Data

Imagenette (github.com/fastai/imagenette), ten classes of ImageNet: its training photographs, scaled to a shorter side of 160
pixels. Evaluation photographs were scored while training to draw its curve; nothing was chosen by them. The photographs come under
ImageNet's terms: research, no redistribution.

## Recipe

    edgeconvnext train convnext_atto --data imagenette --eval {evaluation} --preset recipe.toml --output RUN

{"".join(sections)}"""


def _part_section(number: int, part: Part, alone: bool) -> str:
    lines = "\n".join(f"| {epoch} | {top1:.2f} % |" for epoch, top1 in part.evaluated)
    command = "train, from scratch" if number == 1 else f"fine-tune, from the weights of part {number - 1}"
    title = "" if alone else f"### Part {number}: {command}\n\n"
    return f"""{title}{part.epochs} epochs, {part.minutes:.0f} minutes of processor time (on a GPU: of wall time).

| epoch | top-1 |
|---|---|
{lines}

```toml
{recipe_toml(part.recipe)}```

"""


if __name__ == "__main__":
    main()
