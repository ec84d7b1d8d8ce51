"""MODEL_CARD.md: what the artifact is, how good it is, what was not measured, and how to run it."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import ChoiceLoader, DictLoader, Environment, PackageLoader, StrictUndefined

from edgeconvnext import backends
from edgeconvnext.backends.metadata import UNKNOWN_NORMALIZATION
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.escape import for_markdown, for_terminal
from edgeconvnext.report.device import device_facts
from edgeconvnext.report.sizes import SIZE_COLUMNS, size_row
from edgeconvnext.report.verdict import answer_facts, aside, gate_text, missing_results, place, reason, verdict
from edgeconvnext.report.visible import visible
from edgeconvnext.schema import format
from edgeconvnext.schema.report import PreprocessRecord, Report

_FILTERS = ("percent", "share", "points", "decibel", "ratio", "milliseconds", "size", "count", "macs", "error", "shape")


def render_card(report: Report) -> str:
    """Return the card as Markdown; names that look like Markdown or HTML are escaped."""
    wrote = exporter(report)
    runs = None if wrote is None else backends.backend(wrote).how_to_run()
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("edgeconvnext.report"), DictLoader({"how_to_run": runs or ""})]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({name: getattr(format, name) for name in _FILTERS})
    environment.filters.update(md=for_markdown, code=markdown_code, code_cell=_code_in_table, py=repr)
    report = visible(report)
    pre = report.model.preprocess
    text = environment.get_template("MODEL_CARD.md.jinja").render(
        report=report,
        runs=runs is not None,
        predicts=_predicts(report),
        resized=pre and resized(pre, report.model.input_size),
        verdict=verdict(report),
        place=place(report.accuracy),
        aside=aside(report.accuracy),
        gates=[gate_text(gate) for gate in report.gates],
        missing=missing_results(report),
        size_columns=SIZE_COLUMNS,
        size_row=size_row,
        answer_facts=answer_facts,
        device_facts=device_facts,
        reason=lambda key: reason(report, key) or "no reason was recorded",
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _predicts(report: Report) -> bool:
    """Say whether `predict` asks the artifact on a machine like this one for the classes of photographs."""
    if report.artifact is None or report.outputs or UNKNOWN_NORMALIZATION in report.notes:
        return False
    opens = backends.backend_of(Path(report.artifact))
    return opens is not None and opens.not_run is None


def exporter(report: Report) -> str | None:
    """Return the backend that wrote the artifact: as recorded, else by the artifact's suffix; None where there is no artifact."""
    if report.artifact is None:
        return None
    if report.exporter in backends.names():
        return report.exporter
    reader = backends.backend_of(Path(report.artifact))
    return None if reader is None else reader.name


def resized(record: PreprocessRecord, input_size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) that an image is resized to before the crop."""
    return Preprocess(input_size, **record.model_dump(exclude={"value_range", "input_type"})).resize_size


def markdown_code(text: object) -> str:
    """Quote text as inline code, with more backticks around than inside."""
    line = for_terminal(text)
    if not line.strip():
        return for_markdown(line)
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    padding = " " if line[0] in " `" or line[-1] in " `" else ""
    return f"{ticks}{padding}{line}{padding}{ticks}"


def _code_in_table(text: object) -> str:
    """Quote text as inline code in a table, where a pipe would end the cell, code or not."""
    return markdown_code(text).replace("|", "\\|")
