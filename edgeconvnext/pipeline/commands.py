"""The way through: what `edgeconvnext quantize`, `export`, `validate` and `analyze` do, in the order a user would tell it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeconvnext.backends import backend_for
from edgeconvnext.backends.base import Programs
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.errors import GATE_MISSED_EXIT_CODE, CheckpointError, DeviceResultsError, RunDirectoryError
from edgeconvnext.model.heads import require_answers
from edgeconvnext.model.two_of_four import sparse_layers
from edgeconvnext.options.commands import Validate
from edgeconvnext.pipeline import stages
from edgeconvnext.pipeline.job import Job, Request, named_target, resolve
from edgeconvnext.pipeline.stages.values import ArtifactValues, DeviceValues, FoldValues, PlanValues
from edgeconvnext.pipeline.stored_config import stored_config, stored_target
from edgeconvnext.progress import progress_bar
from edgeconvnext.received import read_bytes, read_text, reading
from edgeconvnext.run.directory import RunDirectory, StageResult, default_run_path, run_key
from edgeconvnext.run.manifest import FinishedRun, load_run, package_versions
from edgeconvnext.schema.analysis import Analysis
from edgeconvnext.schema.report import Report
from edgeconvnext.targets import Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram

RUNS = Path("runs")
KIT = "device"
KEPT_RESULTS = "device_results.json"


@dataclass(frozen=True)
class Outcome:
    """A finished run: where it lies and what it measured."""

    path: Path
    report: Report

    @property
    def exit_code(self) -> int:
        return 0 if self.report.passed else GATE_MISSED_EXIT_CODE


@dataclass(frozen=True)
class Analyzed:
    """A run that was analysed: where it lies and what was found; analysis.html beside it shows the same."""

    path: Path
    analysis: Analysis


def quantize(request: Request) -> Outcome:
    """Fold, calibrate and quantise a model, and measure the simulated graph; writes a run directory without artifact."""
    job = resolve(request)
    with _open_run(job, "quantize") as run:
        done: dict[str, StageResult] = {}
        _quantize(run, job, done)
        _measure(run, job, done, artifact=None)
        return _report(run, job, done, artifact_name=None)


def export(request: Request) -> Outcome:
    """Do what `quantize` does, write the target's artifact, and measure the artifact in its runtime where that is here."""
    target = named_target(request)
    backend = backend_for(target)
    backend.require(target)
    job = resolve(request)
    with _open_run(job, "export") as run:
        done: dict[str, StageResult] = {}
        _quantize(run, job, done)
        with progress_bar(f"Exporting for {job.target.name}", None):
            done["artifact"] = _artifact(run, job, done)
        _measure(run, job, done, artifact=done["artifact"] if backend.not_run is None else None)
        if backend.not_timed is None and request.latency:
            done["latency"] = stages.latency(run, job, done["fold"], done["plan"], done["artifact"])
        if backend.kit_script() is not None:
            done["device"] = _device_kit(run, job, done)
        return _report(run, job, done, backend.artifact)


def validate(path: Path, options: Validate | None = None) -> Outcome:
    """Measure a run's artifact again, on another evaluation set where one is named, and renew its report.

    With a device.json in `options`, merge what the device measured instead.

    Raises RunDirectoryError where `path` is no finished run or its files have changed.
    """
    options = options or Validate()
    if options.device is not None:
        return merge_device(path, Path(options.device))
    finished = load_run(path)
    request = replace(
        Request.from_options(options),
        stored_target=stored_target(finished),
        eval=options.data,
        output=path,
        from_run=path,
    )
    has_artifact = "stages/artifact.json" in finished.files
    return export(request) if has_artifact else quantize(request)


