"""The commands as functions: what a script or notebook calls. `edgeconvnext` re-exports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from edgeconvnext.backends import DEFAULT_TARGET, backend_for, load_target, timing_runtime
from edgeconvnext.choices import Head, Interpolation
from edgeconvnext.data.image_set import ImageSet, split_held_out
from edgeconvnext.data.in_memory import prepared, resolve_images
from edgeconvnext.data.loader import batches
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.data.size import Size
from edgeconvnext.errors import OptionError, RewriteError, UnusablePathError
from edgeconvnext.files import atomic_write
from edgeconvnext.model.agreement import checked
from edgeconvnext.model.checkpoint import check_file, prepare_output, save_checkpoint
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.heads import require_answers, with_head
from edgeconvnext.model.in_memory import model_of, needs_agreement
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.torch_code import check_torch_code_path, write_torch_code
from edgeconvnext.options import commands as options
from edgeconvnext.options.signatures import takes_options, takes_subject_and_options
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.commands import Analyzed, Outcome
from edgeconvnext.pipeline.inputs import normalization_unknown, read_network
from edgeconvnext.pipeline.job import Request, compress_options
from edgeconvnext.received import user_path
from edgeconvnext.rewrite.exact import PROOF_IMAGES, FoldResult, fold_exact
from edgeconvnext.rewrite.prune import PruneResult
from edgeconvnext.rewrite.prune import prune as prune_network
from edgeconvnext.rewrite.prune_costs import Budget, BudgetKind
from edgeconvnext.rewrite.prune_segments import FEWEST_IMAGES
from edgeconvnext.rewrite.sparsity import SparseResult, sparsify
from edgeconvnext.run.lock import is_run
from edgeconvnext.tuning.compress import Compressed, compressed_model, read_images
from edgeconvnext.tuning.compress import compress as run_compress

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from edgeconvnext.prediction.networks import Answer
    from edgeconvnext.schema.comparison import Comparison
    from edgeconvnext.schema.placement import PlacementFound
    from edgeconvnext.tuning.larger_module import QuantizedModule

DEFAULT_MULTIPLE = 8


def load_model(
    model: Any,
    *,
    head: Head = "classifier",
    weights_from: str | None = None,
    resolution: int | Size | None = None,
    crop_pct: float | None = None,
    interpolation: Interpolation | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> LoadedModel:
    """Load a trained ConvNeXt, ResNet or ResNeXt: what `quantize` takes as a model, with its preprocessing and class names.

    model: a weights file, a folder, a hub or preset name, a shipped model, a `torch.nn.Module`, a state dict, or a pair of a state
    dict and its config. A module has to compute what its tensors say, which is tried on noise. head: what the network ends with;
    all but "classifier" make a backbone of it. weights_from: which of several networks in a file. The others override the
    checkpoint's preprocessing.

    Raises CheckpointError for what cannot be read as such a network, ConfigFileError for a JSON that does not hold, and
    ModelConfigError for an input size that the network cannot take.
    """
    loaded = model_of(
        model,
        head=head,
        weights_from=weights_from,
        resolution=resolution,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=mean,
        std=std,
        whole=needs_agreement(model),
    )
    checked(model, loaded)
    return with_head(loaded, head) if needs_agreement(model) else loaded


@takes_options(options.Quantize)
def quantize(options: options.Quantize) -> Outcome:
    """Fold, calibrate and quantise a model, and measure the simulated INT8 graph; writes a run directory."""
    return pipeline.quantize(Request.from_options(options))


@takes_options(options.Export)
def export(options: options.Export) -> Outcome:
    """Quantise a model and write, run and measure the artifact of a target; writes a run directory."""
    return pipeline.export(Request.from_options(options))


@takes_subject_and_options(options.Compare)
def compare(model: Any, options: options.Compare) -> Comparison:
    """Export a model for several targets, measure all of them beside each other, and say which is best for each goal.

    model: as `quantize` takes it. Writes comparison.json, .md, .csv and .svg, and a run for each target, into the folder.
    """
    from edgeconvnext.commands.compare import compare as run
    from edgeconvnext.report.comparison_page import write_page

    result, _ = run(model, options)
    if options.page is not None:
        write_page(result, Path(options.page))
    return result


@takes_subject_and_options(options.Validate)
def validate(run: str | Path, options: options.Validate) -> Outcome:
    """Measure the artifact of a finished run again, or merge what a device measured, and renew its report."""
    return pipeline.validate(Path(run), options)


@takes_subject_and_options(options.Analyze)
def analyze(subject: str | Path, options: options.Analyze) -> Analyzed:
    """Say where the quantization error comes from: of a finished run, or of a model that is planned for it as `quantize` would.

    subject: a run directory, which is analysed as it was made and takes no options, or a model, which needs `calib`. Writes
    analysis.json and analysis.html into the run directory.
    """
    if not is_run(Path(subject)):
        return pipeline.analyze_model(replace(Request.from_options(options), model=subject))
    if options.given:
        names = list(options.stated)
        raise OptionError(
            lambda spelled: (
                f"{subject} is a run and is analysed as it was made; leave out {' and '.join(map(spelled, names))}, "
                "or name the model instead."
            )
        )
    return pipeline.analyze_run(Path(subject))


def quantized_program(run: str | Path) -> ExportedProgram:
    """Return the quantised graph of a finished run, rebuilt from its folded network and plan, as a torch.export program.

    run: a run directory. The program is float32 with Q/DQ pairs and int8 weights; `program.module()` runs it on (N, C, H, W).
    """
    return pipeline.quantized_program(Path(run))


def quantize_within(
    module: nn.Module,
    *,
    calib: Any,
    backbone: str | None = None,
    target: str = DEFAULT_TARGET,
    num_images: int = 256,
    effort: Literal["default", "best"] = "default",
    preprocess: Preprocess | None = None,
) -> QuantizedModule:
    """Quantise the ConvNeXt inside a larger module in place, and leave the rest float; `module` stays as it is.

    backbone: path of the ConvNeXt, "model.encoder"; None searches for it. calib: images as the module takes them, in any form that
    `quantize` takes. preprocess: how photographs of a set or folder become these; tensors are prepared already.
    Returns the quantised module: its `module`, `measure`, and `export`. Raises CheckpointError where the ConvNeXt is not there,
    RewriteError where it computes something else than its tensors say, OptionError for photographs without `preprocess`.
    """
    from edgeconvnext.quantization.candidates import ReconstructionOptions
    from edgeconvnext.tuning.larger_module import quantize_module

    images = resolve_images(calib, num_images).take(num_images)
    reader = prepared(images)
    if preprocess is None:
        if reader is None:
            raise OptionError(
                lambda _: (
                    f"{images.name} holds photographs, and nothing says how the module takes them. Give preprocess, such as "
                    "edgeconvnext.load_model(weights).preprocess, or prepared tensors."
                )
            )
        nothing = ((0.0,) * reader.channels, (1.0,) * reader.channels)
        preprocess = Preprocess(input_size=reader.size, mean=nothing[0], std=nothing[1])
    stream = batches(images, preprocess)
    return quantize_module(
        module,
        load_target(target),
        (batch.images for batch in stream),
        preprocess=preprocess,
        backbone=backbone,
        options=ReconstructionOptions(effort=effort),
    )


def predict(subject: Any, images: Any) -> list[Answer]:
    """Return the most probable classes of images: by FP32 and INT8 for a run, by one network for a model or an artifact.

    subject: a run directory, a model (path, name, module, state dict) or an artifact. images: a file, a folder, a pattern such as
    photos/*.jpg, a set's name, a picture, prepared tensors, or a list of these. Images that cannot be read are left out where
    others can.
    """
    from edgeconvnext.commands.predict import predict as ask

    return ask(subject, images).answers.images


def fold(
    model: Any,
    *,
    calib: Any,
    output: str | Path | None = None,
    weights_from: str | None = None,
) -> FoldResult:
    """Fold layer scale and LayerNorm affines exactly, proven on real images; save the result where `output` is given.

    model, calib: as `quantize` takes them. output: a .safetensors file; preprocessing and labels go into a JSON of the same stem.
    weights_from: as in `load_model`.
    """
    loaded, images = read_network(model, calib, PROOF_IMAGES, weights_from=weights_from)
    path = _weights_file(output, loaded)
    proof = batches(images.take(PROOF_IMAGES), loaded.preprocess)
    result = fold_exact(loaded.module, (batch.images for batch in proof))
    if path is not None:
        save_checkpoint(replace(loaded, module=result.module, config=result.module.config), path)
    return result


@takes_subject_and_options(options.Compress)
def compress(model: Any, options: options.Compress) -> Compressed:
    """Prune, replace LayerNorms and recover; save the result where `output` is given.

    model, calib: as `quantize` takes them; recovery reads all of a loader. output: a .safetensors file, loadable like any
    checkpoint; what was done and measured goes into a JSON beside it, <stem>.changes.json. Recovery that was interrupted goes on
    from there.
    """
    changes = compress_options(
        options,
        images=options.num_images,
        multiple=options.multiple,
        threads=options.threads,
        measure_latency=options.latency,
    )
    changes.check()
    target = load_target(options.target)
    loaded, images = read_network(
        model,
        options.calib,
        None if options.recover else options.num_images,
        weights_from=options.weights_from,
        skip_broken=options.skip_broken,
    )
    require_answers(loaded)
    checkpoint, record, output = None, None, _weights_file(options.output, loaded)
    if output is not None:
        record = check_file(output.with_suffix(".changes.json"))
        if options.recover:
            checkpoint = check_file(output.with_suffix(".recovery.pt"))
    result = run_compress(loaded, images, changes, target, checkpoint=checkpoint)
    if output is not None and record is not None:
        save_checkpoint(compressed_model(loaded, result), output)
        atomic_write(record, result.record.model_dump_json(indent=2) + "\n")
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return result


@takes_subject_and_options(options.Search)
def search(model: Any, options: options.Search) -> tuple[PlacementFound, Path]:
    """Search the placement that is fastest on this machine and accurate enough; return it, and the folder it was written to.

    model, calib: as `quantize` takes them. The folder (searches/<model>-<target> where none is named) gets target.toml, front.svg,
    search.json, and measured.jsonl, from which a later search goes on.
    """
    from edgeconvnext.report.placement_front import render_front_svg
    from edgeconvnext.report.placement_toml import placement_toml
    from edgeconvnext.tuning.placement_search import search_placement

    target = load_target(options.target)
    loaded, images = read_network(
        model,
        options.calib,
        options.num_images,
        weights_from=options.weights_from,
        resolution=options.resolution,
        skip_broken=options.skip_broken,
    )
    require_answers(loaded)
    default_folder = Path("searches") / f"{Path(loaded.name).stem}-{target.name}"
    folder = _optional_path(options.output) or default_folder
    placement = search_placement(
        loaded,
        target,
        images.take(options.num_images),
        folder,
        budget_minutes=options.budget_minutes,
        threads=options.threads,
    )
    atomic_write(folder / "target.toml", placement_toml(placement))
    atomic_write(folder / "front.svg", render_front_svg(placement))
    atomic_write(folder / "search.json", placement.model_dump_json(indent=2) + "\n")
    return placement, folder


@dataclass(frozen=True)
class Pruned:
    """What `prune` made. channels: of the removal of channels and blocks; sparse: of 2:4 sparsity; None where not asked for."""

    module: ConvNeXt
    channels: PruneResult | None
    sparse: SparseResult | None


@takes_subject_and_options(options.Prune)
def prune(model: Any, options: options.Prune) -> Pruned:
    """Make a network smaller without training: hidden channels, whole blocks, 2:4 sparsity; what is left is fitted anew.

    model, calib: as `quantize` takes them. macs, size, latency: one of them at most. output: a .safetensors file, loadable like
    any checkpoint. torch_code: a .py file that defines the network and loads `output` without this package. score, blocks: see
    `edgeconvnext.rewrite.prune.prune`.
    """
    budget = _budget(options)
    torch_code = _optional_path(options.torch_code)
    if torch_code is not None:
        check_torch_code_path(torch_code)
        if options.output is None:
            raise RewriteError("--torch-code loads the weights that --output writes; give both.")
    target = None if options.target is None else load_target(options.target)
    own_multiple = DEFAULT_MULTIPLE if target is None else backend_for(target).limits.channel_multiple
    multiple = options.multiple or own_multiple
    _check_multiple(options.sparsity, None if budget is None else multiple)
    loaded, calibration = read_network(
        model,
        options.calib,
        options.num_images,
        weights_from=options.weights_from,
        skip_broken=options.skip_broken,
    )
    if not loaded.module.inverted_bottlenecks:
        raise RewriteError(f"{loaded.name} is no ConvNeXt; hidden channels are pruned in ConvNeXt blocks only.")
    require_answers(loaded)
    output = _weights_file(options.output, loaded)
    images = calibration.take(options.num_images)
    _check_fitting_images(images)
    fit, held_out = split_held_out(images)
    module, channels, sparse = cast(ConvNeXt, loaded.module), None, None
    if budget is not None:
        channels = prune_network(
            module,
            read_images(loaded, images, fit),
            read_images(loaded, images, held_out),
            budget,
            input_size=loaded.preprocess.input_size,
            multiple=multiple,
            score=options.score,
            blocks=options.blocks,
            timer=timing_runtime(),
        )
        module = channels.module
    if options.sparsity is not None:
        sparse = sparsify(module, read_images(loaded, images, fit), read_images(loaded, images, held_out))
        module = sparse.module
    smaller = replace(loaded, module=module, config=module.config)
    if output is not None:
        save_checkpoint(smaller, output)
        if torch_code is not None:
            write_torch_code(smaller, output, torch_code)
    return Pruned(module, channels, sparse)


def _check_fitting_images(images: ImageSet) -> None:
    """Raise RewriteError where the images that weights are fitted on and judged by are too few."""
    if len(images) < FEWEST_IMAGES:
        raise RewriteError(
            f"Weights are fitted on calibration images and judged on others, on {FEWEST_IMAGES} at least and better on hundreds; "
            f"there are {len(images)}. Name a larger set with --calib, or a larger --num-images."
        )


def _check_multiple(sparsity: str | None, multiple: int | None) -> None:
    """Raise RewriteError for widths that 2:4 does not go into. multiple: of the widths; None where none change."""
    if sparsity is not None and multiple is not None and multiple % 4:
        raise RewriteError(
            f"2:4 sparsity takes fours of channels, and widths in multiples of {multiple} do not part into them. Give a "
            "--multiple that 4 divides."
        )


def _budget(options: options.Prune) -> Budget | None:
    """Return the one budget that was given; without one, all channels stay."""
    shares: dict[BudgetKind, float | None] = {"macs": options.macs, "size": options.size, "latency": options.latency}
    budgets = [Budget(kind, share) for kind, share in shares.items() if share is not None]
    if len(budgets) > 1:
        raise RewriteError(f"Give one budget, not {' and '.join(f'--{budget.kind}' for budget in budgets)}.")
    if not budgets and not options.blocks and options.sparsity is None:
        raise RewriteError(
            "Nothing was asked for: give a budget with --macs, --size or --latency (such as --macs 0.7), blocks to take out with "
            "--blocks, or --sparsity 2:4."
        )
    return budgets[0] if budgets else (Budget("macs", 1.0) if options.blocks else None)


def _weights_file(output: str | Path | None, model: LoadedModel) -> Path | None:
    """Return where weights are to be written, None for nowhere; raises before any work where they cannot be.

    OptionError: the JSON beside them would say a mean and std that nobody knows.
    """
    path = _optional_path(output)
    if path is None:
        return None
    if normalization_unknown(model):
        raise OptionError(
            lambda spelled: (
                f"{spelled('output')} says the mean and std of its images, and those of the images in memory are not known. Give "
                "a model that has them: edgeconvnext.load_model(model, mean=..., std=...)."
            )
        )
    prepare_output(path, model)
    return path


def _optional_path(value: str | Path | None) -> Path | None:
    return None if value is None else user_path(value, UnusablePathError)
