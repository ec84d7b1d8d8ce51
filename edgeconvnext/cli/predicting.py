"""The command that asks networks for single images."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgeconvnext.cli.application import CommandWithPanels, app
from edgeconvnext.cli.commands import examples_text
from edgeconvnext.cli.options import JsonOption, QuietOption


@app.command(
    "predict",
    cls=CommandWithPanels,
    epilog=examples_text("predict runs/mine cat.jpg", "predict model.onnx 'photos/*.jpg' --json"),
)
def predict(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL|ARTIFACT", help="A finished run, a model as quantize takes it, or an artifact."
        ),
    ],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, folders, patterns, or a set's name.")],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what images show: the five most probable classes, by FP32 and INT8 side by side for a run."""
    from contextlib import nullcontext

    from edgeconvnext.commands.predict import predict as ask
    from edgeconvnext.commands.predict import predictions_json, render_predictions, several
    from edgeconvnext.progress import without_bars

    with without_bars() if quiet else nullcontext():
        predicted = ask(subject, several(images))
    if json:
        sys.stdout.write(predictions_json(predicted))
    else:
        typer.echo(render_predictions(predicted))
