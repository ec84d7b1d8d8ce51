"""Commands that make, judge and time artifacts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeconvnext.cli.application import app
from edgeconvnext.cli.options import (
    ActivationsOption,
    BiasOption,
    BudgetOption,
    CalibOption,
    CalibratorName,
    CalibratorOption,
    CropOption,
    DropOption,
    EffortName,
    EffortOption,
    EpochsOption,
    EvalOption,
    HeadName,
    HeadOption,
    ImagesOption,
    JsonOption,
    LatencyOption,
    MeanOption,
    MinutesOption,
    ModelOption,
    NormDropOption,
    NormScopeName,
    NormScopeOption,
    OutputOption,
    PlanOption,
    PreparationName,
    PrepareOption,
    PruneOption,
    RecoverOption,
    ReplaceNormOption,
    ResolutionOption,
    RoundingName,
    RoundingOption,
    SizesOption,
    StdOption,
    TargetOption,
    ThreadsOption,
    WeightsOption,
    refuse_without,
)
from edgeconvnext.cli.output import finish, print_out
from edgeconvnext.errors import GATE_MISSED_EXIT_CODE

if TYPE_CHECKING:
    from edgeconvnext.job import Request
    from edgeconvnext.search.compress import CompressOptions


@app.command()
def quantize(
    context: typer.Context,
    model: ModelOption = None,
    head: HeadOption = "classifier",
    calib: CalibOption = None,
    eval_set: EvalOption = None,
    target: TargetOption = "onnx",
    num_images: ImagesOption = 256,
    calibrator: CalibratorOption = "auto",
    effort: EffortOption = "default",
    weights: WeightsOption = None,
    activations: ActivationsOption = None,
    plan: PlanOption = None,
    prepare: PrepareOption = "auto",
    rounding: RoundingOption = "auto",
    bias_correction: BiasOption = True,
    adaround_minutes: MinutesOption = 10.0,
    max_drop: DropOption = None,
    prune_macs: PruneOption = None,
    replace_norm: ReplaceNormOption = False,
    norms: NormScopeOption = "all",
    norm_drop: NormDropOption = 0.5,
    recover: RecoverOption = False,
    epochs: EpochsOption = 10,
    budget_minutes: BudgetOption = None,
    resolution: ResolutionOption = None,
    sizes: SizesOption = None,
    crop_pct: CropOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Quantise to INT8 with real images and measure the simulated graph against FP32."""
    from dataclasses import replace

    from edgeconvnext import pipeline

    request = _request(
        *(model, head, calib, eval_set, target, num_images, calibrator, effort),
        *(resolution, sizes, crop_pct, mean, std, output),
    )
    method = _method(weights, activations, plan, prepare, rounding, bias_correction, adaround_minutes, max_drop)
    compress = _compress(context, prune_macs, replace_norm, norms, norm_drop, recover, epochs, budget_minutes)
    finish(pipeline.quantize(replace(request, compress=compress, **method)), json)


