"""What `edgeconvnext quantize`, `export`, `validate` and `analyze` do, in the order a user would tell it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgeconvnext.backends import backend_for, load_target
from edgeconvnext.errors import GATE_MISSED_EXIT_CODE, CheckpointError, RunDirectoryError
from edgeconvnext.escape import for_html, for_terminal
from edgeconvnext.model.heads import require_answers
from edgeconvnext.options.commands import Validate
from edgeconvnext.pipeline import stages
from edgeconvnext.pipeline.artifact_copy import check_copy, copy_artifact
from edgeconvnext.pipeline.assemble import assemble
from edgeconvnext.pipeline.device_results import require_kit, store_results, with_results, with_stored_results
from edgeconvnext.pipeline.job import Job, Request, named_target, resolve
from edgeconvnext.pipeline.stored_config import stored_config, stored_target
from edgeconvnext.pipeline.stored_report import stored_labels, stored_report, write_report_stage
from edgeconvnext.progress import progress_bar
from edgeconvnext.run.directory import RunDirectory, default_run_path, run_key
from edgeconvnext.run.manifest import load_run
from edgeconvnext.schema.analysis import Analysis
from edgeconvnext.schema.report import Report

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgeconvnext.pipeline.simulated import SimulatedNetwork
    from edgeconvnext.prediction.artifact import Artifact

RUNS = Path("runs")
# Stages whose result changes from one moment to the next, and stages that run networks over images.
MEASURED = frozenset({"latency"})
ANSWERED = frozenset({"reference", "accuracy", "outputs", "sizes"})


@dataclass(frozen=True, repr=False)
class Outcome:
    """A finished run: where it lies and what it measured.

    request: what was asked, with what a program held; None where the run was only read.
    """

    path: Path
    report: Report
    request: Request | None = field(default=None, compare=False)

    @property
    def exit_code(self) -> int:
        return GATE_MISSED_EXIT_CODE if self.report.verdict == "failed" else 0

    @property
    def measured(self) -> list[str]:
        """Stages that this command measured."""
        return [cost.stage for cost in self.report.stages if cost.stage in MEASURED | ANSWERED and not cost.reused]

    @property
    def reused(self) -> list[str]:
        """Stages that were finished before and are reused."""
        return [cost.stage for cost in self.report.stages if cost.reused]

    @cached_property
    def module(self) -> SimulatedNetwork:
        """The simulated INT8 network, from prepared images (N, C, H, W) to logits."""
        from edgeconvnext.pipeline.simulated import simulated_network

        return simulated_network(self.path)

    def export(self, path: str | Path | None = None, *, target: str | None = None, latency: bool = True) -> Artifact:
        """Write the artifact of the run's target, or of another one, and return it; stages that are done are reused.

        path: a copy of the artifact, beside the one in the run; None makes no copy. The new report is in `report.json` beside the
        artifact. Raises ExportError for a path that ends in another way than the target's artifacts do.
        """
        return export_outcome(self, None if path is None else Path(path), target, latency=latency)

    def __repr__(self) -> str:
        return f"<Outcome {for_terminal(self.path)}: {self.report!r}>"

    def _repr_html_(self) -> str:
        return f"{self.report._repr_html_()}<p>Run: <code>{for_html(self.path)}</code></p>"


@dataclass(frozen=True)
class Analyzed:
    """A run that was analysed: where it lies and what the analysis says; analysis.html beside it shows the same."""

    path: Path
    analysis: Analysis


def quantize(request: Request) -> Outcome:
    """Fold, calibrate and quantise a model, and measure the simulated graph; writes a run directory without artifact."""
    job = resolve(request)
    with _open_run(job, "quantize") as run:
        planned = stages.plan_network(run, job)
        quantized = stages.quantize_network(run, planned)
        measured = stages.measure_networks(run, quantized, artifact=None)
        return _report(run, job, stages.Finished(planned, quantized, measured))


def export(request: Request) -> Outcome:
    """Do what `quantize` does, write the target's artifact, and measure the artifact where its runtime is installed."""
    target = named_target(request)
    backend_for(target).require(target)
    job = resolve(request)
    with _open_run(job, "export") as run:
        planned = stages.plan_network(run, job)
        quantized = stages.quantize_network(run, planned)
        artifact = stages.export_artifact(run, quantized)
        measured = stages.measure_networks(run, quantized, artifact)
        latency = stages.time_artifact(run, quantized, artifact)
        kit = stages.write_kit(run, quantized, artifact, measured)
        return _report(run, job, stages.Finished(planned, quantized, measured, artifact, latency, kit))


