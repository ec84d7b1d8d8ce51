"""What quantising and exporting cost, as the tables of benchmarks/README.md: from calibration.csv and pipeline.csv."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import calibration, pipeline
from benchmarks.csv_rows import read_rows

STAGES = {
    "fold": "fold, proven on 16 images",
    "statistics": "statistics (calibration)",
    "plan": "scales, ranges and roundings, layer by layer",
    "quantized": "INT8 graph",
    "artifact": "ONNX, FP32 baseline, checks",
    "reference": "FP32 over the evaluation images",
    "accuracy": "simulation and artifact over them",
    "latency": "latency",
    pipeline.WHOLE: f"**{pipeline.WHOLE}**",
}
NOT_MEASURED = "not measured here"


def calibration_lines() -> Iterator[str]:
    """Yield the section on calibration."""
    rows = read_rows(calibration.RESULTS, calibration.Row)
    yield "## Quantising a Tiny, beside other tools"
    yield ""
    if not rows:
        yield from (NOT_MEASURED, "")
        return
    yield "ConvNeXt-Tiny (random weights), 224 pixels, from the checkpoint to the quantised graph, decoding included; other"
    yield "tools get the images as arrays. Memory is a process's peak, its libraries included. `python -m benchmarks.calibration`"
    yield ""
    yield "| tool | method | images | time | of it statistics | peak memory |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        what = f"| {row.tool} | {row.method} | {row.images} |"
        if row.seconds is None or row.peak_mib is None:
            yield f"{what} {_brief(row.error) if row.error else NOT_MEASURED} | | |"
            continue
        statistics = "" if row.statistics_s is None else f"{row.statistics_s:.0f} s"
        yield f"{what} {row.seconds:.0f} s | {statistics} | {row.peak_mib:,.0f} MiB |"
    yield ""
    versions = sorted({row.versions for row in rows if row.versions})
    yield f"Machine: {rows[0].cpu}, {rows[0].cores} cores; {'; '.join(versions)}."
    yield ""


def pipeline_lines() -> Iterator[str]:
    """Yield the section on the stages of an export."""
    everything = read_rows(pipeline.RESULTS, pipeline.Row)
    rows = [row for row in everything if row.case in pipeline.CASES]
    yield "## The stages of an export"
    yield ""
    if rows:
        yield f"`edgeconvnext export --target onnx` at 224 pixels, random weights, {rows[0].evaluation_images} evaluation images:"
        yield "time and peak memory of each stage, by effort and number of calibration images. `python -m benchmarks.pipeline`"
        yield ""
        yield "![Seconds of each stage, by network, effort and images](results/pipeline.svg)"
        yield ""
        cases = [case for case in pipeline.CASES if any(row.case == case for row in rows)]
        yield "| stage |" + "".join(f" {case.model}, {case.effort}, {case.images} |" for case in cases)
        yield "|---|" + "---|" * len(cases)
        measured = {(row.case, row.stage): row for row in rows}
        for stage in [name for name in STAGES if any(name == row.stage for row in rows)]:
            cells = (measured.get((case, stage)) for case in cases)
            yield f"| {STAGES[stage]} |" + "".join(f" {_cost(row)} |" for row in cells)
    else:
        yield NOT_MEASURED
    yield ""
    for row in everything:
        if row.case == pipeline.START:
            yield f"`{row.model}` takes {row.seconds:.2f} s (median of {pipeline.STARTS}; {row.versions})."
            yield ""
    if rows:
        yield f"Machine: {rows[0].cpu}, {rows[0].cores} cores; {rows[0].versions}."
        yield ""


def _brief(error: str) -> str:
    """Keep how an error begins, and the limit it ended at; the CSV has all of it."""
    return error if len(error) <= 80 else f"{error[:30].rstrip()} ... {error[-45:].lstrip()}"


def _cost(row: pipeline.Row | None) -> str:
    return "" if row is None else f"{row.seconds:.1f} s, {row.peak_mib or 0:,.0f} MiB"
