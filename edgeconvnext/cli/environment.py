"""Commands that list what is installed: targets, runtimes, image sets."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from edgeconvnext.cli.application import CommandWithPanels, app, data_app
from edgeconvnext.cli.options import JsonOption, QuietOption
from edgeconvnext.cli.output import print_out
from edgeconvnext.cli.values import path_value
from edgeconvnext.progress import without_bars


@app.command(cls=CommandWithPanels)
def targets(json: JsonOption = False) -> None:
    """List the targets."""
    from json import dumps

    from rich.table import Table

    from edgeconvnext.backends import load_target
    from edgeconvnext.choices import CONVNEXT_OPERATORS
    from edgeconvnext.targets import target_files

    known = [load_target(name) for name in target_files()]
    if json:
        listed = [target.model_dump() | {"facts": [fact.model_dump() for fact in target.facts]} for target in known]
        sys.stdout.write(dumps(listed, indent=2) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("target", "runtime", "quantised", "rest", "description"):
        table.add_column(column)
    for target in known:
        own = [operator for operator in CONVNEXT_OPERATORS if operator in target.quantize.operators]
        quantised = f"{len(own)} of {len(CONVNEXT_OPERATORS)} operators, {target.quantize.activations.scheme}"
        runtime = f"{target.runtime.name} >= {target.runtime.minimum}"
        table.add_row(target.name, runtime, quantised, target.float_type, target.description)
    print_out(table)


@app.command(cls=CommandWithPanels)
def doctor(json: JsonOption = False) -> None:
    """Say which runtimes, devices and image sets this machine has."""
    from dataclasses import asdict
    from json import dumps

    from edgeconvnext.commands.doctor import diagnose, render

    checks = diagnose()
    if json:
        sys.stdout.write(dumps([asdict(check) for check in checks], indent=2) + "\n")
    else:
        print_out(render(checks))


@data_app.command("list", cls=CommandWithPanels)
def data_list() -> None:
    """List the known image sets and whether this machine has them."""
    from edgeconvnext.commands.doctor import diagnose, render

    print_out(render([check for check in diagnose() if check.kind == "data"]))


@data_app.command("get", cls=CommandWithPanels)
def data_get(
    name: Annotated[str, typer.Argument(help="The set to fetch, as in imagenette.")],
    destination: Annotated[
        Path | None, typer.Option("--destination", help="Folder to unpack into.", parser=path_value, metavar="<path>")
    ] = None,
    quiet: QuietOption = False,
    accept_terms: Annotated[bool, typer.Option("--accept-terms", help="Agree to the set's terms of use.")] = False,
) -> None:
    """Fetch a public image set: checked, resumable, unpacked safely."""
    from edgeconvnext.data.fetch import fetch, terms_of

    terms = terms_of(name)
    if terms is not None:
        typer.echo(terms, err=True)
        if not accept_terms and sys.stdin.isatty():
            accept_terms = typer.confirm("Do you agree to these terms?", err=True)
    with without_bars() if quiet else nullcontext():
        folder = fetch(name, destination, accept_terms=accept_terms)
    typer.echo(f"ready: {folder}")
