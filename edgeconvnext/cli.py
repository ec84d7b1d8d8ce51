"""The command line: one typed function per command; what a command needs is imported inside it."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from edgeconvnext.errors import EdgeConvNextError

if TYPE_CHECKING:
    from edgeconvnext.job import Request
    from edgeconvnext.pipeline import Outcome
    from edgeconvnext.search.compress import Compressed, CompressOptions

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

INTERRUPTED_EXIT_CODE = 130
# What a path or disk of the user's can be refused for wherever it is touched; any other system error is a bug.
_USERS_TO_FIX = frozenset(
    {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EIO}
)

CalibratorName = Literal["auto", "minmax", "percentile", "entropy", "mse", "output"]
PreparationName = Literal["auto", "none", "force"]
RoundingName = Literal["auto", "nearest", "gptq", "adaround"]
NormScopeName = Literal["all", "blocks"]
EffortName = Literal["quick", "default", "best"]
ScoreName = Literal["auto", "elimination", "magnitude", "energy", "taylor"]

ModelArgument = Annotated[str, typer.Argument(help="Weights file, folder, hub name, preset, or 'digits'.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Weights file, folder, hub name or preset. Default: $EDGECONVNEXT_MODEL, else convnext_tiny."
    ),
]
CalibOption = Annotated[str | None, typer.Option("--calib", help="Calibration images: a set's name or a folder.")]
EvalOption = Annotated[str | None, typer.Option("--eval", help="Labelled evaluation images: a set's name or a folder.")]
TargetOption = Annotated[
    str, typer.Option("--target", help="Target by name, or a TOML file (see: edgeconvnext targets).")
]
ImagesOption = Annotated[int, typer.Option("--num-images", help="Calibration images in all; a third is held out.")]
CalibratorOption = Annotated[
    CalibratorName, typer.Option("--calibrator", help="Range estimator; auto picks the best one per tensor.")
]
EffortOption = Annotated[
    EffortName,
    typer.Option(
        "--effort",
        help="quick: each tensor by itself, nearest codes; default: layers one after the other, GPTQ; best: AdaRound as well.",
    ),
]
WeightsOption = Annotated[
    int | None, typer.Option("--weights", help="Bits of weights, 4 or 8. Default: the plan's or the target's.")
]
ActivationsOption = Annotated[
    int | None, typer.Option("--activations", help="Bits of activations, 8 or 16. Default: the plan's or the target's.")
]
PlanOption = Annotated[
    Path | None, typer.Option("--plan", help="TOML file with bits by layer; every run writes its own, plan.toml.")
]
PrepareOption = Annotated[
    PreparationName,
    typer.Option(
        "--prepare", help="Scales and shifts in front of quantizers: auto takes those that help, none, or force."
    ),
]
RoundingOption = Annotated[
    RoundingName, typer.Option("--rounding", help="How weights are rounded; auto takes the best per layer.")
]
BiasOption = Annotated[
    bool, typer.Option("--bias-correction/--no-bias-correction", help="Correct biases by the outputs' measured shift.")
]
MinutesOption = Annotated[
    float,
    typer.Option("--adaround-minutes", help="Time AdaRound may take in all (effort best, or --rounding adaround)."),
]
DropOption = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        help="Points of top-1 (or agreement) that may be lost; the costliest layers stay float until that holds.",
    ),
]
PruneOption = Annotated[
    float | None,
    typer.Option("--prune-macs", help="Share of the multiply-adds that pruning keeps, as in 0.6. Default: no pruning."),
]
ReplaceNormOption = Annotated[
    bool, typer.Option("--replace-norm", help="Replace the LayerNorms that may go by what folds into convs.")
]
NormScopeOption = Annotated[
    NormScopeName,
    typer.Option("--norms", help="Which LayerNorms --replace-norm may take: all, or those of blocks only."),
]
NormDropOption = Annotated[
    float, typer.Option("--norm-drop", help="Points of top-1 that --replace-norm may cost before quantization.")
]
RecoverOption = Annotated[
    bool, typer.Option("--recover", help="Train the changed network, without labels, towards the original.")
]
EpochsOption = Annotated[int, typer.Option("--epochs", help="Passes of --recover over the calibration set.")]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget-minutes", help="Minutes that --recover may take: of processor time, or of a GPU's."),
]
ChangeImagesOption = Annotated[
    int, typer.Option("--num-images", help="Images that layers are re-fitted on; a third is held out.")
]
ResolutionOption = Annotated[
    int | None, typer.Option("--resolution", help="Input side in pixels. Default: the checkpoint's own.")
]
CropOption = Annotated[
    float | None, typer.Option("--crop-pct", help="Crop share of evaluation. Default: the checkpoint's.")
]
MeanOption = Annotated[str | None, typer.Option("--mean", help="Input means in 0..1, as in 0.485,0.456,0.406.")]
StdOption = Annotated[str | None, typer.Option("--std", help="Input standard deviations, as in 0.229,0.224,0.225.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", help="Run directory. Default: runs/<model>-<target>-<key>.")
]
LatencyOption = Annotated[bool, typer.Option("--latency/--no-latency", help="Measure latency.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime while timing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@app.command()
def quantize(
    model: ModelOption = None,
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
        model, calib, eval_set, target, num_images, calibrator, effort, resolution, crop_pct, mean, std, output
    )
    method = _method(weights, activations, plan, prepare, rounding, bias_correction, adaround_minutes, max_drop)
    compress = _compress(prune_macs, replace_norm, norms, norm_drop, recover, epochs, budget_minutes)
    _finish(pipeline.quantize(replace(request, compress=compress, **method)), json)


@app.command()
def export(
    target: Annotated[
        str, typer.Option("--target", help="Target by name, or a TOML file (see: edgeconvnext targets).")
    ],
    model: ModelOption = None,
    calib: CalibOption = None,
    eval_set: EvalOption = None,
    from_run: Annotated[
        Path | None, typer.Option("--from", help="A finished run: its model, images and statistics are used again.")
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
        model, calib, eval_set, target, num_images, calibrator, effort, resolution, crop_pct, mean, std, output
    )
    method = _method(weights, activations, plan, prepare, rounding, bias_correction, adaround_minutes, max_drop)
    compress = _compress(
        prune_macs, replace_norm, norms, norm_drop, recover, epochs, budget_minutes, threads=threads, latency=latency
    )
    asked = replace(request, reuse_from=from_run, measure_latency=latency, threads=threads, compress=compress, **method)
    _finish(pipeline.export(asked), json)


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
        _finish(pipeline.merge_device(run, device), json)
    _finish(pipeline.validate(run, data, measure_latency=latency, threads=threads), json)


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

    _finish(pipeline.remote(run, host, python=python, workdir=workdir, say=say, print_=say), json)


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
    _print(render_analysis(found.analysis))
    typer.echo(f"\nanalysis: {found.path / 'analysis.html'}")


@app.command()
def bench(
    artifact: Annotated[Path, typer.Argument(help="An ONNX artifact, or a run directory.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="A float ONNX to compare with. Default: the baseline of the run.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Images at once. Default: the artifact's own where fixed, else 1."),
    ] = None,
    threads: ThreadsOption = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Measured time of each model.")] = 3.0,
    json: JsonOption = False,
) -> None:
    """Time an artifact in its runtime, interleaved with its float baseline."""
    from edgeconvnext.bench import bench_artifact, render_bench

    result = bench_artifact(artifact, against, batch=batch, threads=threads, seconds=seconds)
    if json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    else:
        _print(render_bench(result))


@app.command()
def inspect(
    model: ModelArgument,
    resolution: ResolutionOption = None,
    json: JsonOption = False,
) -> None:
    """Show architecture, layout, parameters, MACs, input, labels, and which LayerNorms fold."""
    from dataclasses import asdict
    from json import dumps

    from edgeconvnext.model.describe import describe, render
    from edgeconvnext.model.load import load_model

    description = describe(load_model(model, resolution=resolution))
    if json:
        sys.stdout.write(dumps(asdict(description), indent=2) + "\n")
    else:
        _print(render(description))


@app.command()
def fold(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", help="Weights file to write, .safetensors.")],
    calib: Annotated[str, typer.Option("--calib", help="Images the fold is proven on: a set's name or a folder.")],
    replace_norm: ReplaceNormOption = False,
    norms: NormScopeOption = "all",
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="Points of top-1 that replacing LayerNorms may cost.")
    ] = 0.5,
    recover: RecoverOption = False,
    epochs: EpochsOption = 10,
    budget_minutes: BudgetOption = None,
    num_images: ChangeImagesOption = 768,
    target: TargetOption = "onnx",
    latency: LatencyOption = True,
    json: JsonOption = False,
) -> None:
    """Fold layer scale and LayerNorm affines exactly, and with --replace-norm replace the LayerNorms that may go."""
    from edgeconvnext import api
    from edgeconvnext.search.compress import CompressOptions

    if replace_norm:
        options = CompressOptions(
            replace_norms=True,
            norms=norms,
            max_drop=max_drop,
            recover=recover,
            epochs=epochs,
            minutes=budget_minutes,
            images=num_images,
            measure_latency=latency,
        )
        _show_changes(api.compress(model, calib=calib, options=options, target=target, output=output), output, json)
        return
    if recover:
        raise typer.BadParameter(
            "--recover makes up for what --replace-norm changed; an exact fold has nothing to recover."
        )
    result = api.fold(model, calib=calib, output=output)
    if json:
        from json import dumps

        sys.stdout.write(dumps({"errors": result.errors}, indent=2) + "\n")
        return
    for rewrite, error in result.errors.items():
        typer.echo(f"{rewrite}: largest relative error of the logits {error:.1e}")
    typer.echo(f"written: {output}")


@app.command()
def prune(
    model: ModelArgument,
    calib: Annotated[str, typer.Option("--calib", help="Calibration images: a set's name or a folder.")],
    output: Annotated[Path, typer.Option("--output", help="Weights file to write, .safetensors.")],
    macs: Annotated[
        float | None,
        typer.Option("--macs", help="Share of the multiply-adds to keep, above 0 and at most 1, as in 0.7."),
    ] = None,
    size: Annotated[
        float | None, typer.Option("--size", help="Share of the weights' bytes at 8 bits to keep, as in 0.5.")
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option("--latency", help="Share of the time measured here in onnxruntime to keep, as in 0.7."),
    ] = None,
    blocks: Annotated[int, typer.Option("--blocks", help="Whole blocks to take out first.")] = 0,
    sparsity: Annotated[
        Literal["2:4"] | None,
        typer.Option("--sparsity", help="2:4: two of four weights of the blocks' linears become zero."),
    ] = None,
    num_images: ImagesOption = 256,
    target: Annotated[
        str | None, typer.Option("--target", help="Target whose multiple the widths get: 8, 16 or 32.")
    ] = None,
    multiple: Annotated[
        int | None,
        typer.Option("--multiple", min=1, help="Widths become multiples of it.", show_default="the target's, else 8"),
    ] = None,
    score: Annotated[
        ScoreName, typer.Option("--score", help="What chooses channels; auto takes the best one for each block.")
    ] = "auto",
    torch_code: Annotated[
        Path | None,
        typer.Option(
            "--torch-code", help="Python file to write as well: the network for torch alone, loading --output."
        ),
    ] = None,
    recover: RecoverOption = False,
    epochs: EpochsOption = 10,
    budget_minutes: BudgetOption = None,
) -> None:
    """Make a network smaller: channels, blocks or 2:4 sparsity; fit what is left, train it with --recover, and save it."""
    from edgeconvnext.api import prune as run
    from edgeconvnext.report.pruning_terminal import render_pruned

    if recover:
        others: dict[str, object] = {
            "--size": size,
            "--latency": latency,
            "--blocks": blocks or None,
            "--sparsity": sparsity,
        }
        others |= {"--torch-code": torch_code, "--score": None if score == "auto" else score}
        given = [name for name, value in others.items() if value is not None]
        if macs is None or given:
            raise typer.BadParameter(
                "--recover trains a network whose channels --macs took out"
                + (f"; leave out {' and '.join(given)}." if given else "; give --macs.")
            )
        from edgeconvnext import api
        from edgeconvnext.search.compress import CompressOptions

        options = CompressOptions(
            macs=macs, recover=True, epochs=epochs, minutes=budget_minutes, images=num_images, multiple=multiple
        )
        _show_changes(
            api.compress(model, calib=calib, options=options, target=target or "onnx", output=output), output, False
        )
        return
    result = run(
        model,
        calib=calib,
        macs=macs,
        size=size,
        latency=latency,
        num_images=num_images,
        multiple=multiple,
        target=target,
        score=score,
        blocks=blocks,
        sparsity=sparsity,
        output=output,
        torch_code=torch_code,
    )
    _print(render_pruned(result.channels, result.sparse))
    typer.echo(f"written: {output}" + (f" and {torch_code}" if torch_code else ""))


@app.command()
def roadmap(
    target: TargetOption = "onnx",
    calib: Annotated[
        str | None,
        typer.Option(
            "--calib", help="Calibration images: a set's name or a folder. Default: the digits of the package."
        ),
    ] = None,
    eval_set: Annotated[
        str | None, typer.Option("--eval", help="Labelled images for the steps with trained weights.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option("--steps", help="Only these, as in resnet50,kernel_7,convnext_tiny. Default: all.")
    ] = None,
    trained: Annotated[
        list[str] | None,
        typer.Option("--trained", help="Trained weights of a step, as in resnet50=resnet50.pth; may be repeated."),
    ] = None,
    num_images: Annotated[
        int, typer.Option("--num-images", help="Calibration images in all; a third is held out.")
    ] = 64,
    effort: EffortOption = "quick",
    resolution: Annotated[int, typer.Option("--resolution", help="Input side in pixels.")] = 224,
    latency: LatencyOption = True,
    threads: ThreadsOption = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder of the roadmap. Default: runs/roadmap-<target>-<resolution>."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="Write the page here as well, with its plot and CSV beside it.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take every step from ResNet-50 to ConvNeXt-T to INT8 and time it; finished steps are kept."""
    from json import dumps

    from edgeconvnext.model.roadmap import select_steps
    from edgeconvnext.report.roadmap_page import check_page, render_roadmap, write_page
    from edgeconvnext.roadmap import RoadmapRequest
    from edgeconvnext.roadmap import roadmap as run

    if page is not None:
        check_page(page)
    request = RoadmapRequest(
        steps=tuple(select_steps(steps)),
        target=target,
        calibration=calib,
        evaluation=eval_set,
        num_images=num_images,
        effort=effort,
        resolution=resolution,
        trained=_weights_by_step(trained or []),
        measure_latency=latency,
        threads=threads,
        output=output,
    )
    result, folder = run(request, lambda line: typer.echo(line, err=True))
    if page is not None:
        write_page(result, page)
    if json:
        sys.stdout.write(dumps([step.model_dump(mode="json") for step in result.steps], indent=2) + "\n")
        return
    _print(render_roadmap(result))
    typer.echo(f"\nroadmap: {folder / 'roadmap.md'}" + ("" if page is None else f"\npage: {page}"))


