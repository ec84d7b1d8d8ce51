"""A comparison of targets for people and spreadsheets: comparison.md, .csv, .svg, and the table of the terminal."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeconvnext.axis import Axis
from edgeconvnext.escape import for_html, for_markdown
from edgeconvnext.files import atomic_write
from edgeconvnext.report.visible import visible
from edgeconvnext.schema import format
from edgeconvnext.schema.comparison import Comparison, FormTiming, TargetRow, Winner
from edgeconvnext.schema.report import Interval

JSON_FILE = "comparison.json"
ABSENT = "not measured"
MAIN_COLUMNS = ("target", "runtime", "drop, points", "agreement", "SQNR", "fidelity", "size INT8", "size FP32")
TIME_COLUMNS = ("target", "threads", "batch", "FP32 ms", "INT8 ms", "speed-up", "images/s", "load", "memory")
COLUMNS = """\
Speed-up: over the best float form of any runtime with as many threads and images, with its 95 % interval. Load: from opening the
file to the first answer. Memory: what the open file adds to its process. Each file is timed in a process of its own, in turns,
pinned to as many cores as it has threads; the others are stopped meanwhile. Drop and agreement are the artifact's where its
runtime is installed, else the simulation's (marked "simulated"). Fidelity: the artifact's outputs against the simulation's. SQNR:
against FP32's.
"""


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json, .md, .csv and .svg into a folder."""
    atomic_write(folder / JSON_FILE, comparison.model_dump_json(indent=1) + "\n")
    write_page(comparison, folder / "comparison.md")


def write_page(comparison: Comparison, page: Path) -> None:
    """Write the page, and beside it the plot and the table as CSV under the page's stem."""
    atomic_write(page.with_suffix(".csv"), as_csv(comparison))
    atomic_write(page.with_suffix(".svg"), front_svg(comparison))
    atomic_write(page, as_markdown(comparison, page.stem))


def as_csv(comparison: Comparison) -> str:
    """Return one line for each form, number of threads and batch of each target; what was not measured is empty."""
    stream = io.StringIO()
    timed = [name for name in FormTiming.model_fields if name != "speedup"]
    whole = ("target", "runtime", "score", "agreement", "sqnr_db", "fidelity_db", "within", "measured_on")
    ends = ("", "_low", "_high")
    columns = [*whole, *(f"drop_pp{end}" for end in ends), "bytes", *timed, *(f"speedup{end}" for end in ends)]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*columns, "failed"])
    for row in comparison.rows:
        own = [getattr(row, name) for name in whole] + _ends(row.drop_pp)
        timings: list[FormTiming | None] = [*row.timings] or [None]
        for timing in timings:
            times = [None if timing is None else getattr(timing, name) for name in timed]
            size = row.float_bytes if timing is not None and timing.form == "float" else row.int8_bytes
            values = [*own, size, *times, *_ends(None if timing is None else timing.speedup), row.failed]
            writer.writerow(["" if value is None else value for value in values])
    return stream.getvalue()


def as_markdown(comparison: Comparison, stem: str) -> str:
    """Return the page. stem: of the page's and its files' names."""
    comparison = visible(comparison)
    parts = [f"# {for_markdown(comparison.model)} on {len(comparison.rows)} targets\n"]
    parts += [f"{for_markdown(line)}\n" for line in winner_lines(comparison)]
    parts.append(f"![Time and size of each artifact]({stem}.svg)\n")
    parts.append(_markdown_table(MAIN_COLUMNS, [_main_cells(row) for row in comparison.rows]))
    times = [cells for row in comparison.rows for cells in _time_cells(row, comparison)]
    if times:
        parts.append(_markdown_table(TIME_COLUMNS, times))
    devices = [_device_line(row) for row in comparison.rows if row.device is not None]
    parts += [f"- {for_markdown(line)}\n" for line in devices]
    parts.append(COLUMNS)
    for title, lines in (("Not measured", absent_lines(comparison)), ("Noisy", noisy_lines(comparison))):
        if lines:
            parts.append(f"{title}:\n\n" + "".join(f"- {for_markdown(line)}\n" for line in lines))
    parts.append("Settings:\n\n" + "".join(f"- {for_markdown(line)}\n" for line in _settings(comparison)))
    parts.append(f"```sh\n{comparison.command}\n```\n")
    return "\n".join(parts)


