"""Commands that measure what is there: where a network's error comes from, and how long an artifact takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgeconvnext.backends import DEFAULT_TARGET
from edgeconvnext.cli.application import app
from edgeconvnext.cli.options import (
    ActivationsOption,
    CalibOption,
    EffortName,
    JsonOption,
    PlanOption,
    ReuseOption,
    ThreadsOption,
    WeightsOption,
    check_bits,
)
from edgeconvnext.cli.output import print_out
from edgeconvnext.cli.values import at_least, path_value
from edgeconvnext.errors import GATE_MISSED_EXIT_CODE


@app.command()
def analyze(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN", help="A finished run, or a model as quantize takes it; needs --calib then."
        ),
    ],
    calib: CalibOption = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Target by name, or a TOML file.", show_default=DEFAULT_TARGET)
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option("--num-images", help="Calibration images in all; a third is held out.", show_default="256"),
    ] = None,
    effort: Annotated[
        EffortName | None, typer.Option("--effort", help="As in quantize.", show_default="default")
    ] = None,
    weights: WeightsOption = None,
    activations: ActivationsOption = None,
    plan: PlanOption = None,
    reuse: ReuseOption = False,
    json: JsonOption = False,
) -> None:
    """Say which layers the quantization error comes from, what is wrong with them, and what to try."""
    from typing import cast

    from edgeconvnext.api import analyze as run
    from edgeconvnext.choices import ActivationBits, WeightBits
    from edgeconvnext.report.analysis_terminal import render_analysis

    check_bits(weights, activations)
    found = run(
        subject,
        calib=calib,
        target=target,
        num_images=num_images,
        effort=effort,
        weights=cast(WeightBits | None, weights),
        activations=cast(ActivationBits | None, activations),
        plan=plan,
        reuse=reuse,
    )
    if json:
        sys.stdout.write(found.analysis.model_dump_json(indent=2) + "\n")
        return
    print_out(render_analysis(found.analysis))
    typer.echo(f"\nanalysis: {found.path / 'analysis.html'}")


@app.command()
def bench(
    artifact: Annotated[
        Path, typer.Argument(help="An ONNX artifact, or a run directory.", parser=path_value, metavar="<path>")
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            help="A float ONNX to compare with. Default: the baseline of the run.",
            parser=path_value,
            metavar="<path>",
        ),
    ] = None,
    runtime: Annotated[
        Literal["triton"] | None,
        typer.Option(
            "--runtime",
            help="triton: the quantised network of a run as Triton kernels on this machine's NVIDIA GPU, against float forms in "
            "torch.",
            show_default="the artifact's own",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help="Images at once. Default: the artifact's own where fixed, else 1; triton: 1, 8, 32, 128.",
        ),
    ] = None,
    threads: ThreadsOption = 1,
    seconds: Annotated[
        float, typer.Option("--seconds", help="Measured time of each model.", parser=at_least(0.1), metavar="<float>")
    ] = 3.0,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Also show what onnxruntime's operators take, and layers that fell back to float."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Time an artifact in its runtime, interleaved with its float baseline."""
    if runtime == "triton":
        if against is not None or threads != 1 or profile:
            raise typer.BadParameter(
                "--runtime triton times a run's own float forms on a GPU; leave out --against, --threads and --profile."
            )
        _bench_triton(artifact, batch, seconds, json)
        return
    from edgeconvnext.commands.bench import bench_artifact, render_bench

    result = bench_artifact(artifact, against, batch=batch, threads=threads, seconds=seconds, profile=profile)
    if json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    else:
        print_out(render_bench(result))


def _bench_triton(run: Path, batch: int | None, seconds: float, json: bool) -> None:
    """Print the times and write them beside the run's files; exit code 3 where the kernels are not the simulated graph."""
    from dataclasses import asdict
    from json import dumps

    from edgeconvnext.backends.triton.gpu import BATCHES, require_gpu
    from edgeconvnext.commands.bench_triton import load_planned_run

    planned, device = load_planned_run(run), require_gpu()
    from edgeconvnext.backends.triton.terminal import render_triton_bench
    from edgeconvnext.backends.triton.timing import CSV_NAME, bench_triton, write_csv

    bench = bench_triton(planned, device, BATCHES if batch is None else (batch,), seconds)
    if json:
        sys.stdout.write(dumps(asdict(bench), indent=2) + "\n")
    else:
        print_out(render_triton_bench(bench))
    if not bench.is_right:
        raise typer.Exit(GATE_MISSED_EXIT_CODE)
    write_csv(run / CSV_NAME, bench.forms)
    typer.echo(f"\ntimes: {run / CSV_NAME}", err=json)
