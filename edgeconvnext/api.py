"""The commands as functions: what a script or notebook calls. `edgeconvnext` re-exports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgeconvnext.backends import DEFAULT_TARGET, backend_for, load_target, timing_runtime
from edgeconvnext.choices import ActivationBits, Calibrator, Effort, Head, Preparation, Rounding, Score, WeightBits
from edgeconvnext.data.image_set import split_held_out
from edgeconvnext.data.loader import batches
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.data.size import Size
from edgeconvnext.errors import RewriteError, RunDirectoryError, UnusablePathError
from edgeconvnext.files import atomic_write
from edgeconvnext.model.checkpoint import check_file, prepare_output, save_checkpoint
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.heads import require_answers
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.torch_code import check_torch_code_path, write_torch_code
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.commands import Analyzed, Outcome
from edgeconvnext.pipeline.job import DEFAULT_IMAGES, Request
from edgeconvnext.received import user_path
from edgeconvnext.rewrite.exact import PROOF_IMAGES, FoldResult, fold_exact
from edgeconvnext.rewrite.prune import PruneResult
from edgeconvnext.rewrite.prune import prune as prune_network
from edgeconvnext.rewrite.prune_costs import Budget, BudgetKind
from edgeconvnext.rewrite.prune_segments import FEWEST_IMAGES
from edgeconvnext.rewrite.sparsity import SparseResult, sparsify
from edgeconvnext.run.lock import is_run
from edgeconvnext.tuning.compress import Compressed, CompressOptions, compressed_model, read_images
from edgeconvnext.tuning.compress import compress as run_compress

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgeconvnext.schema.placement import PlacementFound

DEFAULT_MULTIPLE = 8


def quantize(
    model: str | Path | None = None,
    *,
    head: Head = "classifier",
    calib: str | Path | None = None,
    eval: str | Path | None = None,
    target: str = DEFAULT_TARGET,
    num_images: int = DEFAULT_IMAGES,
    calibrator: Calibrator = "auto",
    effort: Effort = "default",
    weights: WeightBits | None = None,
    activations: ActivationBits | None = None,
    plan: str | Path | None = None,
    prepare: Preparation = "auto",
    rounding: Rounding = "auto",
    max_drop: float | None = None,
    compress: CompressOptions | None = None,
    resolution: int | Size | None = None,
    sizes: Sequence[Size] = (),
    reuse: bool = False,
    output: str | Path | None = None,
) -> Outcome:
    """Fold, calibrate and quantise a model, and measure the simulated INT8 graph; writes a run directory.

    model: a weights file, folder, hub name or preset. head: "features", "none" or "gap" make a backbone of it. calib, eval: a
    set's name or a folder of images. reuse: use what runs of others beside this one have finished, too. See `Request`.
    """
    return pipeline.quantize(
        Request(
            model=_text(model),
            head=head,
            target=target,
            calibration=_text(calib),
            evaluation=_text(eval),
            num_images=num_images,
            calibrator=calibrator,
            effort=effort,
            weights=weights,
            activations=activations,
            plan=None if plan is None else _path(plan),
            preparation=prepare,
            rounding=rounding,
            max_drop=max_drop,
            compress=compress,
            resolution=resolution,
            sizes=tuple(sizes),
            reuse_beside=reuse,
            output=None if output is None else _path(output),
        )
    )


def export(
    model: str | Path | None = None,
    *,
    target: str,
    head: Head = "classifier",
    calib: str | Path | None = None,
    eval: str | Path | None = None,
    from_run: str | Path | None = None,
    num_images: int = DEFAULT_IMAGES,
    calibrator: Calibrator = "auto",
    effort: Effort = "default",
    weights: WeightBits | None = None,
    activations: ActivationBits | None = None,
    plan: str | Path | None = None,
    prepare: Preparation = "auto",
    rounding: Rounding = "auto",
    max_drop: float | None = None,
    compress: CompressOptions | None = None,
    resolution: int | Size | None = None,
    sizes: Sequence[Size] = (),
    latency: bool = True,
    reuse: bool = False,
    output: str | Path | None = None,
) -> Outcome:
    """Quantise a model and write, run and measure the artifact of `target`; writes a run directory.

    from_run: a finished run whose model, images and statistics are used again. reuse: as in `quantize`.
    """
    return pipeline.export(
        Request(
            model=_text(model),
            head=head,
            target=target,
            calibration=_text(calib),
            evaluation=_text(eval),
            num_images=num_images,
            calibrator=calibrator,
            effort=effort,
            weights=weights,
            activations=activations,
            plan=None if plan is None else _path(plan),
            preparation=prepare,
            rounding=rounding,
            max_drop=max_drop,
            compress=compress,
            resolution=resolution,
            sizes=tuple(sizes),
            reuse_beside=reuse,
            measure_latency=latency,
            output=None if output is None else _path(output),
            reuse_from=None if from_run is None else Path(from_run),
        )
    )


def validate(
    run: str | Path, *, data: str | Path | None = None, device: str | Path | None = None, latency: bool = True
) -> Outcome:
    """Measure the artifact of a finished run again, on the images of `data` where given, and renew its report.

    device: a device.json of the run's device kit, merged into the report instead; nothing is measured again.
    """
    if device is not None:
        return pipeline.merge_device(Path(run), Path(device))
    return pipeline.validate(Path(run), _text(data), measure_latency=latency)


def analyze(
    subject: str | Path,
    *,
    calib: str | Path | None = None,
    target: str | None = None,
    num_images: int | None = None,
    effort: Effort | None = None,
    weights: WeightBits | None = None,
    activations: ActivationBits | None = None,
    plan: str | Path | None = None,
    reuse: bool = False,
) -> Analyzed:
    """Say where the quantization error comes from: of a finished run, or of a model that is planned for it as `quantize` would.

    subject: a run directory, which keeps everything but `subject` as it was made, or a model, which needs `calib`. Writes
    analysis.json and analysis.html into the run directory. reuse: as in `quantize`; of a model only.
    """
    asked: dict[str, Any] = {
        "calibration": _text(calib),
        "target": target,
        "num_images": num_images,
        "effort": effort,
        "weights": weights,
        "activations": activations,
        "plan": None if plan is None else _path(plan),
        "reuse_beside": reuse or None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if not is_run(Path(subject)):
        return pipeline.analyze_model(Request(model=_text(subject), **given))
    if given:
        renamed = {"calibration": "calib", "reuse_beside": "reuse"}
        options = [f"--{renamed.get(name, name).replace('_', '-')}" for name in given]
        raise RunDirectoryError(
            f"{subject} is a run and is analysed as it was made; leave out {' and '.join(options)}, or name the model instead."
        )
    return pipeline.analyze_run(Path(subject))


def quantized_program(run: str | Path) -> ExportedProgram:
    """Return the quantised graph of a finished run, rebuilt from its folded network and plan, as a torch.export program.

    run: a run directory. The program is float32 with Q/DQ pairs and int8 weights; `program.module()` runs it on (N, C, H, W).
    """
    return pipeline.quantized_program(Path(run))


def fold(model: str | Path | LoadedModel, *, calib: str | Path, output: str | Path | None = None) -> FoldResult:
    """Fold layer scale and LayerNorm affines exactly, proven on real images; save the result where `output` is given.

    output: a .safetensors file; preprocessing and labels go into a JSON of the same stem.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    if output is not None:
        prepare_output(_path(output), loaded)
    images = resolve_image_set(calib).take(PROOF_IMAGES)
    result = fold_exact(loaded.module, (batch.images for batch in batches(images, loaded.preprocess)))
    if output is not None:
        save_checkpoint(replace(loaded, module=result.module, config=result.module.config), _path(output))
    return result


