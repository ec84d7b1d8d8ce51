"""Commands on a network itself: look at it, fold it, make it smaller."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgeconvnext.cli.commands import command
from edgeconvnext.cli.options import JsonOption, ModelArgument
from edgeconvnext.cli.output import print_out, show_changes
from edgeconvnext.options import commands as options

if TYPE_CHECKING:
    from edgeconvnext.model.loaded import LoadedModel


@command(options.Inspect, "inspect convnext_tiny --resolution 288 --json", "inspect my.pth --target onnx")
def inspect(options: options.Inspect, model: ModelArgument, json: JsonOption = False) -> None:
    """Show architecture, layout, parameters, MACs, input, labels, which LayerNorms fold, and what a target makes of it."""
    from dataclasses import asdict
    from json import dumps

    from edgeconvnext.model.describe import describe, render
    from edgeconvnext.model.load import load_model

    loaded = load_model(model, **{name: value for name, value in options.stated.items() if name != "target"})
    if options.target is not None:
        _show_on_target(loaded, options.target, json)
    elif json:
        sys.stdout.write(dumps(asdict(describe(loaded)), indent=2) + "\n")
    else:
        print_out(render(describe(loaded)))


def _show_on_target(model: LoadedModel, name: str, json: bool) -> None:
    from edgeconvnext.backends import load_target
    from edgeconvnext.report.on_target_terminal import render_on_target
    from edgeconvnext.tuning.on_target import on_target

    result = on_target(model, load_target(name))
    if json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    else:
        print_out(render_on_target(result))


@command(
    options.Fold,
    "fold digits --calib digits --output folded.safetensors",
    "fold my.pth --replace-norm --calib val/ --output my.safetensors",
)
def fold(options: options.Fold, model: ModelArgument, json: JsonOption = False) -> None:
    """Fold layer scale and LayerNorm affines exactly, and with --replace-norm replace the LayerNorms that may go."""
    from edgeconvnext import api

    if options.replace_norm:
        changes = options.stated
        if "max_drop" in changes:
            changes["norm_drop"] = changes.pop("max_drop")
        show_changes(api.compress(model, **changes), Path(options.output), json)
        return
    result = api.fold(model, calib=options.calib, output=options.output, weights_from=options.weights_from)
    if json:
        from json import dumps

        sys.stdout.write(dumps({"errors": result.errors}, indent=2) + "\n")
        return
    for rewrite, error in result.errors.items():
        typer.echo(f"{rewrite}: largest relative error of the logits {error:.1e}")
    typer.echo(f"written: {options.output}")


@command(
    options.PruneAndRecover,
    "prune digits --macs 0.8 --calib digits --output small.safetensors",
    "prune my.pth --size 0.5 --calib photos/ --output my.safetensors",
)
def prune(options: options.PruneAndRecover, model: ModelArgument) -> None:
    """Make a network smaller: channels, blocks or 2:4 sparsity; fit what is left, train it with --recover, and save it."""
    from edgeconvnext import api
    from edgeconvnext.report.pruning_terminal import render_pruned

    if options.recover:
        changes = {"num_images": options.num_images, **options.stated}
        changes["prune_macs"] = changes.pop("macs")
        show_changes(api.compress(model, **changes), Path(options.output), json=False)
        return
    changes = options.stated
    changes.pop("recover", None)
    result = api.prune(model, **changes)
    print_out(render_pruned(result.channels, result.sparse))
    typer.echo(f"written: {options.output}" + (f" and {options.torch_code}" if options.torch_code else ""))
