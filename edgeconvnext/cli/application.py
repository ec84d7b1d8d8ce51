"""The application that commands are added to."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="From a trained ConvNeXt to measured INT8 artifacts for TensorRT, Core ML and ONNX Runtime.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    help="Image sets: list them, fetch the public ones.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        import edgeconvnext

        typer.echo(f"edgeconvnext {edgeconvnext.__version__}")
        raise typer.Exit