def compress(
    model: str | Path | LoadedModel,
    *,
    calib: str | Path,
    options: CompressOptions,
    target: str = DEFAULT_TARGET,
    output: str | Path | None = None,
) -> Compressed:
    """Prune, replace LayerNorms and recover, as `options` say; save the result where `output` is given.

    target: whose runtime norms are timed in, where it is here. output: a .safetensors file, loadable like any checkpoint; what was
    done and measured goes into a JSON beside it, <stem>.changes.json. Recovery that was interrupted goes on from there.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    options.check()
    require_answers(loaded)
    named = load_target(target)
    checkpoint, record = None, None
    if output is not None:
        prepare_output(_path(output), loaded)
        record = check_file(_path(output).with_suffix(".changes.json"))
        if options.recover:
            checkpoint = check_file(_path(output).with_suffix(".recovery.pt"))
    result = run_compress(loaded, resolve_image_set(calib), options, named, checkpoint=checkpoint)
    if output is not None and record is not None:
        save_checkpoint(compressed_model(loaded, result), _path(output))
        atomic_write(record, result.record.model_dump_json(indent=2) + "\n")
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return result


def search(
    model: str | Path | LoadedModel,
    *,
    calib: str | Path,
    target: str = DEFAULT_TARGET,
    num_images: int = 96,
    budget_minutes: float = 20.0,
    threads: int = 1,
    resolution: int | Size | None = None,
    output: str | Path | None = None,
) -> tuple[PlacementFound, Path]:
    """Search the placement that is fastest on this machine and accurate enough; return it, and the folder it was written to.

    The folder (searches/<model>-<target> where none is named) gets target.toml, front.svg, search.json, and measured.jsonl, from
    which a later search goes on. num_images: a third of them is held out to judge accuracy on.
    """
    from edgeconvnext.report.placement_front import render_front_svg
    from edgeconvnext.report.placement_toml import placement_toml
    from edgeconvnext.tuning.placement_search import search_placement

    loaded = model if isinstance(model, LoadedModel) else load_model(model, resolution=resolution)
    require_answers(loaded)
    named = load_target(target)
    folder = Path("searches") / f"{Path(loaded.name).stem}-{named.name}" if output is None else _path(output)
    images = resolve_image_set(calib).take(num_images)
    found = search_placement(loaded, named, images, folder, budget_minutes=budget_minutes, threads=threads)
    atomic_write(folder / "target.toml", placement_toml(found))
    atomic_write(folder / "front.svg", render_front_svg(found))
    atomic_write(folder / "search.json", found.model_dump_json(indent=2) + "\n")
    return found, folder


@dataclass(frozen=True)
class Pruned:
    """What `prune` made. channels: of the removal of channels and blocks; sparse: of 2:4 sparsity; None where not asked for."""

    module: ConvNeXt
    channels: PruneResult | None
    sparse: SparseResult | None


def prune(
    model: str | Path | LoadedModel,
    *,
    calib: str | Path,
    macs: float | None = None,
    size: float | None = None,
    latency: float | None = None,
    num_images: int = DEFAULT_IMAGES,
    multiple: int | None = None,
    target: str | None = None,
    score: Score = "auto",
    blocks: int = 0,
    sparsity: Literal["2:4"] | None = None,
    output: str | Path | None = None,
    torch_code: str | Path | None = None,
) -> Pruned:
    """Make a network smaller without training: hidden channels, whole blocks, 2:4 sparsity; what is left is fitted anew.

    macs, size, latency: share to keep (above 0, at most 1) of multiply-adds, of bytes of the weights at 8 bits, or of the time
    measured in onnxruntime here; one of them. multiple: of the widths; None takes the target's, without a target 8. score,
    blocks: see `edgeconvnext.rewrite.prune.prune`. sparsity: "2:4" for kernels that skip zeros. output: a .safetensors file,
    loadable like any checkpoint. torch_code: a .py file that defines the network and loads `output` without this package.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    if not isinstance(loaded.module, ConvNeXt):
        raise RewriteError(f"{loaded.name} is no ConvNeXt; hidden channels are pruned in ConvNeXt blocks only.")
    require_answers(loaded)
    budget = _budget(macs, size, latency, blocks, sparsity)
    if torch_code is not None:
        check_torch_code_path(_path(torch_code))
        if output is None:
            raise RewriteError("--torch-code loads the weights that --output writes; give both.")
    if output is not None:
        prepare_output(_path(output), loaded)
    named = None if target is None else load_target(target)
    if multiple is None:
        multiple = DEFAULT_MULTIPLE if named is None else backend_for(named).limits.channel_multiple
    _check_choices(score, sparsity, None if budget is None else multiple)
    images = resolve_image_set(calib).take(num_images)
    if len(images) < FEWEST_IMAGES:
        raise RewriteError(
            f"Weights are fitted on calibration images and judged on others, on {FEWEST_IMAGES} at least and better on hundreds; "
            f"there are {len(images)}. Name a larger set with --calib, or a larger --num-images."
        )
    fit, held_out = split_held_out(images)
    module, channels, sparse = loaded.module, None, None
    if budget is not None:
        channels = prune_network(
            module,
            read_images(loaded, images, fit),
            read_images(loaded, images, held_out),
            budget,
            input_size=loaded.preprocess.input_size,
            multiple=multiple,
            score=score,
            blocks=blocks,
            timer=timing_runtime(),
        )
        module = channels.module
    if sparsity is not None:
        sparse = sparsify(module, read_images(loaded, images, fit), read_images(loaded, images, held_out))
        module = sparse.module
    smaller = replace(loaded, module=module, config=module.config)
    if output is not None:
        save_checkpoint(smaller, _path(output))
        if torch_code is not None:
            write_torch_code(smaller, _path(output), _path(torch_code))
    return Pruned(module, channels, sparse)


