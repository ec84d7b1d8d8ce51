"""The roadmap for people and spreadsheets: roadmap.md with its table, .svg, .csv, and the table of the terminal."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.escape import for_markdown
from edgeconvnext.files import atomic_write
from edgeconvnext.report.roadmap_chart import render_roadmap_svg
from edgeconvnext.report.visible import visible
from edgeconvnext.schema import format
from edgeconvnext.schema.roadmap import Roadmap, RoadmapStep

JSON_FILE = "roadmap.json"
NOT_MEASURED = "-"

INTRO = """\
# From ResNet-50 to ConvNeXt-T, on {target}

What each step from a ResNet-50 to ConvNeXt-T (Liu et al., arXiv 2201.03545) costs in {runtime}, in FP32 and in INT8, beside its
published top-1 and GFLOPs. Use it to judge which of these designs is worth its time on your device:

```sh
{command}
```

The command keeps finished steps and continues after an interruption. It writes this page, the plot, and the figures
as [{csv}]({csv}).

"""

COLUMNS = """\
- GMACs: multiply-adds of convolutions and linears at 224, counted.
- printed: the paper's GFLOPs. The row with the star counts norms as well.
- FP32 ms, INT8 ms: median latency in {runtime} at {resolution}x{resolution}, batch 1, {threads} thread(s), in turns.
  FP32 is folded, with all optimisations.
- speed-up: with its 95 % interval.
- INT8: share of the multiply-adds.
- fidelity: SQNR of the artifact's logits against the simulated graph's.
- SQNR: of the artifact's logits against FP32's.
- A dash is "not measured".

"""


def write_roadmap(roadmap: Roadmap, folder: Path) -> None:
    """Write roadmap.json, .csv, .svg and .md into a folder."""
    atomic_write(folder / JSON_FILE, roadmap.model_dump_json(indent=1) + "\n")
    write_page(roadmap, folder / "roadmap.md")


def check_page(page: Path) -> None:
    """Raise RunDirectoryError, before any work is done, where the page could not be written."""
    if page.suffix != ".md":
        raise RunDirectoryError(f"--page names a Markdown file, ending in .md; it is {page}.")
    if not page.parent.is_dir():
        raise RunDirectoryError(f"There is no folder {page.parent} to write {page.name} into. Make it first.")


def write_page(roadmap: Roadmap, page: Path) -> None:
    """Write the page, and beside it the plot and the table as CSV under the page's stem."""
    atomic_write(page.with_suffix(".csv"), as_csv(roadmap))
    atomic_write(page.with_suffix(".svg"), render_roadmap_svg(roadmap))
    atomic_write(page, as_markdown(roadmap, page.stem))


def as_csv(roadmap: Roadmap) -> str:
    """Return one line for each step; what was not measured is empty."""
    stream = io.StringIO()
    fields = [name for name in RoadmapStep.model_fields if name not in ("speedup", "not_measured", "run")]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*fields, "speedup", "speedup_low", "speedup_high"])
    for step in roadmap.steps:
        speedup = ["", "", ""] if step.speedup is None else [step.speedup.value, step.speedup.low, step.speedup.high]
        values = [getattr(step, name) for name in fields]
        writer.writerow([*("" if value is None else value for value in values), *speedup])
    return stream.getvalue()


def as_markdown(roadmap: Roadmap, stem: str) -> str:
    """Return the page. stem: of the page's and its files' names."""
    roadmap = visible(roadmap)
    command = f"edgeconvnext roadmap --target {roadmap.target} --calib {roadmap.calibration_set} --page docs/{stem}.md"
    command += "" if roadmap.resolution == 224 else f" --resolution {roadmap.resolution}"
    command += "" if roadmap.effort == "quick" else f" --effort {roadmap.effort}"
    text = INTRO.format(
        target=for_markdown(roadmap.target), runtime=for_markdown(roadmap.runtime), command=command, csv=f"{stem}.csv"
    )
    text += f"![Top-1, multiply-adds and latency of each step]({stem}.svg)\n\n"
    text += _markdown_table(roadmap.steps) + "\n"
    text += COLUMNS.format(
        runtime=for_markdown(roadmap.runtime), resolution=roadmap.resolution, threads=roadmap.threads
    )
    reasons = _reasons(roadmap)
    if reasons:
        text += "Not measured:\n\n" + "".join(f"- {for_markdown(line)}\n" for line in reasons) + "\n"
    lines = [
        *roadmap.notes,
        f"{roadmap.calibration_images} calibration images of {roadmap.calibration_set}, effort {roadmap.effort}.",
        "Measured on: " + ", ".join(f"{name} {value}" for name, value in roadmap.environment.items()) + ".",
    ]
    return text + "Notes:\n\n" + "".join(f"- {for_markdown(line)}\n" for line in lines)


