"""What a device measured with a run's kit: stored in the run, and merged into its report."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgeconvnext.errors import DeviceResultsError, RunDirectoryError
from edgeconvnext.pipeline.stages import KIT
from edgeconvnext.received import read_bytes
from edgeconvnext.run.directory import RunDirectory, StageValues
from edgeconvnext.run.manifest import FinishedRun
from edgeconvnext.schema.report import Report
from edgeconvnext.targets import Target

RESULTS = "device_results.json"


def require_kit(finished: FinishedRun) -> None:
    """Raise RunDirectoryError where a finished run has no device kit."""
    if f"{KIT}/kit.json" not in finished.files:
        raise RunDirectoryError(
            f"{finished.path} has no device kit to run on a device. Kits are written by edgeconvnext export: export --from "
            f"{finished.path}, or make the run again."
        )


def with_results(report: Report, path: Path, results: Path, target: Target) -> Report:
    """Return the report of the run in `path` with what its device kit measured, and gates judged by it.

    results: the device.json that the kit's script wrote. Raises DeviceResultsError for a file that does not hold or belongs to
    another run.
    """
    from edgeconvnext.backends.kit.record import Kit, device_record, merge, read_results

    kit = Kit.load(path / KIT)
    return merge(report, device_record(read_results(results, kit), kit), target)


def store_results(run: RunDirectory, results: Path) -> None:
    """Store a device.json in the run, so that a later report of the same artifact still has its device section. File: RESULTS."""
    from edgeconvnext.backends.kit.record import Kit

    content = read_bytes(results, DeviceResultsError)

    def make(folder: Path) -> None:
        (folder / RESULTS).write_bytes(content)

    kit = Kit.load(run.path / KIT)
    run.stage("results", {"kit": kit.sha256, "results": hashlib.sha256(content).hexdigest()}, make)


def with_stored_results(run: RunDirectory, report: Report, target: Target) -> Report:
    """Return the report with what a device measured earlier with the very kit that this run has now, if any did."""
    from edgeconvnext.backends.kit.record import Kit

    stored = run.stored("results", StageValues)
    if stored is None or RESULTS not in stored.record.files:
        return report
    if stored.record.inputs.get("kit") != Kit.load(run.path / KIT).sha256:
        return report
    try:
        merged = with_results(report, run.path, stored.path(RESULTS), target)
    except DeviceResultsError as error:  # of an earlier format, say: the export is worth no less for it
        note = f"What the device measured earlier is left out: {error}"
        return report.model_copy(update={"notes": [*report.notes, note]})
    store_results(run, stored.path(RESULTS))
    return merged