def merge_device(path: Path, results: Path) -> Outcome:
    """Add to a finished run what its device kit measured: the device section of its report, and gates judged by it.

    results: the device.json that the kit's script wrote. Nothing is measured again here. Raises DeviceResultsError for a
    file that does not hold or belongs to another run, RunDirectoryError where `path` is no finished run with a kit.
    """
    from edgeconvnext.backends.kit.record import Kit, device_record, merge, read_results
    from edgeconvnext.report.write import write_report

    finished = load_run(path)
    _require_kit(path, finished)
    kit = Kit.load(path / KIT)
    told = read_results(results, kit)
    report = _stored_report(finished)
    target = stored_target(finished)
    merged = merge(report, device_record(told, kit), target)
    labels = read_text(path / "labels.txt", RunDirectoryError).splitlines() if "labels.txt" in finished.files else None

    def make(folder: Path) -> None:
        write_report(merged, folder, labels=labels)

    with RunDirectory.open(path, finished.config, own_inputs=False) as run:
        _keep_results(run, kit.sha256, read_bytes(results, DeviceResultsError))
        run.stage("report", {"report": merged.model_dump()}, make)
        run.extend(finished)
    return Outcome(path, merged)


def remote(
    path: Path,
    host: str,
    *,
    python: str,
    workdir: str | None,
    say: Callable[[str], None],
    print_: Callable[[str], None],
) -> Outcome:
    """Run the device kit of a finished run on a host that ssh reaches, and merge what it measured.

    say: told what is being done. print_: told what the kit's script prints. Raises RemoteError, RuntimeMissingError, and
    what `merge_device` raises.
    """
    from edgeconvnext.ssh.connection import Connection
    from edgeconvnext.ssh.kit_run import run_kit

    _require_kit(path, load_run(path))
    results = run_kit(path / KIT, Connection(host), python=python, workdir=workdir, say=say, print_=print_)
    return merge_device(path, results)


def _stored_report(finished: FinishedRun) -> Report:
    """Read the report of a finished run; raises RunDirectoryError where it is none of this version."""
    file = finished.path / "report.json"
    if file.name not in finished.files:
        raise RunDirectoryError(f"{finished.path} has no {file.name}; name a run of edgeconvnext export.")
    content = read_bytes(file, RunDirectoryError)
    with reading(file, RunDirectoryError, "Make the run again with the same command."):
        return Report.model_validate_json(content)


def _require_kit(path: Path, finished: FinishedRun) -> None:
    if f"{KIT}/kit.json" not in finished.files:
        raise RunDirectoryError(
            f"{path} has no device kit to run on a device. Kits are written by edgeconvnext export: export --from {path}, or "
            "make the run again."
        )


def _keep_results(run: RunDirectory, kit: str, content: bytes) -> None:
    """Keep a device.json in the run, so that a later report of the same artifact still has its device section."""

    def make(folder: Path) -> None:
        (folder / KEPT_RESULTS).write_bytes(content)

    run.stage("results", {"kit": kit, "results": hashlib.sha256(content).hexdigest()}, make)


def _with_kept_results(run: RunDirectory, report: Report, target: Target) -> Report:
    """Add what a device measured earlier with the very kit that this run holds now, if any did."""
    from edgeconvnext.backends.kit.record import Kit, device_record, merge, read_results

    kept = run.kept("results")
    if kept is None or KEPT_RESULTS not in kept.record.files or "device" not in run.results:
        return report
    kit = Kit.load(run.path / KIT)
    if kept.record.inputs.get("kit") != kit.sha256:
        return report
    try:
        told = read_results(kept.path(KEPT_RESULTS), kit)
    except DeviceResultsError as error:  # of an earlier format, say: the export is worth no less for it
        note = f"What the device measured earlier is left out: {error}"
        return report.model_copy(update={"notes": [*report.notes, note]})
    _keep_results(run, kit.sha256, read_bytes(kept.path(KEPT_RESULTS), RunDirectoryError))
    return merge(report, device_record(told, kit), target)