def render_comparison(comparison: Comparison) -> RenderableType:
    """Lay the targets out for a terminal of 80 columns."""
    comparison = visible(comparison)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("target", no_wrap=True)
    for column in ("drop", "agree", "SQNR", "size", "thr", "batch", "FP32 ms", "INT8 ms", "speed-up"):
        table.add_column(column, justify="right")
    for row in comparison.rows:
        drop = "-" if row.drop_pp is None else format.points(row.drop_pp.value)
        agreement = "-" if row.agreement is None else f"{row.agreement:.1f} %"
        sqnr = "-" if row.sqnr_db is None else format.decibel(row.sqnr_db)
        size = "-" if row.int8_bytes is None else format.size(row.int8_bytes)
        times = _time_cells(row, comparison) or [("", "-", "-", "-", "-", "-")]
        for number, cells in enumerate(times):
            first = (row.target, drop, agreement, sqnr, size) if number == 0 else ("",) * 5
            table.add_row(
                *(Text(cell) for cell in (*first, *cells[1:5], cells[5].partition(" ")[0].replace("not", "-")))
            )
    lines = [Text(line, "bold") for line in winner_lines(comparison)]
    absent = [Text(f"Not measured: {line}", "dim") for line in absent_lines(comparison)]
    noisy = [Text(f"Noisy: {line}", "yellow") for line in noisy_lines(comparison)]
    return Group(table, Text(), *lines, *absent, *noisy)


def winner_lines(comparison: Comparison) -> list[str]:
    """Say which target is best for each goal, and which ones no other beats."""
    limit = f"{comparison.gate:g} point{'' if comparison.gate == 1 else 's'}"
    if not comparison.winners:
        return [f"No target is within {limit} of FP32."]
    lines = [f"{_goal(winner)}: {winner.target}" for winner in comparison.winners]
    front = f"Not beaten in loss, time and size at once: {', '.join(comparison.front)}" if comparison.front else ""
    return [f"Within {limit} of FP32:", *lines, *([front] if front else [])]


def absent_lines(comparison: Comparison) -> list[str]:
    """Say once for each reason what is missing, and of which targets."""
    merged: dict[tuple[str, str], list[str]] = {}
    for row in comparison.rows:
        reasons = dict(row.not_measured) if row.failed is None else {"everything": row.failed}
        for timing in row.timings:
            if timing.absent is not None:
                reasons[f"times of {_form(timing)}, {_threads(timing.threads)}, batch {timing.batch}"] = timing.absent
        for figure, reason in reasons.items():
            merged.setdefault((figure, reason), []).append(row.target)
    return [f"{figure} of {', '.join(targets)}: {reason}" for (figure, reason), targets in merged.items()]


def noisy_lines(comparison: Comparison) -> list[str]:
    """Say for each reason that makes times doubtful which targets it concerns."""
    merged: dict[str, dict[str, None]] = {}
    for row in comparison.rows:
        for timing in row.timings:
            for reason in re.split(r"; (?![^(]*\))", timing.noisy or ""):
                setting = f"{_threads(timing.threads)}, batch {timing.batch}"
                merged.setdefault(f"{reason} ({setting})", {})[row.target] = None
    return [f"{', '.join(targets)}: {reason}" for reason, targets in merged.items() if not reason.startswith(" (")]


def front_svg(comparison: Comparison, width: int = 760, height: int = 420) -> str:
    """Return the plot of time and size of each artifact, with the first number of threads and batch, on a white ground."""
    comparison = visible(comparison)
    threads, batch = comparison.threads[0], comparison.batches[0]
    points = [
        (row.target, timing.median_ms, row.int8_bytes / 1e6)
        for row in comparison.rows
        if (timing := row.timing("int8", threads, batch))
        and timing.median_ms is not None
        and row.int8_bytes is not None
    ]
    x = Axis(0, 1.15 * max((time for _, time, _ in points), default=1.0), 70, width - 24)
    y = Axis(0, 1.15 * max((size for *_, size in points), default=1.0), height - 60, 50)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(70, 22, f"{comparison.model}: INT8 with {_threads(threads)}, batch {batch}"),
        _text(70, 40, "filled: not beaten in loss, time and size at once"),
        _text((70 + width) / 2, height - 16, "median time of a batch, ms", "middle"),
        f'<text transform="translate(20 {height / 2}) rotate(-90)" text-anchor="middle">size of the artifact, MB</text>',
    ]
    for tick in x.ticks(8):
        parts.append(f'<line x1="{tick.at}" x2="{tick.at}" y1="50" y2="{height - 60}" stroke="#dddddd"/>')
        parts.append(_text(tick.at, height - 42, tick.label, "middle"))
    for tick in y.ticks(6):
        parts.append(f'<line x1="70" x2="{width - 24}" y1="{tick.at}" y2="{tick.at}" stroke="#dddddd"/>')
        parts.append(_text(62, tick.at + 4, tick.label, "end"))
    for target, time, size in points:
        fill = "#1f77b4" if target in comparison.front else "white"
        parts.append(
            f'<circle cx="{x.at(time)}" cy="{y.at(size)}" r="6" fill="{fill}" stroke="#1f77b4" stroke-width="2">'
            f"<title>{for_html(f'{target}: {format.milliseconds(time)}, {size:.2f} MB')}</title></circle>"
        )
        parts.append(_text(x.at(time) + 10, y.at(size) - 8, target))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _main_cells(row: TargetRow) -> tuple[str, ...]:
    simulated = " (simulated)" if row.measured_on == "simulation" else ""
    drop = ABSENT if row.drop_pp is None else _interval(row.drop_pp, format.points) + simulated
    return (
        for_markdown(row.target),
        for_markdown(row.runtime),
        drop,
        ABSENT if row.agreement is None else format.percent(row.agreement) + simulated,
        ABSENT if row.sqnr_db is None else format.decibel(row.sqnr_db),
        ABSENT if row.fidelity_db is None else format.decibel(row.fidelity_db),
        ABSENT if row.int8_bytes is None else format.size(row.int8_bytes),
        ABSENT if row.float_bytes is None else format.size(row.float_bytes),
    )