def render_roadmap(roadmap: Roadmap) -> RenderableType:
    """Lay the steps out for a terminal of 80 columns."""
    roadmap = visible(roadmap)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("step", no_wrap=True)
    for column in ("top-1", "GMACs", "printed", "M par", "FP32 ms", "INT8 ms", "speed", "fidel.", "top-1"):
        table.add_column(column, justify="right")
    for step in roadmap.steps:
        table.add_row(
            Text(step.name),
            _number(step.published_top1, 2),
            f"{step.macs / 1e9:.2f}",
            f"{step.published_gflops:.2f}{'*' if step.gflops_count_norms else ''}",
            f"{step.params / 1e6:.1f}",
            _number(step.latency_fp32_ms, 1),
            _number(step.latency_int8_ms, 1),
            NOT_MEASURED if step.speedup is None else format.ratio(step.speedup.value),
            _number(step.fidelity_db, 0),
            _number(step.top1_int8, 2),
        )
    setting = (
        "The first top-1 and the printed GFLOPs are the paper's, ImageNet at 224 (*: norms counted); the last top-1 is INT8's "
        f"here. Latency in {roadmap.runtime} at {roadmap.resolution}x{roadmap.resolution}, batch 1, {roadmap.threads} thread(s)."
    )
    notes = [Text(f"Not measured: {line}") for line in _reasons(roadmap)]
    return Group(table, Text(), Text(setting), *notes, *(Text(f"Note: {note}") for note in roadmap.notes))


def _markdown_table(steps: list[RoadmapStep]) -> str:
    lines = [
        "| step | change | top-1, paper | GMACs | printed | M params | FP32 ms | INT8 ms | speed-up | INT8 | fidelity | SQNR | "
        "top-1 FP32, INT8, measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for step in steps:
        speedup = NOT_MEASURED
        if step.speedup is not None:
            speedup = f"{format.ratio(step.speedup.value)} ({step.speedup.low:.2f} to {step.speedup.high:.2f})"
        accuracy = NOT_MEASURED
        if step.top1_fp32 is not None or step.top1_int8 is not None:
            accuracy = f"{_number(step.top1_fp32, 2)}, {_number(step.top1_int8, 2)}"
        cells = (
            *(
                for_markdown(step.name),
                for_markdown(step.change),
                _number(step.published_top1, 2),
                f"{step.macs / 1e9:.3f}",
            ),
            f"{step.published_gflops:.2f}{'*' if step.gflops_count_norms else ''}",
            *(f"{step.params / 1e6:.2f}", _number(step.latency_fp32_ms, 2), _number(step.latency_int8_ms, 2), speedup),
            NOT_MEASURED if step.int8_macs is None else format.share(step.int8_macs),
            *(_decibel(step.fidelity_db), _decibel(step.sqnr_db), accuracy),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _reasons(roadmap: Roadmap) -> list[str]:
    """Say once for each reason which figures of which steps it explains."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for step in roadmap.steps:
        for figure, reason in step.not_measured.items():
            grouped.setdefault((figure, reason), []).append(step.name)
    merged: dict[tuple[str, str], list[str]] = {}
    for (figure, reason), names in grouped.items():
        who = "every step" if len(names) == len(roadmap.steps) else ", ".join(names)
        merged.setdefault((who, reason), []).append(figure)
    return [f"{', '.join(figures)} of {who}: {reason}" for (who, reason), figures in merged.items()]


def _number(value: float | None, decimals: int) -> str:
    return NOT_MEASURED if value is None else f"{value:.{decimals}f}"


def _decibel(value: float | None) -> str:
    return NOT_MEASURED if value is None else format.decibel(value)
