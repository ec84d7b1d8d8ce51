"""Time and peak memory of every stage of `edgeconvnext export --target onnx`, with each effort and several numbers of images.

    python -m benchmarks.pipeline [--row TEXT] [--again]     # on a quiet machine; `make bench` does it anew

An Atto and a Tiny with random weights at 224 pixels: time and memory do not depend on the weights, accuracy is not looked at. Each
row is the command in a process and a folder of its own, so that nothing is reused; the last EVALUATED images of the set are its
evaluation set. Beside them, how long `edgeconvnext --help` takes. Finished rows are kept, so that an interrupted benchmark goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pydantic import BaseModel

from benchmarks.csv_rows import read_rows, write_rows
from benchmarks.photographs import use_photographs

RESULTS = Path(__file__).parent / "results" / "pipeline.csv"
CALIBRATION, EVALUATED = "imagenet_1k_subset", 64
WHOLE = "whole command"


@dataclass(frozen=True)
class Case:
    """One export: a preset, `--effort`, and `--num-images`."""

    model: str
    effort: str
    images: int

    @property
    def name(self) -> str:
        return f"{self.model}, effort {self.effort}, {self.images} images"


CASES = (
    Case("convnext_atto", "quick", 256),
    Case("convnext_atto", "default", 256),
    Case("convnext_tiny", "quick", 128),
    Case("convnext_tiny", "quick", 512),
    Case("convnext_tiny", "default", 256),
)
# Not an export: the program starts, and says what it can do.
START, STARTS = Case("edgeconvnext --help", "", 0), 9


class Row(BaseModel):
    """One stage of one export, or the whole command, whose memory is the most that any stage took."""

    model: str
    effort: str = ""
    calibration_images: int
    evaluation_images: int
    stage: str
    seconds: float
    peak_mib: float | None = None
    cpu: str
    cores: int
    versions: str

    @property
    def case(self) -> Case:
        return Case(self.model, self.effort, self.calibration_images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", default="", help="only the rows with this text in their name")
    parser.add_argument("--again", action="store_true", help="measure the chosen rows anew")
    options = parser.parse_args()
    use_photographs()
    rows = read_rows(RESULTS, Row)
    for case in (*CASES, START):
        known = any(row.case == case for row in rows)
        if options.row not in case.name or (known and not options.again):
            continue
        rows = [row for row in rows if row.case != case] + list(start() if case == START else measure(case))
        write_rows(RESULTS, sorted(rows, key=lambda row: (*CASES, START).index(row.case)))
        print(f"{case.name}: {rows[-1].seconds:.1f} s, {rows[-1].peak_mib or 0:.0f} MiB", flush=True)


def measure(case: Case) -> Iterator[Row]:
    """Export in a fresh folder and yield a row for each stage and one for the whole command."""
    with tempfile.TemporaryDirectory() as scratch:
        few = link_last_images(CALIBRATION, EVALUATED, Path(scratch) / "evaluated")
        command = [
            sys.executable, "-m", "edgeconvnext", "export", "--target", "onnx",
            "--model", str(random_checkpoint(case.model, Path(scratch))), "--calib", CALIBRATION, "--eval", str(few),
            "--num-images", str(case.images), "--effort", case.effort, "--output", f"{scratch}/run", "--json",
        ]  # fmt: skip
        start = time.perf_counter()
        result = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if result.returncode not in (0, 3):
            sys.exit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr}")
        report = json.loads(result.stdout)
    environment = report["environment"]
    stages = [(stage["stage"], stage["seconds"], stage["peak_mib"]) for stage in report["stages"]]
    for name, taken, peak in [*stages, (WHOLE, seconds, max(peak for *_, peak in stages))]:
        yield Row(
            model=case.model,
            effort=case.effort,
            calibration_images=case.images,
            evaluation_images=report["accuracy"]["images"],
            stage=name,
            seconds=taken,
            peak_mib=peak,
            cpu=environment["cpu"],
            cores=os.cpu_count() or 0,
            versions=f"torch {environment['torch']}, onnxruntime {environment['onnxruntime']}",
        )


def start() -> Iterator[Row]:
    """Yield the median time of `edgeconvnext --help`, files in memory: it is run once before."""
    from edgeconvnext.machine import cpu_name

    seconds = []
    for _ in range(STARTS + 1):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "edgeconvnext", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - begun)
    yield Row(
        model=START.model,
        effort=START.effort,
        calibration_images=START.images,
        evaluation_images=0,
        stage=WHOLE,
        seconds=median(seconds[1:]),
        peak_mib=None,
        cpu=cpu_name(),
        cores=os.cpu_count() or 0,
        versions=f"Python {platform.python_version()}",
    )


def link_last_images(name: str, count: int, folder: Path) -> Path:
    """Link the last images of a set below EDGECONVNEXT_DATA into `folder`, each in the folder of its class, and return it."""
    root = Path(os.environ["EDGECONVNEXT_DATA"]) / name
    images = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for path in images[-count:]:
        link = folder / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return folder


def random_checkpoint(preset: str, folder: Path) -> Path:
    """Write a preset with random weights and return the file."""
    import torch

    from edgeconvnext.model.convnext.network import ConvNeXt
    from edgeconvnext.model.convnext.presets import get_preset

    torch.manual_seed(0)
    path = folder / f"{preset}.pth"
    network = ConvNeXt(get_preset(preset).config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.1)  # the paper's 1e-6 would leave the blocks without effect
    torch.save(network.state_dict(), path)
    return path


if __name__ == "__main__":
    main()
