"""What commands print, and the exit code a run ends with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from edgeconvnext.pipeline.commands import Outcome
    from edgeconvnext.tuning.compress import Compressed


def finish(outcome: Outcome, json: bool) -> NoReturn:
    """Print the summary, or the report as JSON, and end with the run's exit code."""
    from edgeconvnext.report.terminal import render_summary
    from edgeconvnext.report.write import report_json

    if json:
        sys.stdout.write(report_json(outcome.report))
    else:
        print_out(render_summary(outcome.report))
        typer.echo(f"\nreport: {outcome.path / 'report.html'}")
    raise typer.Exit(outcome.exit_code)


def show_changes(result: Compressed, output: Path, json: bool) -> None:
    from edgeconvnext.report.changes_terminal import render_changes

    if json:
        sys.stdout.write(result.record.model_dump_json(indent=2) + "\n")
        return
    print_out(render_changes(result.record))
    typer.echo(f"\nwritten: {output}")


def print_out(renderable: object) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(renderable)
