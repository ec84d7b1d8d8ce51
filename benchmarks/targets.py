"""Every shipped target on one trained network: what its artifact, or its simulation, was measured to do on this machine.

    python -m benchmarks.targets [--target NAME ...] [--again]
    python -m benchmarks.targets --page    # write the table of docs/devices.md from the CSV, measure nothing

One `edgeconvnext export` for each target, on the ConvNeXt-Atto beside this checkout, judged on imagenette_val; then the same
network made smaller (`edgeconvnext prune`), its block norms frozen (`edgeconvnext fold`), for one target of each exporter. Rows in
the CSV are kept; an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import edgeconvnext
from benchmarks.accuracy import _cpu
from benchmarks.csv_rows import Judged, judged_by, read_rows, write_rows
from benchmarks.photographs import WEIGHTS, use_photographs

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "targets.csv"
CACHE = HERE / ".cache" / "targets"
PAGE = HERE.parent / "docs" / "devices.md"
MARKS = ("<!-- figures: python -m benchmarks.targets --page -->\n", "<!-- end of figures -->")
TARGETS = (
    "onnx", "raspberry-pi", "coreml", "iphone", "mac", "coreml-w8", "coreml-p6",
    "jetson", "jetson-orin-nano", "jetson-thor", "rtx",
)  # fmt: skip
"""All but `gpu`, which needs an NVIDIA GPU to build at all."""
TRAINED = "as trained"
SMALLER = "60 % of the MACs, block norms frozen"
CASES = [(TRAINED, target) for target in TARGETS] + [
    (SMALLER, target) for target in ("onnx", "coreml", "jetson", "rtx")
]


class Row(Judged):
    """One line. measured_on: whose accuracy it is. runtime: what computed the artifact. fidelity: to the simulation, dB.

    The drop is against the network handed in, which is the smaller one where that was exported.
    """

    network: str = TRAINED
    target: str
    measured_on: str
    runtime: str | None = None
    fidelity_db: float | None = None
    size_bytes: int
    checks: str = ""
    versions: str = ""
    cpu: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--again", action="store_true", help="measure the chosen rows anew")
    parser.add_argument("--page", action="store_true", help="only write the table from the CSV")
    options = parser.parse_args()
    use_photographs()
    rows = read_rows(RESULTS, Row)
    for case in () if options.page else CASES:
        if case[1] in options.target and (options.again or not any(_case(row) == case for row in rows)):
            row = measure(*case)
            rows = sorted([kept for kept in rows if _case(kept) != case] + [row], key=lambda r: CASES.index(_case(r)))
            write_rows(RESULTS, rows)
            print(_line(row), flush=True)
    write_page(rows)


def smaller() -> Path:
    """Return the checkpoint of the smaller network, made on first use."""
    pruned, path = CACHE / "pruned.safetensors", CACHE / "smaller.safetensors"
    CACHE.mkdir(parents=True, exist_ok=True)
    start = [sys.executable, "-m", "edgeconvnext"]
    if not pruned.is_file():
        options = ["--macs", "0.6", "--calib", "imagenette", "--num-images", "512", "--output", str(pruned)]
        subprocess.run([*start, "prune", str(WEIGHTS), *options], check=True)
    if not path.is_file():
        options = [
            "--replace-norm",
            "--norms",
            "blocks",
            "--no-latency",
            "--calib",
            "imagenette",
            "--output",
            str(path),
        ]
        subprocess.run([*start, "fold", str(pruned), *options], check=True)
    return path


def measure(network: str, target: str) -> Row:
    """Export for one target and read its report."""
    weights = WEIGHTS if network == TRAINED else smaller()
    command = [
        sys.executable, "-m", "edgeconvnext", "export", "--target", target, "--model", str(weights), "--calib", "imagenette",
        "--eval", "imagenette_val", "--no-latency", "--output", str(CACHE / f"{weights.stem}-{target}"), "--json",
    ]  # fmt: skip
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode not in (0, 3):
        raise SystemExit(f"{target}: the export ended with {result.returncode}")
    report: dict[str, Any] = json.loads(result.stdout)
    accuracy = report["accuracy"]
    own = accuracy["measured_on"] == "artifact"
    return Row(
        network=network,
        target=target,
        measured_on=accuracy["measured_on"],
        runtime=accuracy["runtime"] if own else None,
        fidelity_db=report["fidelity_db"] if own else None,
        size_bytes=report["size_bytes"]["artifact"],
        checks="; ".join(f"{check['name']}: {check['result']}" for check in report["checks"]),
        versions=f"edgeconvnext {edgeconvnext.__version__}",
        cpu=_cpu(),
        **judged_by(report).model_dump(),
    )


def write_page(rows: list[Row]) -> None:
    """Put the table between the marks of the page."""
    lines = [
        "| network | target | accuracy of | computed by | top-1 | drop | agreement | SQNR | fidelity | size |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
    ]
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n" + "\n".join(lines) + f"\n\n{MARKS[1]}{after}", encoding="utf-8")


def _case(row: Row) -> tuple[str, str]:
    return row.network, row.target


def _line(row: Row) -> str:
    fidelity = "not measured" if row.fidelity_db is None else f"{row.fidelity_db:.1f} dB"
    cells = [
        row.network,
        row.target,
        row.measured_on,
        row.runtime or "torch",
        f"{row.top1:.2f} %",
        f"{row.drop_pp:+.2f} ({row.drop_low:+.2f} to {row.drop_high:+.2f})",
        f"{row.agreement:.2f} %",
        f"{row.sqnr_db:.1f} dB",
        fidelity,
        f"{row.size_bytes / 1e6:.2f} MB",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
