"""`edgeconvnext compare`: one network on several targets, each exported, judged, and timed beside the others.

Each target has a run of its own below the comparison's folder, and each set of times a file: what is finished is not done again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeconvnext.backends import backend_for, load_target
from edgeconvnext.backends.processes import ProcessTimes, TimedFile, time_processes, usable_cores
from edgeconvnext.errors import ExportError, OptionError, RunDirectoryError, user_error
from edgeconvnext.evaluation.timing import Samples, current_load, speedup, summarize
from edgeconvnext.evaluation.timing_noise import noise
from edgeconvnext.files import atomic_write, storage_errors, tree_sha256
from edgeconvnext.machine import describe_device
from edgeconvnext.options.commands import Compare
from edgeconvnext.options.declaration import declared_options
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.job import Request
from edgeconvnext.progress import progress_bar
from edgeconvnext.received import read_json
from edgeconvnext.report.comparison_page import write_comparison
from edgeconvnext.run.stage_record import code_version, json_sha256
from edgeconvnext.schema.comparison import (
    Comparison,
    DeviceTiming,
    Form,
    FormTiming,
    TargetRow,
    pareto_front,
    winners,
)
from edgeconvnext.schema.report import Record, Report, machine_name
from edgeconvnext.targets import Target, target_files

FORMS: tuple[Form, ...] = ("float", "int8")
_OWN_OPTIONS = frozenset(
    {"targets", "threads", "batch", "seconds", "gate", "again", "host", "python", "output", "page"}
)


class FinishedTimes(Record):
    """Times on disk, by target. key: hash of all they depend on; times of another key are measured anew."""

    key: str
    rows: dict[str, list[FormTiming]]


@dataclass(frozen=True)
class ExportedTarget:
    """A target and its run, or why it has none."""

    target: Target
    report: Report | None = None
    run: Path | None = None
    failed: str | None = None


def compare(model: Any, options: Compare, said: Callable[[str], None] = lambda _line: None) -> tuple[Comparison, Path]:
    """Export a model for several targets, measure each, and write comparison.json, .csv, .md and .svg; return also their folder.

    said: called with a line when a target is finished. A target that fails is a row with its reason.
    Raises TargetError for a target that there is not, and ExportError with the first target's reason where all fail.
    """
    chosen = [load_target(name) for name in options.targets or default_targets()]
    if not chosen:
        raise ExportError(
            "No runtime that artifacts are timed in is installed. Install onnxruntime, or name targets with --targets."
        )
    _check_cores(options)
    folder = Path(options.output or pipeline.RUNS / f"compare-{_named(model)}-{_key(model, options)}")
    with storage_errors(folder):
        (folder / "times").mkdir(parents=True, exist_ok=True)
    exported = []
    for number, target in enumerate(chosen, start=1):
        exported.append(_exported(model, options, target, folder / target.name))
        said(f"{number} of {len(chosen)}: {target.name}{_ending(exported[-1])}")
    if all(one.failed is not None for one in exported):
        raise ExportError(f"No target could be exported. {exported[0].target.name}: {exported[0].failed}")
    times = _times(exported, options, folder / "times")
    rows = [_row(one, times.get(one.target.name, []), options, folder) for one in exported]
    result = _comparison(rows, exported, options, _command(model, options))
    write_comparison(result, folder)
    return result, folder


def default_targets() -> list[str]:
    """Return one target for each runtime that is installed and that this machine times artifacts in."""
    from edgeconvnext.errors import RuntimeMissingError

    names: dict[str, str] = {}
    for name in target_files():
        target = load_target(name)
        backend = backend_for(target)
        try:
            backend.require(target)
        except RuntimeMissingError:
            continue
        if backend.not_timed is None:
            names.setdefault(backend.name, name)
    return list(names.values())


def _check_cores(options: Compare) -> None:
    cores, most = len(usable_cores()), max(options.threads)
    if most > cores:
        raise OptionError(
            lambda spelled: (
                f"{spelled('threads')} asks for {most} threads, and this machine has {cores} cores: threads that share a core "
                "say nothing of a runtime. Leave the larger numbers out."
            )
        )


def _exported(model: Any, options: Compare, target: Target, path: Path) -> ExportedTarget:
    """Export for one target, reusing what is done; any error becomes the reason of its row."""
    names = declared_options(Request).keys() & declared_options(Compare).keys() - _OWN_OPTIONS
    request = Request(
        **{name: getattr(options, name) for name in names},
        model=model,
        target=target.name,
        stored_target=target,
        output=path,
        latency=False,
    )
    try:
        outcome = pipeline.export(request)
        if options.host is not None and backend_for(target).kit_script() is not None:
            outcome = pipeline.remote(
                path, options.host, python=options.python, workdir=None, say=_silent, print_=_silent
            )
    except Exception as error:
        known = user_error(error)
        return ExportedTarget(target, failed=str(known or f"fault: {type(error).__name__}: {error}"))
    return ExportedTarget(target, outcome.report, outcome.path)


def _times(exported: list[ExportedTarget], options: Compare, folder: Path) -> dict[str, list[FormTiming]]:
    """Return the times of every form by target: those on disk where they hold, or new ones."""
    files = _files(exported)
    sha256 = {name: tree_sha256(file.path) for name, file in files.items()}
    times: dict[str, list[FormTiming]] = {one.target.name: [] for one in exported}
    for threads in options.threads:
        for batch in options.batch:
            kept = folder / f"{threads}-threads-batch-{batch}.json"
            key = json_sha256(
                {"files": sha256, "seconds": options.seconds, "device": describe_device(), "code": code_version()}
            )
            finished = None if options.again else _finished(kept, key)
            if finished is None:
                finished = FinishedTimes(key=key, rows=_measured(files, threads, batch, options.seconds))
                atomic_write(kept, finished.model_dump_json(indent=1) + "\n")
            for name, own in finished.rows.items():
                times[name] += own
    return times


def _files(exported: list[ExportedTarget]) -> dict[str, TimedFile]:
    """Return the files to time, as "<target> <form>"."""
    files = {}
    for one in exported:
        backend = backend_for(one.target)
        if one.run is None or backend.not_timed is not None:
            continue
        for form, name in zip(FORMS, (backend.baseline, backend.artifact), strict=True):
            files[f"{one.target.name} {form}"] = TimedFile(backend.name, one.run / name)
    return files


def _finished(path: Path, key: str) -> FinishedTimes | None:
    """Read times; None where there are none, or none that hold."""
    if not path.exists():
        return None
    try:
        finished = FinishedTimes.model_validate(read_json(path, RunDirectoryError))
    except (RunDirectoryError, ValidationError):
        return None
    return finished if finished.key == key else None


def _measured(
    files: Mapping[str, TimedFile], threads: int, batch: int, seconds: float | None
) -> dict[str, list[FormTiming]]:
    """Time all files in turns with so many threads and images at once."""
    load = current_load()
    with progress_bar(f"Timing {len(files)} files, {threads} threads, batch {batch}", None):
        times = time_processes(files, threads=threads, batch=batch, seconds=seconds)
    samples = {name: own.samples for name, own in times.items() if isinstance(own, ProcessTimes)}
    floats = {name: own for name, own in samples.items() if name.endswith(" float")}
    best = min(floats.values(), key=_median, default=None)
    rows: dict[str, list[FormTiming]] = {}
    for name, own in times.items():
        target, _, form = name.rpartition(" ")
        rows.setdefault(target, []).append(
            _timing("float" if form == "float" else "int8", threads, batch, own, best, load)
        )
    return rows


def _timing(
    form: Form, threads: int, batch: int, measured: ProcessTimes | str, best: Samples | None, load: float | None
) -> FormTiming:
    if isinstance(measured, str):
        return FormTiming(form=form, threads=threads, batch=batch, absent=measured)
    figures = summarize(measured.samples.times_ms, batch)
    opened = measured.opened
    return FormTiming(
        form=form,
        threads=threads,
        batch=batch,
        median_ms=figures.median_ms,
        throughput=figures.throughput,
        cv=figures.cv,
        runs=figures.runs,
        speedup=None if best is None else speedup(best, measured.samples),
        load_ms=opened.load_ms,
        memory_mib=opened.memory_mib,
        cores=None if opened.cores is None else len(opened.cores),
        noisy=noise({"FP32" if form == "float" else "INT8": measured.samples}, load),
    )


def _median(samples: Samples) -> float:
    return float(summarize(samples.times_ms, 1).median_ms)


def _row(one: ExportedTarget, timings: list[FormTiming], options: Compare, folder: Path) -> TargetRow:
    row = TargetRow(target=one.target.name, runtime=one.target.runtime.name, failed=one.failed, timings=timings)
    if one.report is None or one.run is None:
        return row
    report, backend = one.report, backend_for(one.target)
    accuracy, sizes = report.accuracy, report.size_bytes
    absent = {} if backend.not_timed is None else {"times": backend.not_timed}
    reasons = {
        name: report.not_measured[name] for name in ("accuracy.artifact", "fidelity_db") if name in report.not_measured
    }
    row = row.model_copy(
        update={
            "run": one.run.relative_to(folder).as_posix(),
            "score": accuracy.score,
            "fp32": accuracy.fp32,
            "artifact": accuracy.artifact or accuracy.simulated,
            "drop_pp": accuracy.drop_pp,
            "agreement": accuracy.agreement,
            "measured_on": accuracy.measured_on,
            "sqnr_db": accuracy.sqnr_db,
            "fidelity_db": report.fidelity_db,
            "float_bytes": sizes.fp32,
            "int8_bytes": sizes.artifact,
            "device": _device(report),
            "not_measured": absent | reasons,
        }
    )
    return row.model_copy(update={"within": None if row.loss is None else row.loss <= options.gate})


def _device(report: Report) -> DeviceTiming | None:
    device = report.device
    if device is None or device.latency is None:
        return None
    return DeviceTiming(
        machine=machine_name(device),
        runtime=device.runtime,
        threads=device.latency.threads,
        batch=device.latency.batch,
        float_ms=device.latency.baseline.median_ms,
        int8_ms=device.latency.artifact.median_ms,
        speedup=device.speedup,
        fidelity_db=device.fidelity_db,
    )


def _comparison(rows: list[TargetRow], exported: list[ExportedTarget], options: Compare, command: str) -> Comparison:
    report = next(one.report for one in exported if one.report is not None)
    threads, batches = list(options.threads), list(options.batch)
    return Comparison(
        model=report.model.name,
        macs=report.model.macs,
        input_size=report.model.input_size,
        calibration_set=report.quantization.calibration_set,
        calibration_images=report.quantization.calibration_images,
        dataset=report.accuracy.dataset,
        images=report.accuracy.images,
        effort=options.effort,
        threads=threads,
        batches=batches,
        gate=options.gate,
        command=command,
        finished=datetime.now(UTC).strftime("%Y-%m-%d"),
        environment=describe_device(),
        rows=rows,
        winners=winners(rows, threads, batches),
        front=pareto_front(rows, threads[0], batches[0]),
    )


def _ending(one: ExportedTarget) -> str:
    return "" if one.failed is None else f" failed: {one.failed}"


def _named(model: Any) -> str:
    """Return a name for the folder: a path's stem, or what kind of object it is."""
    return Path(model).stem if isinstance(model, str | Path) else type(model).__name__.lower()


def _key(model: Any, options: Compare) -> str:
    """Hash what was asked, but for targets and times: a comparison with one more target reuses the others' runs."""
    asked = {name: str(getattr(options, name)) for name in declared_options(Compare) if name not in _OWN_OPTIONS}
    return json_sha256({"model": str(model), "asked": asked})[:8]


def _command(model: Any, options: Compare) -> str:
    """Return the command line of what was asked."""
    declared = declared_options(Compare)
    words = ["edgeconvnext", "compare", str(model) if isinstance(model, str | Path) else f"<{type(model).__name__}>"]
    for name, value in options.stated.items():
        if isinstance(value, bool):
            words.append(declared[name].flag if value else declared[name].flag.replace("--", "--no-", 1))
        elif isinstance(value, str | Path | int | float):
            words += [declared[name].flag, str(value)]
        elif isinstance(value, tuple | list):
            words += [declared[name].flag, ",".join(map(str, value))]
    return shlex.join(words)


def _silent(_line: str) -> None:
    """Say nothing: the comparison says when a target is finished."""