@app.command()
def export(
    context: typer.Context,
    target: Annotated[
        str, typer.Option("--target", help="Target by name, or a TOML file (see: edgeconvnext targets).")
    ],
    model: ModelOption = None,
    head: HeadOption = "classifier",
    calib: CalibOption = None,
    eval_set: EvalOption = None,
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A finished run: its model, images, options and statistics are used again. An option given at its default counts "
            "as not given.",
        ),
    ] = None,
    num_images: ImagesOption = 256,
    calibrator: CalibratorOption = "auto",
    effort: EffortOption = "default",
    weights: WeightsOption = None,
    activations: ActivationsOption = None,
    plan: PlanOption = None,
    prepare: PrepareOption = "auto",
    rounding: RoundingOption = "auto",
    bias_correction: BiasOption = True,
    adaround_minutes: MinutesOption = 10.0,
    max_drop: DropOption = None,
    prune_macs: PruneOption = None,
    replace_norm: ReplaceNormOption = False,
    norms: NormScopeOption = "all",
    norm_drop: NormDropOption = 0.5,
    recover: RecoverOption = False,
    epochs: EpochsOption = 10,
    budget_minutes: BudgetOption = None,
    resolution: ResolutionOption = None,
    sizes: SizesOption = None,
    crop_pct: CropOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    latency: LatencyOption = True,
    threads: ThreadsOption = 1,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Quantise, write the artifact of a target, run it where its runtime is here, and report."""
    from dataclasses import replace

    from edgeconvnext import pipeline

    if from_run is not None and not all(given is None for given in (model, resolution, crop_pct, mean, std)):
        raise typer.BadParameter(
            "--from names a run and its model; leave out --model, --resolution, --crop-pct, --mean and --std."
        )
    request = _request(
        *(model, head, calib, eval_set, target, num_images, calibrator, effort),
        *(resolution, sizes, crop_pct, mean, std, output),
    )
    method = _method(weights, activations, plan, prepare, rounding, bias_correction, adaround_minutes, max_drop)
    compress = _compress(
        *(context, prune_macs, replace_norm, norms, norm_drop, recover, epochs, budget_minutes),
        threads=threads,
        latency=latency,
    )
    asked = replace(request, reuse_from=from_run, measure_latency=latency, threads=threads, compress=compress, **method)
    finish(pipeline.export(asked), json)


@app.command()
def validate(
    run: Annotated[Path, typer.Argument(help="Run directory that quantize or export wrote.")],
    data: Annotated[str | None, typer.Option("--data", help="Evaluation images: a set's name or a folder.")] = None,
    device: Annotated[
        Path | None,
        typer.Option(
            "--device", help="device.json that the run's device kit wrote: merged, nothing is measured again."
        ),
    ] = None,
    latency: LatencyOption = True,
    threads: ThreadsOption = 1,
    json: JsonOption = False,
) -> None:
    """Measure the artifact of a finished run again, or merge what a device measured, and renew its report."""
    from edgeconvnext import pipeline

    if device is not None:
        if data is not None:
            raise typer.BadParameter("--device merges a file and measures nothing here; leave out --data.")
        finish(pipeline.merge_device(run, device), json)
    finish(pipeline.validate(run, data, measure_latency=latency, threads=threads), json)


@app.command()
def remote(
    run: Annotated[Path, typer.Argument(help="Run directory that export wrote.")],
    host: Annotated[str, typer.Option("--host", help="Where ssh gets to the device, as in user@board.")],
    python: Annotated[str, typer.Option("--python", help="Python on the device that has the runtime.")] = "python3",
    workdir: Annotated[
        str | None,
        typer.Option(
            "--workdir", help="Folder on the device for the kit, removed after.", show_default="~/.cache/edgeconvnext"
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a finished run's device kit on a device over ssh, and merge what it measures into the report."""
    from edgeconvnext import pipeline

    def say(text: str) -> None:
        typer.echo(text, err=True)

    finish(pipeline.remote(run, host, python=python, workdir=workdir, say=say, print_=say), json)


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
        str | None, typer.Option("--target", help="Target by name, or a TOML file.", show_default="onnx")
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
    json: JsonOption = False,
) -> None:
    """Say which layers the quantization error comes from, what is wrong with them, and what to try."""
    from typing import cast

    from edgeconvnext.api import analyze as run
    from edgeconvnext.quantize.precision import ActivationBits, WeightBits
    from edgeconvnext.report.analysis_terminal import render_analysis

    _check_bits(weights, activations)
    found = run(
        subject,
        calib=calib,
        target=target,
        num_images=num_images,
        effort=effort,
        weights=cast(WeightBits | None, weights),
        activations=cast(ActivationBits | None, activations),
        plan=plan,
    )
    if json:
        sys.stdout.write(found.analysis.model_dump_json(indent=2) + "\n")
        return
    print_out(render_analysis(found.analysis))
    typer.echo(f"\nanalysis: {found.path / 'analysis.html'}")


