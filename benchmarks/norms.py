"""LayerNorms replaced, with and without recovery, alone and together with pruning and INT8: measured on labelled photographs.

    python -m benchmarks.norms [--row TEXT] [--again]
    python -m benchmarks.norms --timings   # take the latencies of what was made anew, on a quiet machine
    python -m benchmarks.norms --page      # write docs/layernorm.md's tables from the CSVs, measure nothing

Each row is one command of this project's command line on the ConvNeXt-Atto beside this checkout; its result is judged on
imagenette_val, which nothing was chosen on. Rows that are in the CSV are kept; --again measures the chosen ones anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgeconvnext
from benchmarks.accuracy import _cpu
from benchmarks.csv_rows import Judged, judged_by, read_rows, write_rows
from benchmarks.photographs import WEIGHTS, use_photographs
from edgeconvnext.schema.report import NormVerdict

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "norms.csv"
VERDICTS = HERE / "results" / "norm_verdicts.csv"
CACHE = HERE / ".cache" / "norms"
PAGE = HERE.parent / "docs" / "layernorm.md"
MARKS = ("<!-- tables: python -m benchmarks.norms --page -->\n", "<!-- end of tables -->")


class Row(Judged):
    """One line. What was not measured is empty.

    norms: LayerNorms replaced, of 17.
    latency: medians in onnxruntime, batch 1, one thread, of the original's folded float network and of this one, interleaved.
    minutes: of recovery, as the command counts them (processor time).
    """

    name: str
    command: str
    norms: int
    macs_share: float
    before_ms: float | None = None
    after_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    minutes: float | None = None
    versions: str = ""
    cpu: str = ""


@dataclass(frozen=True)
class Case:
    """One command. export: whether it ends with an INT8 artifact, else with a checkpoint."""

    name: str
    flags: tuple[str, ...]
    export: bool = False


BLOCKS = ("--replace-norm", "--norms", "blocks")
EVERY_BLOCK = (*BLOCKS, "--max-drop", "100")
RECOVER = ("--recover", "--epochs", "90", "--budget-minutes")
VERDICTS_OF = "frozen, within 0.5 points"
CASES = (
    Case("frozen, within 0.5 points", ("--replace-norm",)),
    Case("blocks frozen, within 0.5 points", BLOCKS),
    Case("blocks frozen, within 0.4 points", (*BLOCKS, "--max-drop", "0.4")),
    Case("blocks frozen, within 0.4 points, untimed order", (*BLOCKS, "--max-drop", "0.4", "--no-latency")),
    Case("blocks frozen, all of them", EVERY_BLOCK),
    Case("all frozen", ("--replace-norm", "--max-drop", "100")),
    Case("blocks, all of them recovered, 10 minutes", (*EVERY_BLOCK, *RECOVER, "10")),
    Case("blocks, all of them recovered, 30 minutes", (*EVERY_BLOCK, *RECOVER, "30")),
    Case("INT8", (), export=True),
    Case("INT8, blocks frozen", BLOCKS, export=True),
    Case("INT8, 60 % of the MACs, blocks frozen", ("--prune-macs", "0.6", *BLOCKS), export=True),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", default="", help="only rows whose name contains this text")
    parser.add_argument("--again", action="store_true", help="measure the chosen rows anew")
    parser.add_argument("--timings", action="store_true", help="only time the chosen rows anew")
    parser.add_argument("--page", action="store_true", help="only write the tables of the page")
    options = parser.parse_args()
    use_photographs()
    rows = read_rows(RESULTS, Row)
    if not options.page:
        CACHE.mkdir(parents=True, exist_ok=True)
        for case in CASES:
            known = next((row for row in rows if row.name == case.name), None)
            if options.row not in case.name or (options.timings and known is None):
                continue
            if options.timings and known is not None:
                row = known.model_copy(update=time_again(case))
            elif known is None or options.again:
                row = measure(case)
            else:
                continue
            rows = [kept for kept in rows if kept.name != case.name] + [row]
            rows.sort(key=lambda kept: [c.name for c in CASES].index(kept.name))
            write_rows(RESULTS, rows)
            print(
                f"{row.name}: {row.norms} norms, drop {row.drop_pp:+.2f}, agreement {row.agreement:.2f} %", flush=True
            )
    if PAGE.is_file():
        write_page(rows)


def output_of(case: Case) -> Path:
    """Return where the result of a case lies: a run directory or a checkpoint."""
    name = "".join(letter if letter.isalnum() else "-" for letter in case.name.lower())
    return CACHE / (name if case.export else f"{name}.safetensors")


def time_again(case: Case) -> dict[str, float]:
    """Take a case's latencies from what it wrote."""
    from edgeconvnext.commands.bench import bench_artifact

    if case.export:
        timed = bench_artifact(output_of(case))
        before, after = timed.latency.fp32, timed.latency.artifact
        assert before is not None and after is not None and timed.speedup is not None
        return _times(before.median_ms, after.median_ms, timed.speedup.model_dump())
    from edgeconvnext.backends.onnxruntime.float_latency import compare_latency
    from edgeconvnext.data.sets import resolve_image_set
    from edgeconvnext.model.load import load_model
    from edgeconvnext.rewrite.exact import fold_exact
    from edgeconvnext.tuning.compress import read_images

    original = load_model(WEIGHTS)
    images = next(read_images(original, resolve_image_set("imagenette"), list(range(16)))).contiguous()
    folded = fold_exact(original.module, images).module
    module = load_model(output_of(case)).module
    shape = (original.config.in_channels, *original.preprocess.input_size)
    timed = compare_latency(folded, module, shape)
    return _float_speed({"latency": timed.model_dump()})


