"""The application that commands are added to: help in panels, usage errors in plain lines."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

OUTPUT_PANEL = "Output"


class CommandWithPanels(TyperCommand):
    """A command whose help has a panel for each group of options."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings | {"rich_markup_mode": "rich"})

    def format_help(self, context: Any, formatter: Any) -> None:
        """Print the help; a switch takes one column, as --[no-]latency, and leaves room for its text at 80 columns."""
        for option in self.params:
            if option.secondary_opts:
                option.opts, option.secondary_opts = [option.opts[0].replace("--", "--[no-]")], []
        super().format_help(context, formatter)

    def get_help_option(self, context: Any) -> Any:
        """Return --help, listed after the other options and not in a panel of its own above them."""
        option = super().get_help_option(context)
        if option is not None:
            option.rich_help_panel, option.metavar = OUTPUT_PANEL, ""
        return option


class GroupWithPanels(TyperGroup):
    """A group of commands with help in panels. Usage errors stay plain: a frame would cut them at the terminal's width."""

    def format_help(self, context: Any, formatter: Any) -> None:
        from typer.rich_utils import rich_format_help

        rich_format_help(obj=self, ctx=context, markup_mode="rich")


app = typer.Typer(
    cls=GroupWithPanels,
    help="From a trained ConvNeXt to measured INT8 artifacts for TensorRT, Core ML and ONNX Runtime.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    cls=GroupWithPanels,
    help="Image sets: list them, fetch the public ones.",
    no_args_is_help=True,
    rich_markup_mode=None,
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
