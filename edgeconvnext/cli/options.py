"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgeconvnext.cli.values import finite, path_value

CalibratorName = Literal["auto", "minmax", "percentile", "entropy", "mse", "output"]
PreparationName = Literal["auto", "none", "force"]
RoundingName = Literal["auto", "nearest", "gptq", "adaround"]
NormScopeName = Literal["all", "blocks"]
EffortName = Literal["quick", "default", "best"]
HeadName = Literal["classifier", "features", "none", "gap"]
ScoreName = Literal["auto", "elimination", "magnitude", "energy", "taylor"]


def refuse_without(context: typer.Context, switch: str, *names: str) -> None:
    """Raise a usage error for options that were given and mean nothing without `switch`. names: of the command's parameters."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [f"--{n.replace('_', '-')}" for n, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        raise typer.BadParameter(
            f"{' and '.join(given)} {'mean' if len(given) > 1 else 'means'} nothing without {switch}."
        )


def check_bits(weights: int | None, activations: int | None) -> None:
    """Raise a usage error for bits that nothing here computes in."""
    for option, value, known in (("--weights", weights, (4, 8)), ("--activations", activations, (8, 16))):
        if value is not None and value not in known:
            raise typer.BadParameter(f"{option} takes {known[0]} or {known[1]}; it is {value}.")


ModelArgument = Annotated[str, typer.Argument(help="Weights file, folder, hub name, preset, or 'digits'.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Weights file, folder, hub name or preset. Default: $EDGECONVNEXT_MODEL, else convnext_tiny."
    ),
]
HeadOption = Annotated[
    HeadName,
    typer.Option(
        "--head", help="What the network ends with. features: all stage outputs; none: the last one; gap: an embedding."
    ),
]
CalibOption = Annotated[str | None, typer.Option("--calib", help="Calibration images: a set's name or a folder.")]
EvalOption = Annotated[
    str | None, typer.Option("--eval", help="Evaluation images, labelled for a classifier: a set's name or a folder.")
]
TargetOption = Annotated[
    str, typer.Option("--target", help="Target by name, or a TOML file (see: edgeconvnext targets).")
]
ImagesOption = Annotated[int, typer.Option("--num-images", help="Calibration images in all; a third is held out.")]
CalibratorOption = Annotated[
    CalibratorName, typer.Option("--calibrator", help="Range estimator; auto picks the best one per tensor.")
]
EffortOption = Annotated[
    EffortName,
    typer.Option(
        "--effort",
        help="quick: each tensor by itself, nearest codes; default: layers one after the other, GPTQ; best: AdaRound as well.",
    ),
]
WeightsOption = Annotated[
    int | None, typer.Option("--weights", help="Bits of weights, 4 or 8. Default: the plan's or the target's.")
]
ActivationsOption = Annotated[
    int | None, typer.Option("--activations", help="Bits of activations, 8 or 16. Default: the plan's or the target's.")
]
PlanOption = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        help="TOML file with bits by layer; every run writes its own, plan.toml.",
        parser=path_value,
        metavar="<path>",
    ),
]
PrepareOption = Annotated[
    PreparationName,
    typer.Option(
        "--prepare", help="Scales and shifts in front of quantizers: auto takes those that help, none, or force."
    ),
]
RoundingOption = Annotated[
    RoundingName, typer.Option("--rounding", help="How weights are rounded; auto takes the best per layer.")
]
BiasOption = Annotated[
    bool, typer.Option("--bias-correction/--no-bias-correction", help="Correct biases by the outputs' measured shift.")
]
MinutesOption = Annotated[
    float,
    typer.Option(
        "--adaround-minutes",
        help="Time AdaRound may take in all (effort best, or --rounding adaround).",
        parser=finite,
        metavar="<float>",
    ),
]
DropOption = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        help="Points of top-1 (or agreement) that may be lost; the costliest layers stay float until that holds.",
        parser=finite,
        metavar="<float>",
    ),
]
PruneOption = Annotated[
    float | None,
    typer.Option(
        "--prune-macs",
        help="Share of the multiply-adds that pruning keeps, as in 0.6. Default: no pruning.",
        parser=finite,
        metavar="<float>",
    ),
]
ReplaceNormOption = Annotated[
    bool, typer.Option("--replace-norm", help="Replace the LayerNorms that may go by what folds into convs.")
]
NormScopeOption = Annotated[
    NormScopeName,
    typer.Option("--norms", help="Which LayerNorms --replace-norm may take: all, or those of blocks only."),
]
NormDropOption = Annotated[
    float,
    typer.Option(
        "--norm-drop",
        help="Points of top-1 that --replace-norm may cost before quantization.",
        parser=finite,
        metavar="<float>",
    ),
]
RecoverOption = Annotated[
    bool, typer.Option("--recover", help="Train the changed network, without labels, towards the original.")
]
EpochsOption = Annotated[int, typer.Option("--epochs", help="Passes of --recover over the calibration set.")]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget-minutes",
        help="Minutes that --recover may take: of processor time, or of a GPU's.",
        parser=finite,
        metavar="<float>",
    ),
]
ChangeImagesOption = Annotated[
    int, typer.Option("--num-images", help="Images that layers are re-fitted on; a third is held out.")
]
ResolutionOption = Annotated[
    str | None,
    typer.Option(
        "--resolution", help="Input side in pixels, or HEIGHTxWIDTH as in 224x320. Default: the checkpoint's own."
    ),
]
SizesOption = Annotated[
    str | None,
    typer.Option("--sizes", help="Further input sizes that the artifact takes, as in 224,384x512,1280."),
]
CropOption = Annotated[
    float | None,
    typer.Option(
        "--crop-pct", help="Crop share of evaluation. Default: the checkpoint's.", parser=finite, metavar="<float>"
    ),
]
MeanOption = Annotated[str | None, typer.Option("--mean", help="Input means in 0..1, as in 0.485,0.456,0.406.")]
StdOption = Annotated[str | None, typer.Option("--std", help="Input standard deviations, as in 0.229,0.224,0.225.")]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", help="Run directory. Default: runs/<model>-<target>-<key>.", parser=path_value, metavar="<path>"
    ),
]
ReuseOption = Annotated[
    bool,
    typer.Option(
        "--reuse",
        help="Use what runs of others beside this one have finished, too; your own runs are used in any case.",
    ),
]
LatencyOption = Annotated[bool, typer.Option("--latency/--no-latency", help="Measure latency.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime while timing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