def analyze_model(request: Request) -> Analyzed:
    """Fold, calibrate and plan a model, and say where the quantization error comes from; writes a run directory."""
    try:
        job = resolve(request)
    except CheckpointError as error:
        if request.model is None or Path(request.model).is_file():
            raise
        raise CheckpointError(f"{error} It is no run directory either.") from error
    require_answers(job.model)
    with _open_run(job, "analyze") as run:
        done: dict[str, StageResult] = {}
        _plan(run, job, done)
        result = stages.analysis(run, job, done["fold"], done["plan"])
        _finish(run, job)
        return Analyzed(run.path, stages.analysis_of(result))


def quantized_program(path: Path) -> ExportedProgram:
    """Rebuild the quantised graph of a finished run from its folded network and its plan, float32 with Q/DQ pairs.

    Raises RunDirectoryError where `path` is no finished run, its files have changed, or it has no plan.
    """
    finished = load_run(path)
    target = stored_target(finished)
    job = resolve(Request(stored_target=target, output=path, from_run=path))
    with RunDirectory.open(path, finished.config) as run:
        return stages.quantized_program(job, _planned(run))


def analyze_run(path: Path) -> Analyzed:
    """Say where the error of a finished run's plan comes from, and add that to the run.

    Raises RunDirectoryError where `path` is no finished run, its files or calibration images have changed, or it has no plan.
    """
    finished = load_run(path)
    target = stored_target(finished)
    job = resolve(Request(stored_target=target, output=path, from_run=path))
    require_answers(job.model)
    images = stored_config(finished).calibration
    if job.calibration.list_sha256 != images.list_sha256:
        raise RunDirectoryError(
            f"The calibration images of {path}, {images.set}, are not the ones it was made with any more. Make the run again "
            f"with the same command and --output {path}, then analyse it."
        )
    with RunDirectory.open(path, finished.config) as run:
        planned = _planned(run)
        result = stages.analysis(run, job, planned["fold"], planned["plan"])
        run.extend(finished)
        return Analyzed(path, stages.analysis_of(result))


def _planned(run: RunDirectory) -> dict[str, StageResult]:
    """Return the folded network and the plan of a finished run as they are stored."""
    folded, planned = run.kept("fold", FoldValues), run.kept("plan", PlanValues)
    if folded is None or planned is None:
        raise RunDirectoryError(
            f"{run.path} holds no {'plan' if folded else 'folded network'} to work on; another version made it. Make it again "
            f"with the same command and --output {run.path}."
        )
    return {"fold": folded, "plan": planned}


def _open_run(job: Job, command: str) -> Any:
    """Open the run directory; by default each command has its own, so that quantize never undoes an export."""
    key = run_key({**job.config, "command": command})
    request = job.request
    path = Path(request.output or default_run_path(RUNS, job.model.name, job.target.name, key))
    return RunDirectory.open(
        path,
        job.config,
        reuse_from=None if request.from_run is None else Path(request.from_run),
        reuse_beside=request.reuse,
        own_inputs=not request.model_from_copy,
    )


def _plan(run: RunDirectory, job: Job, done: dict[str, StageResult]) -> None:
    if job.request.compression is not None:
        done["compress"] = stages.compress(run, job)
    with progress_bar("Folding", None):
        done["fold"] = stages.fold(run, job, done.get("compress"))
    if job.request.effort == "quick":
        done["statistics"] = stages.statistics(run, job, done["fold"])
    done["plan"] = stages.plan(run, job, done["fold"], done.get("statistics"))


def _quantize(run: RunDirectory, job: Job, done: dict[str, StageResult]) -> None:
    _plan(run, job, done)
    with progress_bar("Quantising", None):
        done["quantized"] = stages.quantized(run, job, done["fold"], done["plan"])


def _measure(run: RunDirectory, job: Job, done: dict[str, StageResult], artifact: StageResult | None) -> None:
    if not job.model.config.num_classes:
        done["outputs"] = stages.outputs(run, job, done["quantized"], artifact)
    else:
        done["reference"] = stages.reference(run, job)
        done["accuracy"] = stages.evaluated(run, job, done["quantized"], artifact)
    if job.sizes:
        done["sizes"] = stages.other_sizes(run, job, done["quantized"], artifact)


