"""Commands that train: a network from scratch, or trained weights on other classes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from edgeconvnext.cli.application import CommandWithPanels, app
from edgeconvnext.cli.commands import examples_text
from edgeconvnext.cli.options import ModelArgument, QuietOption
from edgeconvnext.cli.values import finite, path_value
from edgeconvnext.progress import is_silent, without_bars

if TYPE_CHECKING:
    from edgeconvnext.model.loaded import LoadedModel
    from edgeconvnext.train.recipe import Recipe
    from edgeconvnext.train.training import TrainRequest

EvalOption = Annotated[str | None, typer.Option("--eval", help="Labelled evaluation images: a set's name or a folder.")]
DataOption = Annotated[str, typer.Option("--data", help="Labelled training images: a set's name or a folder.")]
FolderOption = Annotated[
    Path,
    typer.Option(
        "--output",
        help="Folder of the training; the same command goes on with what is in it.",
        parser=path_value,
        metavar="<path>",
    ),
]
EvalEveryOption = Annotated[
    int, typer.Option("--eval-every", help="Epochs between evaluations; the last is always one.")
]
PauseOption = Annotated[
    float | None,
    typer.Option(
        "--budget-minutes",
        help="Minutes until this call saves and ends; the next one goes on.",
        parser=finite,
        metavar="<float>",
    ),
]

SWITCHES: dict[str, tuple[Any, str]] = {
    "epochs": (int, "Passes over the images."),
    "batch_size": (int, "Images per step, over all processes and accumulated parts."),
    "accumulate": (int, "Parts that a step is computed in."),
    "optimizer": (Literal["adamw", "sgd"], "AdamW, or SGD with momentum."),
    "learning_rate": (float, "At --rate-batch images a step; scaled linearly with --batch-size."),
    "rate_batch": (int, "Images a step that --learning-rate is stated for."),
    "min_rate": (float, "Learning rate that the cosine ends at."),
    "momentum": (float, "Of SGD."),
    "weight_decay": (float, "Of matrices and kernels; norms, biases and layer scales have none."),
    "clip_norm": (float, "Largest norm of all gradients together; 0: not clipped."),
    "schedule": (Literal["cosine", "step"], "cosine, or a tenth after each third."),
    "warm_up_epochs": (float, "Epochs of linear warm-up."),
    "layer_decay": (float, "Learning rate of a block over that of the next one; 1: all alike."),
    "sizes": (str, "Sides in pixels, as in 64,96,128: equal shares of the epochs; the last one stays."),
    "crop_pct": (float, "Crop share of evaluation."),
    "smallest_crop": (float, "Share of the area that a random crop takes at least; 1: centre crop."),
    "flip": (float, "Probability of mirroring."),
    "rand_augment": (float, "Magnitude of RandAugment, 0 to 10; 0: none."),
    "rand_augment_std": (float, "Standard deviation of that magnitude."),
    "operators": (int, "Operators that RandAugment draws for an image."),
    "erasing": (float, "Probability of random erasing."),
    "mixup": (float, "Alpha of mixup; 0: none."),
    "cutmix": (float, "Alpha of cutmix; 0: none."),
    "label_smoothing": (float, "Share of each label spread over all classes."),
    "drop_path": (float, "Stochastic depth: probability of skipping the last block; 0: none."),
    "layer_scale": (float, "What the layer scales start at."),
    "ema_decay": (float, "Decay of the average of the weights; 0, or --no-ema: none."),
    "precision": (
        Literal["auto", "fp32", "bf16", "fp16"],
        "Of multiplications; auto: bf16 where the hardware has it, else fp32. fp16 needs a GPU.",
    ),
    "channels_last": (bool, "Memory layout of activations."),
    "seed": (int, "Of weights, order, augmentation and skipped blocks."),
}
"""Switches of the recipe: type and help of the option of that name. Not in the recipe: its module loads slowly."""


def with_switches(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each switch; those that were given reach it by name as `changes`."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        switches = {name: values.pop(name) for name in (*SWITCHES, "no_ema")}
        with without_bars() if values.pop("quiet") else nullcontext():
            command(**values, changes=_changes(switches))

    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "changes"
    ]
    options = [_option(name, kind, text) for name, (kind, text) in SWITCHES.items()]
    no_ema = Annotated[
        bool, typer.Option("--no-ema", help="Write the last weights, not their average.", rich_help_panel="Recipe")
    ]
    for name, annotation in (("no_ema", no_ema), ("quiet", QuietOption)):
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation))
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + options
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(name: str, kind: Any, text: str) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    declared = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    # The preset decides where nothing is given.
    checked: dict[str, Any] = {"parser": finite, "metavar": "<float>"} if kind is float else {}
    annotation = Annotated[
        kind | None, typer.Option(declared, help=text, show_default=False, rich_help_panel="Recipe", **checked)
    ]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _changes(switches: dict[str, Any]) -> dict[str, Any]:
    """Return the switches that were given, as the recipe has them."""
    if switches.pop("no_ema"):
        if switches["ema_decay"]:
            raise typer.BadParameter("--no-ema and --ema-decay contradict each other; give one of them.")
        switches["ema_decay"] = 0.0
    if (sizes := switches["sizes"]) is not None:
        try:
            switches["sizes"] = tuple(int(part) for part in sizes.split(","))
        except ValueError:
            raise typer.BadParameter(
                f"--sizes takes pixels separated by commas, as in 64,96,128; it is {sizes!r}."
            ) from None
    return {name: value for name, value in switches.items() if value is not None}


@app.command(
    cls=CommandWithPanels,
    epilog=examples_text(
        "train convnext_atto --data photos/ --output trained/",
        "train digits --data digits --preset small-data --output digits/",
    ),
)
@with_switches
def train(
    architecture: Annotated[
        str,
        typer.Argument(
            help="A preset (convnext_atto), a step of the roadmap, resnet_atto, or a weights file to copy the sizes of."
        ),
    ],
    data: DataOption,
    output: FolderOption,
    changes: dict[str, Any],
    eval_set: EvalOption = None,
    preset: Annotated[
        str, typer.Option("--preset", help="paper, small-data, classic, or the recipe.toml of another training.")
    ] = "paper",
    stem_stride: Annotated[
        int | None,
        typer.Option("--stem-stride", help="Of a patch stem: 4 in every preset; 2 suits images of about 64 pixels."),
    ] = None,
    eval_every: EvalEveryOption = 1,
    budget_minutes: PauseOption = None,
) -> None:
    """Train a network from scratch on labelled images; an interrupted training goes on exactly."""
    from edgeconvnext.train.networks import new_model
    from edgeconvnext.train.recipe import choose_recipe

    recipe = choose_recipe(preset, changes)
    request = _request(data, eval_set, recipe, output, eval_every, budget_minutes)
    _run(new_model(architecture, request.labels, recipe, stem_stride), request)


@app.command(
    "fine-tune",
    cls=CommandWithPanels,
    epilog=examples_text(
        "fine-tune convnext_tiny --data photos/ --output tuned/",
        "fine-tune my.pth --data photos/ --epochs 5 --output tuned/",
    ),
)
@with_switches
def fine_tune(
    model: ModelArgument,
    data: DataOption,
    output: FolderOption,
    changes: dict[str, Any],
    eval_set: EvalOption = None,
    preset: Annotated[
        str, typer.Option("--preset", help="fine-tune, another preset, or the recipe.toml of another training.")
    ] = "fine-tune",
    eval_every: EvalEveryOption = 1,
    budget_minutes: PauseOption = None,
) -> None:
    """Train a trained network on other classes: with a new head, and the slower the deeper a layer lies."""
    from edgeconvnext.model.load import load_model
    from edgeconvnext.train.networks import with_classes
    from edgeconvnext.train.recipe import choose_recipe

    loaded = load_model(model)
    own = {"sizes": (min(loaded.preprocess.input_size),), "crop_pct": loaded.preprocess.crop_pct}
    recipe = choose_recipe(preset, (own if preset == "fine-tune" else {}) | changes)
    request = _request(data, eval_set, recipe, output, eval_every, budget_minutes)
    _run(with_classes(loaded, request.labels, recipe), request)


def _request(
    data: str, eval_set: str | None, recipe: Recipe, output: Path, eval_every: int, budget_minutes: float | None
) -> TrainRequest:
    from edgeconvnext.data.sets import resolve_image_set
    from edgeconvnext.train.training import TrainRequest

    return TrainRequest(
        images=resolve_image_set(data),
        evaluation=None if eval_set is None else resolve_image_set(eval_set),
        recipe=recipe,
        output=output,
        evaluate_every=eval_every,
        pause_minutes=budget_minutes,
    )


def _run(model: LoadedModel, request: TrainRequest) -> None:
    """Train, with the log on standard error unless it is silent, and say how it ended."""
    from edgeconvnext.train.training import train_model

    silent = is_silent()
    trained = train_model(model, request, lambda line: None if silent else typer.echo(line, err=True))
    last = trained.rows[-1] if trained.rows else None
    if not trained.leads:
        return
    if last is not None and last.top1 is not None and last.interval is not None:
        low, high = last.interval
        typer.echo(f"top-1 {last.top1:.2f} % ({low:.2f} to {high:.2f}, {last.right} of {last.images} images)")
    typer.echo(f"model: {trained.path}" if trained.finished else "paused; run the same command again to go on")
