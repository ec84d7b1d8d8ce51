"""The plot of the speed benchmark, and the page that all benchmarks of speed and cost share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cost_tables import calibration_lines, pipeline_lines
from benchmarks.csv_rows import read_rows
from benchmarks.plots import pyplot_for
from edgeconvnext.files import atomic_write

if TYPE_CHECKING:
    from benchmarks.speed import Row

HERE = Path(__file__).resolve().parent
PLOT, PAGE = HERE / "results" / "speed.svg", HERE / "README.md"
TITLES = {"atto": "ConvNeXt-Atto, trained", "tiny": "ConvNeXt-Tiny, random weights"}
GOALS = {"atto": 1.5, "tiny": 1.7}
COLOURS = {"edgeconvnext": "#d62728", "onnxruntime": "#1f77b4", "nncf": "#2ca02c", "modelopt": "#9467bd"}
OTHERS = (
    ("python -m benchmarks.accuracy", "accuracy.csv", "accuracy beside other tools at 128 pixels (docs/accuracy.md)"),
    ("python -m benchmarks.pruning", "pruning.csv", "pruning (docs/pruning.md)"),
    ("python -m benchmarks.norms", "norms.csv", "LayerNorms replaced (docs/layernorm.md)"),
    ("python -m benchmarks.targets", "targets.csv", "every target on one network (docs/devices.md)"),
    ("python -m benchmarks.recipes", "recipes.csv", "two networks, two recipes, from scratch (docs/recipe.md)"),
)


def _rows(results: Path) -> list[Row]:
    from benchmarks.speed import Row

    return read_rows(results, Row)


def write_plot(results: Path) -> None:
    """Draw a bar for each artifact: its speed-up over FP32, a panel for each network and number of threads."""
    pyplot = pyplot_for("speed")

    rows = [row for row in _rows(results) if row.speedup is not None and row.method != "FP32"]
    panels = list(dict.fromkeys((row.model, row.threads) for row in rows))
    if not panels:
        return
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, 0.5 + 3 * len(panels)), squeeze=False)
    for (model, threads), axis in zip(panels, axes.flat, strict=True):
        own = sorted((r for r in rows if (r.model, r.threads) == (model, threads)), key=lambda r: r.speedup or 0)
        names = [f"{row.tool}, {row.method}" + ", linears" * (row.placement == "linears only") for row in own]
        speeds = [row.speedup or 0.0 for row in own]
        errors = [
            [speed - (row.speedup_low or speed) for row, speed in zip(own, speeds, strict=True)],
            [(row.speedup_high or speed) - speed for row, speed in zip(own, speeds, strict=True)],
        ]
        axis.barh(names, speeds, xerr=errors, color=[COLOURS[row.tool] for row in own], height=0.6)
        for place, row in enumerate(own):
            axis.text(0.02, place, f"{row.speedup:.2f}x, {row.sqnr_db:.1f} dB", va="center", color="white", fontsize=8)
        axis.axvline(1, color="grey", linewidth=0.8, linestyle=":")
        axis.axvline(GOALS[model], color="black", linewidth=0.8)
        axis.set_title(f"{TITLES[model]}, 224 pixels, {_threads(threads)}")
        axis.set_xlabel("speed-up over the best FP32 file in onnxruntime")
        axis.tick_params(axis="y", labelsize=8)
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})
    pyplot.close(figure)


def write_page(results: Path) -> None:
    """Write benchmarks/README.md from the CSV."""
    rows = _rows(results)
    lines = [
        "# Speed and cost",
        "",
        "How fast INT8 is beside other tools, what quantising costs in time and memory, and where the time of an export goes. An",
        'empty cell is "not measured".',
        "",
        "| command | what it does |",
        "|---|---|",
        "| `make bench` | measures speed, calibration and stages; the machine must do nothing else |",
        "| `python -m benchmarks.speed --page` | writes this page from `results/` |",
        "",
        "## INT8 over FP32 at 224 pixels, batch 1",
        "",
    ]
    if rows:
        lines += [
            "- Times: medians of interleaved runs, a process for each artifact, with 95 % intervals of the ratio.",
            "- SQNR and agreement: the artifact's, in its runtime, against FP32.",
            "- Placement: a tool's own choice, or linears only (pwconv1, pwconv2 and the head).",
            "- The black line in the plot is this project's goal.",
            "- ModelOpt leaves the head's Gemm in float in both placements. In a Tiny with random weights the head causes most",
            "  of the error: with pwconv1 and pwconv2 alone, this toolkit's simulation keeps 62.7 dB (8 images).",
            "",
            "![Speed-ups by tool](results/speed.svg)",
            "",
            *_tables(rows),
            *_machine(rows),
        ]
    else:
        lines += ["not measured here", ""]
    lines += [*calibration_lines(), *pipeline_lines()]
    lines += ["## Other benchmarks", "", "| command | file | what |", "|---|---|---|"]
    lines += [f"| `{command}` | `results/{file}` | {what} |" for command, file, what in OTHERS]
    atomic_write(PAGE, "\n".join(lines) + "\n")


def _tables(rows: list[Row]) -> Iterator[str]:
    for model, threads in dict.fromkeys((row.model, row.threads) for row in rows):
        yield f"### {TITLES[model]}, {_threads(threads)}"
        yield ""
        yield "| tool | method | placement | speed-up | ms | SQNR | agreement | size |"
        yield "|---|---|---|---|---|---|---|---|"
        chosen = [row for row in rows if (row.model, row.threads) == (model, threads)]
        for row in sorted(chosen, key=lambda row: -(row.speedup or 0)):
            if row.error:
                yield f"| {row.tool} | {row.method} | {row.placement} | {row.error} | | | | |"
                continue
            speed = "not measured here"
            if row.speedup is not None:
                speed = f"{row.speedup:.2f}x ({row.speedup_low:.2f} to {row.speedup_high:.2f})"
            cells = [
                row.tool,
                row.method,
                "own" if row.placement == "peer's own default" else row.placement,
                speed,
                _shown(row.latency_ms, 2),
                _shown(row.sqnr_db, 1, " dB"),
            ]
            cells += [_shown(row.agreement, 1, " %"), _shown((row.size_bytes or 0) / 1e6, 2, " MB")]
            yield f"| {' | '.join(cells)} |"
        yield ""


def _threads(threads: int) -> str:
    return f"{threads} {'thread' if threads == 1 else 'threads'}"


def _machine(rows: list[Row]) -> list[str]:
    versions = sorted({row.versions for row in rows if row.versions})
    loads = sorted({row.load for row in rows if row.load})
    return [
        f"Machine: {', '.join(sorted({row.cpu for row in rows}))}; {'; '.join(versions)}. Load: {'; '.join(loads)}.",
        "",
    ]


def _shown(value: float | None, digits: int, unit: str = "") -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"
