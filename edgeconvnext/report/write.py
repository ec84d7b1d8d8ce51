"""Write what a run has to say: report.json for programs, report.html for people, a model card, the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeconvnext.files import atomic_write
from edgeconvnext.report.card import render_card
from edgeconvnext.report.html import render_html
from edgeconvnext.schema.report import Report


def write_report(report: Report, directory: Path, labels: Sequence[str] | None = None) -> list[Path]:
    """Write report.json, report.html, MODEL_CARD.md and, where the model has labels, labels.txt; return their paths.

    labels: one readable name per class, in the order of the logits; labels.txt holds one per line.
    Each file appears whole or not at all. Raises RunDirectoryError where the disk is full or the folder is read-only.
    """
    contents = {
        "report.json": report_json(report),
        "report.html": render_html(report),
        "MODEL_CARD.md": render_card(report),
    }
    if labels is not None:
        contents["labels.txt"] = "".join(f"{' '.join(label.split())}\n" for label in labels)
    paths = []
    for name, content in contents.items():
        atomic_write(directory / name, content)
        paths.append(directory / name)
    return paths


def report_json(report: Report) -> str:
    """Return the text of report.json, every key present, in the order of the schema."""
    return report.model_dump_json(indent=2) + "\n"
