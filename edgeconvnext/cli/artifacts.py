"""Commands that make artifacts and judge them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeconvnext.backends import DEFAULT_TARGET
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
    ReuseOption,
    RoundingName,
    RoundingOption,
    SizesOption,
    StdOption,
    TargetOption,
    ThreadsOption,
    WeightsOption,
    check_bits,
    refuse_without,
)
from edgeconvnext.cli.output import finish
from edgeconvnext.cli.values import path_value

if TYPE_CHECKING:
    from edgeconvnext.pipeline.job import Request
    from edgeconvnext.tuning.compress import CompressOptions


@app.command()
def quantize(
    context: typer.Context,
    model: ModelOption = None,
    head: HeadOption = "classifier",
    calib: CalibOption = None,
    eval_set: EvalOption = None,
    target: TargetOption = DEFAULT_TARGET,
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
    reuse: ReuseOption = False,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Quantise to INT8 with real images and measure the simulated graph against FP32."""
    from dataclasses import replace

    from edgeconvnext.pipeline import commands as pipeline

    request = _request(
        *(model, head, calib, eval_set, target, num_images, calibrator, effort),
        *(resolution, sizes, crop_pct, mean, std, output),
    )
    method = _method(weights, activations, plan, prepare, rounding, bias_correction, adaround_minutes, max_drop)
    compress = _compress(context, prune_macs, replace_norm, norms, norm_drop, recover, epochs, budget_minutes)
    finish(pipeline.quantize(replace(request, compress=compress, reuse_beside=reuse, **method)), json)


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
            parser=path_value,
            metavar="<path>",
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
    reuse: ReuseOption = False,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Quantise, write the artifact of a target, run it where its runtime is here, and report."""
    from dataclasses import replace

    from edgeconvnext.pipeline import commands as pipeline

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
    asked = replace(
        request,
        reuse_from=from_run,
        reuse_beside=reuse,
        measure_latency=latency,
        threads=threads,
        compress=compress,
        **method,
    )
    finish(pipeline.export(asked), json)


@app.command()
def validate(
    run: Annotated[
        Path, typer.Argument(help="Run directory that quantize or export wrote.", parser=path_value, metavar="<path>")
    ],
    data: Annotated[str | None, typer.Option("--data", help="Evaluation images: a set's name or a folder.")] = None,
    device: Annotated[
        Path | None,
        typer.Option(
            "--device",
            help="device.json that the run's device kit wrote: merged, nothing is measured again.",
            parser=path_value,
            metavar="<path>",
        ),
    ] = None,
    latency: LatencyOption = True,
    threads: ThreadsOption = 1,
    json: JsonOption = False,
) -> None:
    """Measure the artifact of a finished run again, or merge what a device measured, and renew its report."""
    from edgeconvnext.pipeline import commands as pipeline

    if device is not None:
        if data is not None:
            raise typer.BadParameter("--device merges a file and measures nothing here; leave out --data.")
        finish(pipeline.merge_device(run, device), json)
    finish(pipeline.validate(run, data, measure_latency=latency, threads=threads), json)


@app.command()
def remote(
    run: Annotated[Path, typer.Argument(help="Run directory that export wrote.", parser=path_value, metavar="<path>")],
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
    from edgeconvnext.pipeline import commands as pipeline

    def say(text: str) -> None:
        typer.echo(text, err=True)

    finish(pipeline.remote(run, host, python=python, workdir=workdir, say=say, print_=say), json)


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
    from edgeconvnext.data.size import parse_size, parse_sizes
    from edgeconvnext.pipeline.job import Request

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
    check_bits(weights, activations)
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
    from edgeconvnext.tuning.compress import CompressOptions

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


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{option} takes numbers separated by commas, as in 0.485,0.456,0.406; it is {text!r}."
        ) from None