def _weights_by_step(given: list[str]) -> dict[str, Path]:
    """Read --trained, "step=path" each."""
    for text in given:
        if not all(text.partition("=")):
            raise typer.BadParameter(
                f"--trained takes a step and its weights, as in resnet50=resnet50.pth; it is {text!r}."
            )
    return {name: Path(path) for name, _, path in (text.partition("=") for text in given)}


@app.command()
def targets(json: JsonOption = False) -> None:
    """List the targets."""
    from json import dumps

    from rich.table import Table

    from edgeconvnext.targets import CONVNEXT_OPERATORS, load_target, target_files

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
    _print(table)


@app.command()
def doctor(json: JsonOption = False) -> None:
    """Say which runtimes, devices and image sets are here."""
    from dataclasses import asdict
    from json import dumps

    from edgeconvnext.doctor import diagnose, render

    checks = diagnose()
    if json:
        sys.stdout.write(dumps([asdict(check) for check in checks], indent=2) + "\n")
    else:
        _print(render(checks))


@data_app.command("list")
def data_list() -> None:
    """List the known image sets and whether they are here."""
    from edgeconvnext.doctor import diagnose, render

    _print(render([check for check in diagnose() if check.kind == "data"]))


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="The set to fetch, as in imagenette.")],
    destination: Annotated[Path | None, typer.Option("--destination", help="Folder to unpack into.")] = None,
) -> None:
    """Fetch a public image set: checked, resumable, unpacked safely."""
    from edgeconvnext.data.fetch import fetch

    typer.echo(f"ready: {fetch(name, destination)}")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        import edgeconvnext

        typer.echo(f"edgeconvnext {edgeconvnext.__version__}")
        raise typer.Exit