def _artifact(run: RunDirectory, job: Job, done: dict[str, StageResult]) -> StageResult:
    def make(folder: Path) -> dict[str, Any]:
        exported = backend.export(job.target, _programs(job, done), folder, _metadata(job))
        return {"checks": [check.model_dump() for check in exported.checks], "missing": exported.missing}

    backend = backend_for(job.target)
    inputs = {
        "program": done["quantized"].key,
        "target": job.target.model_dump(mode="json", exclude={"gates"}),
        "labels": job.class_names,
        "name": job.model.name,
        "versions": package_versions(),
        "machine": backend.checks_depend_on(),
    }
    return run.stage("artifact", inputs, make, ArtifactValues)


def _programs(job: Job, done: dict[str, StageResult]) -> Programs:
    import torch

    from edgeconvnext.evaluation.runner import TorchRunner

    sparse = sparse_layers(stages.folded_model(done["fold"], job).module)
    images = to_value_range(
        stages.proof_images(job).contiguous().numpy(), job.model.preprocess, job.target.input.value_range
    )
    module = stages.simulation(job, done)
    with torch.inference_mode():
        simulated = TorchRunner(module).outputs(images)
    del module
    quantized = stages.quantized_program(job, done)
    floating = stages.float_program(job, done["fold"])
    return Programs(quantized, floating, images, simulated, job.profile_sizes, sparse)


def _metadata(job: Job) -> ArtifactMetadata:
    return ArtifactMetadata(
        model_name=job.model.name,
        labels=job.class_names,
        preprocess=job.model.preprocess,
        value_range=job.target.input.value_range,
        edgeconvnext_version=metadata.version("edgeconvnext"),
        outputs=job.model.module.output_names,
        notes={
            "calibration_set": job.calibration.name,
            "calibration_images": str(len(job.calibration)),
            "model_sha256": job.model.sha256,
        },
    )


def _device_kit(run: RunDirectory, job: Job, done: dict[str, StageResult]) -> StageResult:
    def make(folder: Path) -> dict[str, Any]:
        from edgeconvnext.backends.kit.write import KitNetworks, write_device_kit
        from edgeconvnext.pipeline.check_vectors import check_vectors

        vectors = check_vectors(job, done)
        backend = backend_for(job.target)
        with backend.kit_baseline(
            job.target, done["artifact"].folder, lambda: stages.float_program(job, done["fold"]), _metadata(job)
        ) as baseline:
            networks = KitNetworks(
                artifact=done["artifact"].path(backend.artifact),
                baseline=baseline,
                artifact_form=done["quantized"].values["scheme"].partition(",")[0],
                baseline_form="FP32" if job.target.float_type == "float32" else "FP16",
                sizes=job.profile_sizes,
            )
            write_device_kit(folder / KIT, vectors, networks, model_name=job.model.name, target=job.target)
        return {"vectors": len(vectors.images)}

    inputs = {
        "artifact": done["artifact"].key,
        "measured": [done[stage].key for stage in ("accuracy", "reference", "outputs") if stage in done],
        "target": job.target.model_dump(mode="json"),
        "name": job.model.name,
    }
    return run.stage("device", inputs, make, DeviceValues)


def _report(run: RunDirectory, job: Job, done: dict[str, StageResult], artifact_name: str | None) -> Outcome:
    from edgeconvnext.pipeline.assemble import assemble
    from edgeconvnext.report.write import write_report

    def make(folder: Path) -> None:
        write_report(report, folder, labels=job.class_names)

    with progress_bar("Writing the report", None):
        report = _with_kept_results(run, assemble(run, job, done, artifact_name), job.target)
        run.stage("report", {"report": report.model_dump()}, make)
    _finish(run, job)
    return Outcome(run.path, report)


def _finish(run: RunDirectory, job: Job) -> None:
    run.finish(
        {
            "calibration_list": [job.calibration.ids[index] for index in (*job.fit, *job.held_out)],
            "seeds": {"bootstrap": 0},
        }
    )
