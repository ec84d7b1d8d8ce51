"""The command for the road from ResNet-50 to ConvNeXt-T."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeconvnext.backends import DEFAULT_TARGET
from edgeconvnext.cli.application import app
from edgeconvnext.cli.options import EffortOption, JsonOption, LatencyOption, TargetOption, ThreadsOption
from edgeconvnext.cli.output import print_out
from edgeconvnext.cli.values import path_value


@app.command()
def roadmap(
    target: TargetOption = DEFAULT_TARGET,
    calib: Annotated[
        str | None,
        typer.Option(
            "--calib", help="Calibration images: a set's name or a folder. Default: the digits of the package."
        ),
    ] = None,
    eval_set: Annotated[
        str | None, typer.Option("--eval", help="Labelled images for the steps with trained weights.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option("--steps", help="Only these, as in resnet50,kernel_7,convnext_tiny. Default: all.")
    ] = None,
    trained: Annotated[
        list[str] | None,
        typer.Option("--trained", help="Trained weights of a step, as in resnet50=resnet50.pth; may be repeated."),
    ] = None,
    num_images: Annotated[
        int, typer.Option("--num-images", help="Calibration images in all; a third is held out.")
    ] = 64,
    effort: EffortOption = "quick",
    resolution: Annotated[int, typer.Option("--resolution", help="Input side in pixels.")] = 224,
    latency: LatencyOption = True,
    threads: ThreadsOption = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Folder of the roadmap. Default: runs/roadmap-<target>-<resolution>.",
            parser=path_value,
            metavar="<path>",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--page",
            help="Write the page here as well, with its plot and CSV beside it.",
            parser=path_value,
            metavar="<path>",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take every step from ResNet-50 to ConvNeXt-T to INT8 and time it; finished steps are kept."""
    from json import dumps

    from edgeconvnext.commands.roadmap import RoadmapRequest
    from edgeconvnext.commands.roadmap import roadmap as run
    from edgeconvnext.model.resnet.roadmap import select_steps
    from edgeconvnext.report.roadmap_page import check_page, render_roadmap, write_page

    if page is not None:
        check_page(page)
    request = RoadmapRequest(
        steps=tuple(select_steps(steps)),
        target=target,
        calibration=calib,
        evaluation=eval_set,
        num_images=num_images,
        effort=effort,
        resolution=resolution,
        trained=_weights_by_step(trained or []),
        measure_latency=latency,
        threads=threads,
        output=output,
    )
    result, folder = run(request, lambda line: typer.echo(line, err=True))
    if page is not None:
        write_page(result, page)
    if json:
        sys.stdout.write(dumps([step.model_dump(mode="json") for step in result.steps], indent=2) + "\n")
        return
    print_out(render_roadmap(result))
    typer.echo(f"\nroadmap: {folder / 'roadmap.md'}" + ("" if page is None else f"\npage: {page}"))


def _weights_by_step(given: list[str]) -> dict[str, Path]:
    """Read --trained, "step=path" each."""
    for text in given:
        if not all(text.partition("=")):
            raise typer.BadParameter(
                f"--trained takes a step and its weights, as in resnet50=resnet50.pth; it is {text!r}."
            )
    return {name: Path(path) for name, _, path in (text.partition("=") for text in given)}
