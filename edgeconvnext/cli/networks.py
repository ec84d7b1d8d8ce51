"""Commands on a network itself: look at it, fold it, make it smaller."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgeconvnext.backends import DEFAULT_TARGET
from edgeconvnext.cli.application import app
from edgeconvnext.cli.options import (
    BudgetOption,
    ChangeImagesOption,
    EpochsOption,
    ImagesOption,
    JsonOption,
    LatencyOption,
    ModelArgument,
    NormScopeOption,
    RecoverOption,
    ReplaceNormOption,
    ResolutionOption,
    ScoreName,
    TargetOption,
    refuse_without,
)
from edgeconvnext.cli.output import print_out, show_changes
from edgeconvnext.cli.values import finite, path_value


@app.command()
def inspect(
    model: ModelArgument,
    resolution: ResolutionOption = None,
    json: JsonOption = False,
) -> None:
    """Show architecture, layout, parameters, MACs, input, labels, and which LayerNorms fold."""
    from dataclasses import asdict
    from json import dumps

    from edgeconvnext.data.size import parse_size
    from edgeconvnext.model.describe import describe, render
    from edgeconvnext.model.load import load_model

    size = None if resolution is None else parse_size(resolution)
    description = describe(load_model(model, resolution=size))
    if json:
        sys.stdout.write(dumps(asdict(description), indent=2) + "\n")
    else:
        print_out(render(description))


@app.command()
def fold(
    context: typer.Context,
    model: ModelArgument,
    output: Annotated[
        Path, typer.Option("--output", help="Weights file to write, .safetensors.", parser=path_value, metavar="<path>")
    ],
    calib: Annotated[str, typer.Option("--calib", help="Images the fold is proven on: a set's name or a folder.")],
    replace_norm: ReplaceNormOption = False,
    norms: NormScopeOption = "all",
    max_drop: Annotated[
        float,
        typer.Option(
            "--max-drop", help="Points of top-1 that replacing LayerNorms may cost.", parser=finite, metavar="<float>"
        ),
    ] = 0.5,
    recover: RecoverOption = False,
    epochs: EpochsOption = 10,
    budget_minutes: BudgetOption = None,
    num_images: ChangeImagesOption = 768,
    target: TargetOption = DEFAULT_TARGET,
    latency: LatencyOption = True,
    json: JsonOption = False,
) -> None:
    """Fold layer scale and LayerNorm affines exactly, and with --replace-norm replace the LayerNorms that may go."""
    from edgeconvnext import api
    from edgeconvnext.tuning.compress import CompressOptions

    if not recover:
        refuse_without(context, "--recover", "epochs", "budget_minutes")
    if replace_norm:
        options = CompressOptions(
            replace_norms=True,
            norms=norms,
            max_drop=max_drop,
            recover=recover,
            epochs=epochs,
            minutes=budget_minutes,
            images=num_images,
            measure_latency=latency,
        )
        show_changes(api.compress(model, calib=calib, options=options, target=target, output=output), output, json)
        return
    if recover:
        raise typer.BadParameter(
            "--recover makes up for what --replace-norm changed; an exact fold has nothing to recover."
        )
    refuse_without(context, "--replace-norm", "norms", "max_drop", "num_images", "target", "latency")
    result = api.fold(model, calib=calib, output=output)
    if json:
        from json import dumps

        sys.stdout.write(dumps({"errors": result.errors}, indent=2) + "\n")
        return
    for rewrite, error in result.errors.items():
        typer.echo(f"{rewrite}: largest relative error of the logits {error:.1e}")
    typer.echo(f"written: {output}")


@app.command()
def prune(
    context: typer.Context,
    model: ModelArgument,
    calib: Annotated[str, typer.Option("--calib", help="Calibration images: a set's name or a folder.")],
    output: Annotated[
        Path, typer.Option("--output", help="Weights file to write, .safetensors.", parser=path_value, metavar="<path>")
    ],
    macs: Annotated[
        float | None,
        typer.Option(
            "--macs",
            help="Share of the multiply-adds to keep, above 0 and at most 1, as in 0.7.",
            parser=finite,
            metavar="<float>",
        ),
    ] = None,
    size: Annotated[
        float | None,
        typer.Option(
            "--size", help="Share of the weights' bytes at 8 bits to keep, as in 0.5.", parser=finite, metavar="<float>"
        ),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            "--latency",
            help="Share of the time measured here in onnxruntime to keep, as in 0.7.",
            parser=finite,
            metavar="<float>",
        ),
    ] = None,
    blocks: Annotated[int, typer.Option("--blocks", help="Whole blocks to take out first.")] = 0,
    sparsity: Annotated[
        Literal["2:4"] | None,
        typer.Option("--sparsity", help="2:4: two of four weights of the blocks' linears become zero."),
    ] = None,
    num_images: ImagesOption = 256,
    target: Annotated[
        str | None, typer.Option("--target", help="Target whose multiple the widths get: 8, 16 or 32.")
    ] = None,
    multiple: Annotated[
        int | None,
        typer.Option("--multiple", min=1, help="Widths become multiples of it.", show_default="the target's, else 8"),
    ] = None,
    score: Annotated[
        ScoreName, typer.Option("--score", help="What chooses channels; auto takes the best one for each block.")
    ] = "auto",
    torch_code: Annotated[
        Path | None,
        typer.Option(
            "--torch-code",
            help="Python file to write as well: the network for torch alone, loading --output.",
            parser=path_value,
            metavar="<path>",
        ),
    ] = None,
    recover: RecoverOption = False,
    epochs: EpochsOption = 10,
    budget_minutes: BudgetOption = None,
) -> None:
    """Make a network smaller: channels, blocks or 2:4 sparsity; fit what is left, train it with --recover, and save it."""
    from edgeconvnext.api import prune as run
    from edgeconvnext.report.pruning_terminal import render_pruned

    if recover:
        others: dict[str, object] = {
            "--size": size,
            "--latency": latency,
            "--blocks": blocks or None,
            "--sparsity": sparsity,
        }
        others |= {"--torch-code": torch_code, "--score": None if score == "auto" else score}
        given = [name for name, value in others.items() if value is not None]
        if macs is None or given:
            raise typer.BadParameter(
                "--recover trains a network whose channels --macs took out"
                + (f"; leave out {' and '.join(given)}." if given else "; give --macs.")
            )
        from edgeconvnext import api
        from edgeconvnext.tuning.compress import CompressOptions

        options = CompressOptions(
            macs=macs, recover=True, epochs=epochs, minutes=budget_minutes, images=num_images, multiple=multiple
        )
        show_changes(
            api.compress(model, calib=calib, options=options, target=target or DEFAULT_TARGET, output=output),
            output,
            False,
        )
        return
    refuse_without(context, "--recover", "epochs", "budget_minutes")
    result = run(
        model,
        calib=calib,
        macs=macs,
        size=size,
        latency=latency,
        num_images=num_images,
        multiple=multiple,
        target=target,
        score=score,
        blocks=blocks,
        sparsity=sparsity,
        output=output,
        torch_code=torch_code,
    )
    print_out(render_pruned(result.channels, result.sparse))
    typer.echo(f"written: {output}" + (f" and {torch_code}" if torch_code else ""))
