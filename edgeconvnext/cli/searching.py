"""The command that looks for a better placement than the target's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeconvnext.backends import DEFAULT_TARGET
from edgeconvnext.cli.application import app
from edgeconvnext.cli.options import JsonOption, ModelArgument, ResolutionOption, TargetOption, ThreadsOption
from edgeconvnext.cli.output import print_out
from edgeconvnext.cli.values import at_least, path_value


@app.command()
def search(
    model: ModelArgument,
    calib: Annotated[str, typer.Option("--calib", help="Calibration images: a set's name or a folder.")],
    target: TargetOption = DEFAULT_TARGET,
    num_images: Annotated[
        int, typer.Option("--num-images", help="Calibration images in all; accuracy is judged on a third.")
    ] = 96,
    budget_minutes: Annotated[
        float,
        typer.Option(
            "--budget-minutes",
            help="Minutes that measuring placements may take.",
            parser=at_least(0.0),
            metavar="<float>",
        ),
    ] = 20.0,
    threads: ThreadsOption = 1,
    resolution: ResolutionOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Folder for the target file, the plot and what was measured. Default: searches/...",
            parser=path_value,
            metavar="<path>",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Search the placement of Q/DQ pairs that is fastest on this machine, and write it as a target file.

    Run again, it goes on from what was measured before.
    """
    from edgeconvnext.api import search as run_search
    from edgeconvnext.data.size import parse_size
    from edgeconvnext.report.placement_terminal import render_search

    found, folder = run_search(
        model,
        calib=calib,
        target=target,
        num_images=num_images,
        budget_minutes=budget_minutes,
        threads=threads,
        resolution=None if resolution is None else parse_size(resolution),
        output=output,
    )
    if json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
        return
    print_out(render_search(found))
    typer.echo(f"\nwritten: {folder / 'target.toml'}")