def _request(
    model: str | None,
    calib: str | None,
    eval_set: str | None,
    target: str,
    num_images: int,
    calibrator: CalibratorName,
    effort: EffortName,
    resolution: int | None,
    crop_pct: float | None,
    mean: str | None,
    std: str | None,
    output: Path | None,
) -> Request:
    from edgeconvnext.job import Request

    return Request(
        model=model,
        target=target,
        calibration=calib,
        evaluation=eval_set,
        num_images=num_images,
        calibrator=calibrator,
        effort=effort,
        resolution=resolution,
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

    if macs is None and not replace_norm:
        if recover:
            raise typer.BadParameter("--recover makes up for --prune-macs or --replace-norm; give one of them.")
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


def _show_changes(result: Compressed, output: Path, json: bool) -> None:
    from edgeconvnext.report.changes_terminal import render_changes

    if json:
        sys.stdout.write(result.record.model_dump_json(indent=2) + "\n")
        return
    _print(render_changes(result.record))
    typer.echo(f"\nwritten: {output}")


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


def _finish(outcome: Outcome, json: bool) -> NoReturn:
    """Print the summary, or the report as JSON, and end with the run's exit code."""
    from edgeconvnext.report.terminal import render_summary
    from edgeconvnext.report.write import report_json

    if json:
        sys.stdout.write(report_json(outcome.report))
    else:
        _print(render_summary(outcome.report))
        typer.echo(f"\nreport: {outcome.path / 'report.html'}")
    raise typer.Exit(outcome.exit_code)


def _print(renderable: object) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(renderable)


def main() -> None:
    """Run the command line; user errors end with one paragraph on standard error and their exit code."""
    try:
        app()
    except EdgeConvNextError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED_EXIT_CODE:  # typer turns Ctrl-C into this exit, without a word
            sys.stderr.write("interrupted; run the same command again to go on where it stopped\n")
        raise
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        if error.errno not in _USERS_TO_FIX:
            raise
        sys.stderr.write(f"error: {error.filename or 'The output'} cannot be used: {error.strerror}.\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