def measure(case: Case) -> Row:
    """Run the case's command and judge what comes out."""
    output = output_of(case)
    shown = ["edgeconvnext", *_command(case, Path(output.name))[3:]]
    shown = [part if not part.startswith("/") else Path(part).name for part in shown]
    result = subprocess.run(_command(case, output), stdout=subprocess.PIPE, text=True)
    if result.returncode not in (0, 3):
        raise SystemExit(f"{case.name}: the command ended with {result.returncode}")
    found = json.loads(result.stdout)
    record = found.get("compression") if case.export else found
    if case.name == VERDICTS_OF:
        # Times are left out: they are those of whatever else the machine did meanwhile.
        write_rows(VERDICTS, [NormVerdict.model_validate(row | {"saved_ms": None}) for row in record["norms"]])
    judged = judged_by(found) if case.export else _checkpoint(output)
    return Row(
        name=case.name,
        command=" ".join(part for part in shown if part not in ("--json",)),
        norms=0 if record is None else sum(row["verdict"] == "replaced" for row in record["norms"]),
        macs_share=1.0 if record is None else record["macs_after"] / record["macs_before"],
        minutes=None if record is None or record["recovery"] is None else record["recovery"]["minutes"],
        versions=f"edgeconvnext {edgeconvnext.__version__}",
        cpu=_cpu(),
        **judged.model_dump(),
        **(_speed(found) if case.export else _float_speed(record)),
    )


def _command(case: Case, output: Path) -> list[str]:
    model, calibration = str(WEIGHTS), ("--calib", "imagenette")
    start = [sys.executable, "-m", "edgeconvnext"]
    end = ["--output", str(output), "--json", *case.flags]
    if case.export:
        return [*start, "export", "--target", "onnx", "--model", model, *calibration, "--eval", "imagenette_val", *end]
    return [*start, "fold", model, *calibration, *end]


