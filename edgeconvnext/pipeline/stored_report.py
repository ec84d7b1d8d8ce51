"""The report of a run: written as a stage, and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.received import read_bytes, read_text, reading
from edgeconvnext.run.directory import RunDirectory
from edgeconvnext.run.manifest import FinishedRun
from edgeconvnext.schema.report import Report

REPORT = "report.json"
LABELS = "labels.txt"
FORMAT = get_args(Report.model_fields["format"].annotation)[0]
_AGAIN = "Make the run again with the same command."


def write_report_stage(run: RunDirectory, report: Report, labels: Sequence[str] | None) -> None:
    """Write a run's report. labels: names of the classes. Files: REPORT, its pages, and LABELS where the classes have names."""

    def make(folder: Path) -> None:
        from edgeconvnext.report.write import write_report

        write_report(report, folder, labels=labels)

    run.stage("report", {"report": report.model_dump()}, make)


def stored_report(finished: FinishedRun) -> Report:
    """Read the report of a finished run; raises RunDirectoryError where it is none of this version."""
    file = finished.path / REPORT
    if file.name not in finished.files:
        raise RunDirectoryError(f"{finished.path} has no {file.name}; name a run of edgeconvnext export.")
    content = read_bytes(file, RunDirectoryError)
    with reading(file, RunDirectoryError, _AGAIN):
        value = json.loads(content)
        if isinstance(value, dict) and value.get("format") != FORMAT:
            raise ValueError(f"it is a report of format {value.get('format')}, and this version reads format {FORMAT}")
        return Report.model_validate_json(content)


def stored_labels(finished: FinishedRun) -> list[str] | None:
    """Read the names of the classes of a finished run; None where they have none."""
    if LABELS not in finished.files:
        return None
    return read_text(finished.path / LABELS, RunDirectoryError).splitlines()
