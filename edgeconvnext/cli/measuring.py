"""Commands that measure: where a network's error comes from, how long an artifact takes, which target is best."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeconvnext.cli.commands import command
from edgeconvnext.cli.options import JsonOption, ModelArgument
from edgeconvnext.cli.output import print_out
from edgeconvnext.cli.values import path_value
from edgeconvnext.errors import GATE_MISSED_EXIT_CODE
from edgeconvnext.options import commands as options


@command(
    options.Analyze,
    "analyze runs/mine",
    "analyze my.pth --calib photos/ --target jetson",
)
def analyze(
    options: options.Analyze,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN", help="A finished run, or a model as quantize takes it; needs --calib then."
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Say which layers the quantization error comes from, what is wrong with them, and what to try."""
    from edgeconvnext import api
    from edgeconvnext.report.analysis_terminal import render_analysis

    analyzed = api.analyze(subject, **options.stated)
    if json:
        sys.stdout.write(analyzed.analysis.model_dump_json(indent=2) + "\n")
        return
    print_out(render_analysis(analyzed.analysis))
    typer.echo(f"\nanalysis: {analyzed.path / 'analysis.html'}")


@command(
    options.Bench,
    "bench runs/mine --threads 2",
    "bench model_int8.onnx --against model_fp32.onnx --profile",
)
def bench(
    options: options.Bench,
    artifact: Annotated[
        Path, typer.Argument(help="An ONNX artifact, or a run directory.", parser=path_value, metavar="ARTIFACT|RUN")
    ],
    json: JsonOption = False,
) -> None:
    """Time an artifact in its runtime, interleaved with its float baseline."""
    if options.runtime == "triton":
        _bench_triton(artifact, options.batch, options.seconds, json)
        return
    from edgeconvnext.commands.bench import bench_artifact, render_bench

    result = bench_artifact(
        artifact,
        None if options.against is None else Path(options.against),
        batch=options.batch,
        threads=options.threads,
        seconds=options.seconds,
        profile=options.profile,
    )
    if json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    else:
        print_out(render_bench(result))


@command(
    options.Compare,
    "compare digits --calib digits --eval digits_test",
    "compare my.pth --targets onnx,openvino --calib photos/ --threads 1,2 --batch 1,8",
)
def compare(options: options.Compare, model: ModelArgument, json: JsonOption = False) -> None:
    """Export a network for several targets, measure all of them beside each other, and say which to ship."""
    from edgeconvnext.commands.compare import compare as run
    from edgeconvnext.report.comparison_page import render_comparison, write_page
    from edgeconvnext.report.roadmap_page import check_page

    page = None if options.page is None else Path(options.page)
    if page is not None:
        check_page(page)
    result, folder = run(model, options, lambda line: typer.echo(line, err=True))
    if page is not None:
        write_page(result, page)
    if json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    else:
        print_out(render_comparison(result))
        typer.echo(f"\ncomparison: {folder / 'comparison.md'}" + ("" if page is None else f"\npage: {page}"))
    if not any(row.within for row in result.rows):
        raise typer.Exit(GATE_MISSED_EXIT_CODE)


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
