"""The command for the road from ResNet-50 to ConvNeXt-T."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from edgeconvnext.cli.commands import command
from edgeconvnext.cli.options import JsonOption
from edgeconvnext.cli.output import print_out
from edgeconvnext.options import commands as options


@command(
    options.Roadmap,
    "roadmap --steps resnet50,convnext_tiny --no-latency",
    "roadmap --target jetson --trained resnet50=my.pth --eval val/",
)
def roadmap(options: options.Roadmap, json: JsonOption = False) -> None:
    """Take every step from ResNet-50 to ConvNeXt-T to INT8 and time it; finished steps are reused."""
    from json import dumps

    from edgeconvnext.commands.roadmap import RoadmapRequest
    from edgeconvnext.commands.roadmap import roadmap as run
    from edgeconvnext.model.resnet.roadmap import select_steps
    from edgeconvnext.report.roadmap_page import check_page, render_roadmap, write_page

    page = None if options.page is None else Path(options.page)
    if page is not None:
        check_page(page)
    request = RoadmapRequest(
        steps=tuple(select_steps(options.steps)),
        target=options.target,
        calibration=None if options.calib is None else str(options.calib),
        evaluation=None if options.eval is None else str(options.eval),
        num_images=options.num_images,
        effort=options.effort,
        resolution=options.resolution,
        trained=_weights_by_step(options.trained or []),
        measure_latency=options.latency,
        threads=options.threads,
        output=None if options.output is None else Path(options.output),
    )
    result, folder = run(request, lambda line: typer.echo(line, err=True))
    if page is not None:
        write_page(result, page)
    if json:
        sys.stdout.write(dumps([step.model_dump(mode="json") for step in result.steps], indent=2) + "\n")
        return
    print_out(render_roadmap(result))
    typer.echo(f"\nroadmap: {folder / 'roadmap.md'}" + ("" if page is None else f"\npage: {page}"))


def _weights_by_step(pairs: list[str]) -> dict[str, Path]:
    """Read --trained, "step=path" each."""
    for text in pairs:
        if not all(text.partition("=")):
            raise typer.BadParameter(
                f"--trained takes a step and its weights, as in resnet50=resnet50.pth; it is {text!r}."
            )
    return {name: Path(path) for name, _, path in (text.partition("=") for text in pairs)}
