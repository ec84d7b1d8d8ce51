"""Time and peak memory of every stage of `edgeconvnext export --target onnx --effort quick`, by number of calibration images.

    python -m benchmarks.pipeline [--model NAME_OR_FILE ...] [--calib SET] [--images 128 256 512] [--results DIR]

Each row is a process of its own in a folder of its own, so that nothing is reused. Without --model, an Atto and a Tiny with random
weights are measured at 224: time and memory do not depend on the weights, accuracy is not looked at. Finished rows in
the CSV are kept, so that an interrupted benchmark goes on where it stopped; --again (what `make bench` does) measures
them anew.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
FIELDS = (
    "model", "input", "calibration_set", "calibration_images", "evaluation_images", "stage", "seconds", "peak_mib",
    "cpu", "cores", "torch", "onnxruntime",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One export: a model by name or file, and the number of calibration images."""

    model: str
    images: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["random:convnext_atto", "random:convnext_tiny"])
    parser.add_argument("--calib", help="default: the first of imagenet_1k_subset, imagenette, digits that is here")
    parser.add_argument("--images", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    calibration = options.calib or _first_set_here()
    path = options.results / "pipeline.csv"
    rows = [] if options.again or not path.is_file() else list(csv.DictReader(path.open()))
    for model in options.model:
        for images in options.images:
            if any((row["model"], row["calibration_images"]) == (_label(model), str(images)) for row in rows):
                continue
            rows += _measure(Case(model, images), calibration)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(rows)
    print(f"written: {path}")


def _measure(case: Case, calibration: str) -> list[dict[str, object]]:
    """Export in a fresh folder and return one row for each stage and one for the whole command."""
    with tempfile.TemporaryDirectory() as scratch:
        model = (
            random_checkpoint(case.model.removeprefix("random:"), Path(scratch))
            if "random:" in case.model
            else case.model
        )
        command = [
            sys.executable, "-m", "edgeconvnext.cli", "export", "--target", "onnx", "--model", str(model),
            "--calib", calibration, "--num-images", str(case.images), "--effort", "quick", "--output", f"{scratch}/run",
            "--json",
        ]  # fmt: skip
        start = time.perf_counter()
        result = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if result.returncode not in (0, 3):
            sys.exit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr}")
        report = json.loads(result.stdout)
    environment = report["environment"]
    common = {
        "model": _label(case.model),
        "input": "x".join(map(str, report["model"]["input_size"])),
        "calibration_set": calibration,
        "calibration_images": case.images,
        "evaluation_images": report["accuracy"]["images"],
        "cpu": environment.get("cpu", ""),
        "cores": os.cpu_count(),
        "torch": environment.get("torch", ""),
        "onnxruntime": environment.get("onnxruntime", ""),
    }
    stages = [
        {**common, "stage": s["stage"], "seconds": s["seconds"], "peak_mib": s["peak_mib"]} for s in report["stages"]
    ]
    peak = max(stage["peak_mib"] for stage in report["stages"])
    total = {**common, "stage": "whole command", "seconds": round(seconds, 1), "peak_mib": peak}
    print(f"{case.model} {case.images} images: {seconds:.0f} s, {peak:.0f} MiB", flush=True)
    return [*stages, total]


def random_checkpoint(preset: str, folder: Path) -> Path:
    """Write a preset with random weights and return the file."""
    import torch

    from edgeconvnext.model.convnext import ConvNeXt
    from edgeconvnext.model.presets import get_preset

    torch.manual_seed(0)
    path = folder / f"{preset}.pth"
    network = ConvNeXt(get_preset(preset).config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.1)  # the paper's 1e-6 would leave the blocks without effect
    torch.save(network.state_dict(), path)
    return path


def _label(model: str) -> str:
    return f"{model.removeprefix('random:')} (random weights)" if model.startswith("random:") else Path(model).stem


def _first_set_here() -> str:
    from edgeconvnext.data.sets import resolve_image_set
    from edgeconvnext.errors import ImageSetError

    for name in ("imagenet_1k_subset", "imagenette"):
        try:
            resolve_image_set(name)
        except ImageSetError:
            continue
        return name
    return "digits"


if __name__ == "__main__":
    main()
