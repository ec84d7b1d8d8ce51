"""What calibration costs: time and peak memory of quantising a Tiny, beside a plain forward pass and beside other tools.

    python -m benchmarks.calibration [--row TEXT] [--images 512] [--again]     # on a quiet machine

ConvNeXt-Tiny with random weights, 224x224, all cores, every row a process of its own. The plain pass decodes and runs the images
as this toolkit's stages do: channels-last, inference mode, batch by batch, decoding beside it. This toolkit's row is the stages of
`edgeconvnext quantize --effort quick` that lead from the checkpoint to the quantised graph, decoding included (the default effort:
benchmarks/pipeline.py); other tools get the images as arrays. No process may take more than MEMORY_GIB of address space; a tool
that needs more has that as its result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

import edgeconvnext
from benchmarks.accuracy import AS_EXPORTED
from benchmarks.csv_rows import read_rows, write_rows
from benchmarks.peers.grid import SUFFIXES, Configuration
from benchmarks.peers.protocol import Task, peak_mib
from benchmarks.peers.worker import Worker, WorkerError
from benchmarks.photographs import use_photographs
from benchmarks.pipeline import link_last_images, random_checkpoint

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "calibration.csv"
CACHE = HERE / ".cache" / "calibration"
MODEL, CALIBRATION, EVALUATED = "convnext_tiny", "imagenet_1k_subset", 16
MEMORY_GIB = 16
PLAIN, OWN = "plain FP32 forward pass", "effort quick"
PEERS = (
    Configuration("onnxruntime", "MinMax"),
    Configuration("onnxruntime", "Entropy"),
    Configuration("nncf", "default preset", activations="symmetric"),
    Configuration("torchao", "X86InductorQuantizer"),
)

# Of the rows, by tool and method.
ORDER = (("torch", PLAIN), ("edgeconvnext", OWN), *((peer.peer, peer.method) for peer in PEERS))


class Row(BaseModel):
    """One line. seconds, peak_mib: of quantising, without loading libraries in time and with them in memory.

    statistics_s: of this toolkit's calibration pass alone. Each library chose its number of threads by itself on `cores` cores.
    """

    tool: str
    method: str
    images: int
    seconds: float | None = None
    statistics_s: float | None = None
    peak_mib: float | None = None
    versions: str = ""
    cores: int = 0
    cpu: str = ""
    error: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", default="", help="only rows whose tool and method contain this text")
    parser.add_argument("--images", type=int, nargs="+", default=[512])
    parser.add_argument("--again", action="store_true", help="measure the chosen rows anew")
    parser.add_argument("--forward", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_photographs()
    if options.forward is not None:
        print(json.dumps(forward(options.forward, options.images[0])))
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GIB << 30, MEMORY_GIB << 30))
    checkpoint = CACHE / f"{MODEL}.pth"
    if not checkpoint.is_file():
        random_checkpoint(MODEL, CACHE)
    rows = read_rows(RESULTS, Row)
    for images in options.images:
        for row, measure in _cases(checkpoint, images):
            key = (row.tool, row.method, row.images)
            known = any((kept.tool, kept.method, kept.images) == key for kept in rows)
            if options.row not in f"{row.tool} {row.method}" or (known and not options.again):
                continue
            try:
                row = row.model_copy(update=measure())
            except WorkerError as error:
                row.error = f"{error} (at most {MEMORY_GIB} GiB)"
            rows = [kept for kept in rows if (kept.tool, kept.method, kept.images) != key] + [row]
            write_rows(RESULTS, sorted(rows, key=lambda row: (row.images, ORDER.index((row.tool, row.method)))))
            print(f"{row.tool} {row.method}: {row.seconds} s, {row.peak_mib} MiB {row.error or ''}", flush=True)


_Case = tuple[Row, Callable[[], dict[str, Any]]]


def _cases(checkpoint: Path, images: int) -> list[_Case]:
    """Return every row still empty, and what measures it."""
    from edgeconvnext.machine import cpu_name

    common: dict[str, Any] = {"images": images, "cores": os.cpu_count() or 0, "cpu": cpu_name()}
    own = f"edgeconvnext {edgeconvnext.__version__}"
    plain: _Case = Row(tool="torch", method=PLAIN, **common), partial(_plain, checkpoint, images)
    quick: _Case = (
        Row(tool="edgeconvnext", method=OWN, versions=own, **common),
        partial(_own, checkpoint, images, "quick"),
    )
    peers: list[_Case] = [
        (Row(tool=peer.peer, method=peer.method, **common), partial(_peer, checkpoint, images, peer)) for peer in PEERS
    ]
    return [plain, quick, *peers]


def forward(checkpoint: Path, count: int) -> dict[str, float | str]:
    """Decode and run `count` images once, and say how long that took and what memory it needed."""
    import torch

    from edgeconvnext.data.loader import batches
    from edgeconvnext.data.sets import resolve_image_set
    from edgeconvnext.model.load import load_model

    loaded = load_model(checkpoint)
    images = resolve_image_set(CALIBRATION).take(count)
    module = loaded.module.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        start = time.perf_counter()
        for batch in batches(images, loaded.preprocess, description="Forward pass"):
            module(batch.images)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib": peak_mib(), "versions": f"torch {torch.__version__.partition('+')[0]}"}


def _plain(checkpoint: Path, images: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.calibration", "--forward", str(checkpoint), "--images", str(images)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def _own(checkpoint: Path, images: int, effort: str) -> dict[str, Any]:
    """Run `edgeconvnext quantize`; a few images are evaluated, because every run evaluates."""
    with tempfile.TemporaryDirectory() as scratch:
        few = link_last_images(CALIBRATION, EVALUATED, Path(scratch) / "few")
        command = [
            sys.executable, "-m", "edgeconvnext", "quantize", "--target", "onnx", "--model", str(checkpoint),
            "--calib", CALIBRATION, "--eval", str(few), "--num-images", str(images), "--effort", effort,
            "--output", f"{scratch}/run", "--json",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode not in (0, 3):
            raise WorkerError((result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1])
        stages = json.loads(result.stdout)["stages"]
    counted = [stage for stage in stages if stage["stage"] in ("fold", "statistics", "plan", "quantized")]
    return {
        "seconds": sum(stage["seconds"] for stage in counted),
        "statistics_s": next((stage["seconds"] for stage in counted if stage["stage"] == "statistics"), None),
        "peak_mib": max(stage["peak_mib"] for stage in counted),
    }


def _peer(checkpoint: Path, images: int, case: Configuration) -> dict[str, Any]:
    onnx, program, calibration = _prepared(checkpoint, images)
    with tempfile.TemporaryDirectory() as scratch, Worker(case.peer, CACHE / f"{case.peer}.log") as worker:
        versions = worker.versions()
        artifact = Path(scratch) / f"artifact{SUFFIXES[case.peer]}"
        cost = worker.quantize(
            Task(onnx, program, calibration, artifact, case.method, case.placement, case.bits, case.activations)
        )
    return {"seconds": cost.seconds, "peak_mib": cost.peak_mib, "versions": versions}


def _prepared(checkpoint: Path, images: int) -> tuple[Path, Path, Path]:
    """Write the folded FP32 network as ONNX and program, and the images as an array."""
    import torch

    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.backends.onnxruntime.write import export_onnx
    from edgeconvnext.data.loader import batches
    from edgeconvnext.data.sets import resolve_image_set
    from edgeconvnext.model.load import load_model
    from edgeconvnext.model.program import export_program
    from edgeconvnext.rewrite.exact import fold_exact

    onnx, program, calibration = CACHE / "fp32.onnx", CACHE / "fp32.pt2", CACHE / f"{images}.npy"
    if not calibration.is_file():
        loaded = load_model(checkpoint)
        chosen = resolve_image_set(CALIBRATION).take(images)
        shape = (len(chosen), 3, *loaded.preprocess.input_size)
        array = np.lib.format.open_memmap(calibration.with_suffix(".part.npy"), "w+", np.float32, shape)
        done = 0
        for batch in batches(chosen, loaded.preprocess, description="Reading images"):
            array[done : done + len(batch.images)] = batch.images.numpy()
            done += len(batch.images)
        array.flush()
        if not program.is_file():
            few = torch.from_numpy(np.array(array[:4]))
            exported = export_program(fold_exact(loaded.module, few).module, few[:1], max_batch=32)
            metadata = ArtifactMetadata(loaded.name, None, loaded.preprocess, "normalized", edgeconvnext.__version__)
            export_onnx(exported, onnx, opset=20, metadata=metadata, layout=AS_EXPORTED)
            torch.export.save(exported, program)
        calibration.with_suffix(".part.npy").rename(calibration)
    return onnx, program, calibration


if __name__ == "__main__":
    main()