def _check_choices(score: str, sparsity: str | None, multiple: int | None) -> None:
    """Raise RewriteError for choices that there are not, and for widths that 2:4 does not go into.

    multiple: of the widths; None where none change.
    """
    if score not in get_args(Score):
        raise RewriteError(f"There is no score {score!r}; there are {', '.join(get_args(Score))}.")
    if sparsity not in (None, "2:4"):
        raise RewriteError(f"There is no sparsity {sparsity!r}; 2:4 is the one that kernels skip zeros of.")
    if sparsity is not None and multiple is not None and multiple % 4:
        raise RewriteError(
            f"2:4 sparsity takes fours of channels, and widths in multiples of {multiple} do not part into them. Give a "
            "--multiple that 4 divides."
        )


def _budget(
    macs: float | None, size: float | None, latency: float | None, blocks: int, sparsity: str | None
) -> Budget | None:
    """Return the one budget that was given; without one, all channels stay."""
    given: dict[BudgetKind, float | None] = {"macs": macs, "size": size, "latency": latency}
    named = [Budget(kind, share) for kind, share in given.items() if share is not None]
    if len(named) > 1:
        raise RewriteError(f"Give one budget, not {' and '.join(f'--{budget.kind}' for budget in named)}.")
    if not named and not blocks and sparsity is None:
        raise RewriteError(
            "Nothing was asked for: give a budget with --macs, --size or --latency (such as --macs 0.7), blocks to take out with "
            "--blocks, or --sparsity 2:4."
        )
    return named[0] if named else (Budget("macs", 1.0) if blocks else None)


def _path(value: str | Path) -> Path:
    return user_path(value, UnusablePathError)


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)
