"""The command that looks for a better placement than the target's own."""

from __future__ import annotations

import sys

import typer

from edgeconvnext.cli.commands import command
from edgeconvnext.cli.options import JsonOption, ModelArgument
from edgeconvnext.cli.output import print_out
from edgeconvnext.options import commands as options


@command(
    options.Search,
    "search digits --calib digits --budget-minutes 5",
    "search my.pth --calib photos/ --threads 4 --output mine/",
)
def search(options: options.Search, model: ModelArgument, json: JsonOption = False) -> None:
    """Search the placement of Q/DQ pairs that is fastest on this machine, and write it as a target file.

    Run again, it goes on from what was measured before.
    """
    from edgeconvnext import api
    from edgeconvnext.report.placement_terminal import render_search

    placement, folder = api.search(model, **options.stated)
    if json:
        sys.stdout.write(placement.model_dump_json(indent=2) + "\n")
        return
    print_out(render_search(placement))
    typer.echo(f"\nwritten: {folder / 'target.toml'}")
