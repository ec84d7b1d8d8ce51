"""Commands that make artifacts and judge them."""

from __future__ import annotations

import typer

from edgeconvnext.cli.commands import command
from edgeconvnext.cli.options import JsonOption, RunArgument
from edgeconvnext.cli.output import finish
from edgeconvnext.options import commands as options


@command(
    options.Quantize,
    "quantize --model digits --calib digits --eval digits_test",
    "quantize --model my.pth --calib photos/ --weights 4 --effort best",
)
def quantize(options: options.Quantize, json: JsonOption = False) -> None:
    """Quantise to INT8 with real images and measure the simulated graph against FP32."""
    from edgeconvnext import api

    finish(api.quantize(**options.stated), json)


@command(
    options.Export,
    "export --target onnx --model my.pth --calib photos/",
    "export --target jetson --from runs/mine --effort best",
)
def export(options: options.Export, json: JsonOption = False) -> None:
    """Quantise, write the artifact of a target, run it where its runtime is installed, and report."""
    from edgeconvnext import api

    finish(api.export(**options.stated), json)


@command(
    options.Validate,
    "validate runs/mine --data imagenette_val",
    "validate runs/mine --device device.json",
)
def validate(options: options.Validate, run: RunArgument, json: JsonOption = False) -> None:
    """Measure the artifact of a finished run again, or merge what a device measured, and renew its report."""
    from edgeconvnext import api

    outcome = api.validate(run, **options.stated)
    if not json and options.device is None:
        typer.echo(
            f"measured: {', '.join(outcome.measured) or 'nothing'}\nreused: {', '.join(outcome.reused) or 'nothing'}"
        )
        if not options.again:
            typer.echo("--again measures accuracy again, too.")
        typer.echo()
    finish(outcome, json)


@command(
    options.Remote,
    "remote runs/mine --host user@board",
    "remote runs/mine --host user@board --python /opt/venv/bin/python",
)
def remote(options: options.Remote, run: RunArgument, json: JsonOption = False) -> None:
    """Run a finished run's device kit on a device over ssh, and merge what it measures into the report."""
    from edgeconvnext.pipeline import commands as pipeline

    def log(line: str) -> None:
        typer.echo(line, err=True)

    outcome = pipeline.remote(
        run,
        options.host,
        python=options.python,
        workdir=options.workdir,
        say=log,
        print_=log,
    )
    finish(outcome, json)