def _time_cells(row: TargetRow, comparison: Comparison) -> list[tuple[str, ...]]:
    """Return a row of cells for each number of threads and batch that was timed."""
    rows: list[tuple[str, ...]] = []
    for threads in comparison.threads:
        for batch in comparison.batches:
            floating, artifact = row.timing("float", threads, batch), row.timing("int8", threads, batch)
            if floating is None and artifact is None:
                continue
            speedup = None if artifact is None else artifact.speedup
            rows.append(
                (
                    for_markdown(row.target),
                    str(threads),
                    str(batch),
                    _milliseconds(floating),
                    _milliseconds(artifact),
                    ABSENT if speedup is None else _interval(speedup, format.ratio),
                    ABSENT
                    if artifact is None or artifact.throughput is None
                    else format.significant(artifact.throughput),
                    ABSENT if artifact is None or artifact.load_ms is None else format.milliseconds(artifact.load_ms),
                    ABSENT if artifact is None or artifact.memory_mib is None else f"{artifact.memory_mib:.0f} MiB",
                )
            )
    return rows


def _settings(comparison: Comparison) -> list[str]:
    size = "" if comparison.input_size is None else f" at {comparison.input_size[0]}x{comparison.input_size[1]}"
    lines = [
        f"{comparison.model}{size}, effort {comparison.effort}, {comparison.calibration_images} calibration images of "
        f"{comparison.calibration_set}",
        f"measured on: {', '.join(f'{name} {value}' for name, value in comparison.environment.items())}",
        f"date: {comparison.finished}",
    ]
    if comparison.images:
        lines.insert(1, f"drop and agreement on {comparison.images:,} images of {comparison.dataset}")
    return lines


def _device_line(row: TargetRow) -> str:
    device = row.device
    assert device is not None
    ratio = "" if device.speedup is None else f", {_interval(device.speedup, format.ratio)} as fast"
    return (
        f"{row.target} on {device.machine}, {device.runtime}, batch {device.batch}, {_threads(device.threads)}: float "
        f"{format.milliseconds(device.float_ms)}, INT8 {format.milliseconds(device.int8_ms)}{ratio}"
    )


def _markdown_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {' | '.join(cells)} |" for cells in rows)]
    return "\n".join(lines) + "\n"


def _goal(winner: Winner) -> str:
    if winner.threads is None:
        return f"{winner.goal.capitalize()}"
    return f"{winner.goal.capitalize()} with {_threads(winner.threads)}, batch {winner.batch}"


def _form(timing: FormTiming) -> str:
    return "FP32" if timing.form == "float" else "INT8"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _milliseconds(timing: FormTiming | None) -> str:
    if timing is None or timing.median_ms is None:
        return ABSENT
    return format.significant(timing.median_ms) + (" (noisy)" if timing.noisy is not None else "")


def _interval(interval: Interval, as_text: object) -> str:
    assert callable(as_text)
    return f"{as_text(interval.value)} ({as_text(interval.low)} to {as_text(interval.high)})"


def _ends(interval: Interval | None) -> list[float | None]:
    return [None, None, None] if interval is None else [interval.value, interval.low, interval.high]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{for_html(text)}</text>'