@app.command()
def bench(
    artifact: Annotated[Path, typer.Argument(help="An ONNX artifact, or a run directory.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="A float ONNX to compare with. Default: the baseline of the run.")
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
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Measured time of each model.")] = 3.0,
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
    from edgeconvnext.bench import bench_artifact, render_bench

    result = bench_artifact(artifact, against, batch=batch, threads=threads, seconds=seconds, profile=profile)
    if json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    else:
        print_out(render_bench(result))


def _bench_triton(run: Path, batch: int | None, seconds: float, json: bool) -> None:
    """Print the times and write them beside the run's files; exit code 3 where the kernels are not the simulated graph."""
    from dataclasses import asdict
    from json import dumps

    from edgeconvnext.triton.gpu import BATCHES, require_gpu
    from edgeconvnext.triton.planned import load_planned_run

    planned, device = load_planned_run(run), require_gpu()
    from edgeconvnext.triton.terminal import render_triton_bench
    from edgeconvnext.triton.timing import CSV_NAME, bench_triton, write_csv

    bench = bench_triton(planned, device, BATCHES if batch is None else (batch,), seconds)
    if json:
        sys.stdout.write(dumps(asdict(bench), indent=2) + "\n")
    else:
        print_out(render_triton_bench(bench))
    if not bench.is_right:
        raise typer.Exit(GATE_MISSED_EXIT_CODE)
    write_csv(run / CSV_NAME, bench.forms)
    typer.echo(f"\ntimes: {run / CSV_NAME}", err=json)


def _request(
    model: str | None,
    head: HeadName,
    calib: str | None,
    eval_set: str | None,
    target: str,
    num_images: int,
    calibrator: CalibratorName,
    effort: EffortName,
    resolution: str | None,
    sizes: str | None,
    crop_pct: float | None,
    mean: str | None,
    std: str | None,
    output: Path | None,
) -> Request:
    from edgeconvnext.job import Request
    from edgeconvnext.model.input_size import parse_size, parse_sizes

    return Request(
        model=model,
        head=head,
        target=target,
        calibration=calib,
        evaluation=eval_set,
        num_images=num_images,
        calibrator=calibrator,
        effort=effort,
        resolution=None if resolution is None else parse_size(resolution),
        sizes=() if sizes is None else parse_sizes(sizes),
        crop_pct=crop_pct,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        output=output,
    )


def _method(
    weights: int | None,
    activations: int | None,
    plan: Path | None,
    prepare: PreparationName,
    rounding: RoundingName,
    bias_correction: bool,
    adaround_minutes: float,
    max_drop: float | None,
) -> dict[str, Any]:
    """Return the fields of a request that say how it is quantised, with the bits checked."""
    _check_bits(weights, activations)
    return {
        "weights": weights,
        "activations": activations,
        "plan": plan,
        "preparation": prepare,
        "rounding": rounding,
        "bias_correction": bias_correction,
        "adaround_minutes": adaround_minutes,
        "max_drop": max_drop,
    }


def _compress(
    context: typer.Context,
    macs: float | None,
    replace_norm: bool,
    norms: NormScopeName,
    norm_drop: float,
    recover: bool,
    epochs: int,
    minutes: float | None,
    threads: int = 1,
    latency: bool = True,
) -> CompressOptions | None:
    """Return what is to be changed before quantization, or None."""
    from edgeconvnext.search.compress import CompressOptions

    if recover and macs is None and not replace_norm:
        raise typer.BadParameter("--recover makes up for --prune-macs or --replace-norm; give one of them.")
    if not recover:
        refuse_without(context, "--recover", "epochs", "budget_minutes")
    if not replace_norm:
        refuse_without(context, "--replace-norm", "norms", "norm_drop")
    if macs is None and not replace_norm:
        return None
    return CompressOptions(
        macs=macs,
        replace_norms=replace_norm,
        norms=norms,
        max_drop=norm_drop,
        recover=recover,
        epochs=epochs,
        minutes=minutes,
        threads=threads,
        measure_latency=latency,
    )


def _check_bits(weights: int | None, activations: int | None) -> None:
    for option, value, known in (("--weights", weights, (4, 8)), ("--activations", activations, (8, 16))):
        if value is not None and value not in known:
            raise typer.BadParameter(f"{option} takes {known[0]} or {known[1]}; it is {value}.")


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{option} takes numbers separated by commas, as in 0.485,0.456,0.406; it is {text!r}."
        ) from None
