"""Arguments and options that are the command line's own: Python takes them as a first argument, or has no use for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeconvnext.cli.application import OUTPUT_PANEL
from edgeconvnext.cli.values import path_value

ModelArgument = Annotated[str, typer.Argument(help="Weights file, folder, hub name, preset, or 'digits'.")]
RunArgument = Annotated[
    Path, typer.Argument(help="Run directory that quantize or export wrote.", parser=path_value, metavar="RUN")
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as JSON on standard output.", metavar="", rich_help_panel=OUTPUT_PANEL
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="Show no progress.", metavar="", rich_help_panel=OUTPUT_PANEL)
]