def export_outcome(outcome: Outcome, copy: Path | None, target: str | None, *, latency: bool) -> Artifact:
    """Do what `Outcome.export` says."""
    from edgeconvnext.prediction.artifact import load_artifact

    finished = load_run(outcome.path)
    own = stored_target(finished)
    chosen = own if target is None else load_target(target)
    backend = backend_for(chosen)
    if copy is not None:
        check_copy(copy, backend.artifact)
    if "stages/artifact.json" in finished.files and chosen.sha256 == own.sha256:
        path = outcome.path
    else:
        beside = (
            outcome.path
            if chosen.sha256 == own.sha256
            else outcome.path.with_name(f"{outcome.path.name}-{chosen.name}")
        )
        request = outcome.request or Request(from_run=outcome.path)
        path = export(request.changed(stored_target=chosen, output=beside, latency=latency)).path
    artifact = path / backend.artifact
    return load_artifact(artifact if copy is None else copy_artifact(artifact, copy))


def validate(path: Path, options: Validate | None = None) -> Outcome:
    """Measure a run's artifact again, on another evaluation set where one is named, and renew its report.

    Latency is measured each time, accuracy where the images are others or `options.again` asks for it; the rest is reused.
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
        measured_again=MEASURED | (ANSWERED if options.again else frozenset()),
    )
    has_artifact = "stages/artifact.json" in finished.files
    return export(request) if has_artifact else quantize(request)


def merge_device(path: Path, results: Path) -> Outcome:
    """Add to a finished run what its device kit measured: the device section of its report, and gates judged by it.

    results: the device.json that the kit's script wrote. Nothing is measured again here. Raises DeviceResultsError for a
    file that does not hold or belongs to another run, RunDirectoryError where `path` is no finished run with a kit.
    """
    finished = load_run(path)
    require_kit(finished)
    report = with_results(stored_report(finished), path, results, stored_target(finished))
    with RunDirectory.open(path, finished.config, own_inputs=False) as run:
        store_results(run, results)
        write_report_stage(run, report, stored_labels(finished))
        run.extend(finished)
    return Outcome(path, report)


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

    require_kit(load_run(path))
    results = run_kit(path / stages.KIT, Connection(host), python=python, workdir=workdir, say=say, print_=print_)
    return merge_device(path, results)


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
        analysis = stages.analyze_plan(run, stages.plan_network(run, job))
        _finish(run, job)
        return Analyzed(run.path, stages.analysis_of(analysis))


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
        analysis = stages.analyze_plan(run, stages.stored_plan(run, job))
        run.extend(finished)
        return Analyzed(path, stages.analysis_of(analysis))


def quantized_program(path: Path) -> ExportedProgram:
    """Rebuild the quantised graph of a finished run from its folded network and its plan, float32 with Q/DQ pairs.

    Raises RunDirectoryError where `path` is no finished run, its files have changed, or it has no plan.
    """
    from edgeconvnext.pipeline.simulated import quantized_graph

    return quantized_graph(path).program


def _open_run(job: Job, command: str) -> AbstractContextManager[RunDirectory]:
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
        again=request.measured_again,
    )


def _report(run: RunDirectory, job: Job, finished: stages.Finished) -> Outcome:
    """Bring together what the stages measured, write it, and end the run."""
    with progress_bar("Writing the report", None):
        report = assemble(job, finished)
        if finished.device is not None:
            report = with_stored_results(run, report, job.target)
        write_report_stage(run, report, job.class_names)
    _finish(run, job)
    return Outcome(run.path, report, job.request)


def _finish(run: RunDirectory, job: Job) -> None:
    run.finish(
        {
            "calibration_list": [job.calibration.ids[index] for index in (*job.fit, *job.held_out)],
            "seeds": {"bootstrap": 0},
        }
    )