def _checkpoint(path: Path) -> Judged:
    """Compare a changed float network with the original on imagenette_val."""
    import torch

    from edgeconvnext.data.labels import match_labels
    from edgeconvnext.data.loader import batches
    from edgeconvnext.data.sets import resolve_image_set
    from edgeconvnext.evaluation.accuracy import agreement, paired_drop, topk
    from edgeconvnext.model.load import load_model
    from edgeconvnext.sqnr import logit_sqnr_db

    original, changed = load_model(WEIGHTS), load_model(path)
    images = resolve_image_set("imagenette_val")
    expected, logits, seen = [], [], []
    with torch.inference_mode():
        for batch in batches(images, original.preprocess, description="Evaluating"):
            expected.append(original.module(batch.images).numpy())
            logits.append(changed.module(batch.images).numpy())
            seen += batch.indices
    a, b = np.concatenate(expected), np.concatenate(logits)
    labels = match_labels(images, original.labels, original.config.num_classes)[np.array(images.labels)][seen]
    drop = paired_drop(a, b, labels)
    return Judged(
        images=len(a), top1=topk(b, labels).value, drop_pp=drop.value, drop_low=drop.low, drop_high=drop.high,
        agreement=agreement(a, b), sqnr_db=logit_sqnr_db(a, b),
    )  # fmt: skip


def _speed(report: dict[str, Any]) -> dict[str, float]:
    latency = report["latency"]
    return _times(latency["fp32"]["median_ms"], latency["artifact"]["median_ms"], report["speedup_interval"])


def _float_speed(record: dict[str, Any]) -> dict[str, float]:
    timed = record["latency"]
    if timed is None:
        return {}
    return _times(timed["before_ms"], timed["after_ms"], timed | {"value": timed["speedup"]})


def _times(before: float, after: float, ratio: dict[str, Any]) -> dict[str, float]:
    return {
        "before_ms": before, "after_ms": after,
        "speedup": ratio["value"], "speedup_low": ratio["low"], "speedup_high": ratio["high"],
    }  # fmt: skip


def write_page(rows: list[Row]) -> None:
    """Put the tables between the marks of the page."""
    lines = [
        "| what | norms gone | MACs | top-1 drop | agreement | SQNR | float or INT8, ms | speed-up over FP32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in rows]
    lines += ["", *_verdict_lines(), ""]
    if rows:
        lines += [f"{rows[0].cpu}; {rows[0].versions}; {rows[0].images:,} images.", ""]
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(MARKS[0])
    PAGE.write_text(before + MARKS[0] + "\n" + "\n".join(lines) + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")
    print(f"written: {PAGE.name}")


def _line(row: Row) -> str:
    minutes = "" if row.minutes is None else f" ({row.minutes:.0f} min)"
    speed = "not measured"
    if row.speedup is not None:
        speed = f"{row.speedup:.2f}x ({row.speedup_low:.2f} to {row.speedup_high:.2f})"
    cells = [
        row.name + minutes,
        f"{row.norms} of 17",
        f"{100 * row.macs_share:.0f} %",
        f"{row.drop_pp:+.2f} ({row.drop_low:+.2f} to {row.drop_high:+.2f})",
        f"{row.agreement:.2f} %",
        f"{row.sqnr_db:.1f} dB",
        "" if row.after_ms is None else f"{row.after_ms:.2f}",
        speed,
    ]
    return "| " + " | ".join(cells) + " |"


def _verdict_lines() -> list[str]:
    """Return the table of single norms, as the first case found them."""
    verdicts = read_rows(VERDICTS, NormVerdict)
    if not verdicts:
        return []
    lines = [
        f"Each LayerNorm alone, on held-out calibration images, and its verdict ({VERDICTS_OF}):",
        "",
        "| LayerNorm | verdict | error of its unit | KL, nats | agreement | why |",
        "|---|---|---|---|---|---|",
    ]
    for row in verdicts:
        cells = [f"`{row.norm}`", row.verdict, "", "", "", row.why]
        if row.error_alone is not None:
            cells[2] = f"{100 * row.error_alone:.1f} %"
        if row.kl_alone is not None:
            cells[3] = f"{row.kl_alone:.4f}"
        if row.agreement_alone is not None:
            cells[4] = f"{row.agreement_alone:.2f} % ({row.agreement_low:.1f} to {row.agreement_high:.1f})"
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
