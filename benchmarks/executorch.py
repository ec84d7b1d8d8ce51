"""What the forms of target `android` gain over ExecuTorch's own recipe, and beside the other runtimes, on this machine.

    python -m benchmarks.executorch RUN [RUN...] [--threads 1,2] [--seconds 3]    # on a quiet machine

The first run is one of target android; others, such as runs of onnx and openvino of the same network, are timed in the same turns.
Own recipe: `torch.export`, XNNPACK's partitioner, and for INT8 its quantizer with symmetric scales per channel on the run's
calibration images. Needs executorch. Outputs are checked against FP32 before anything is timed. Writes results/executorch.csv.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from pydantic import BaseModel
from torch.export import ExportedProgram

from benchmarks.csv_rows import write_rows
from benchmarks.photographs import use_photographs
from edgeconvnext.backends import backend_for
from edgeconvnext.backends.executorch.package import import_executorch
from edgeconvnext.backends.executorch.pte import METADATA, _quiet
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.processes import ProcessTimes, TimedFile, time_processes
from edgeconvnext.data.loader import batches
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.evaluation.timing import summarize
from edgeconvnext.files import tree_size
from edgeconvnext.machine import describe_device
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.pipeline.stored_config import stored_target
from edgeconvnext.run.manifest import load_run
from edgeconvnext.sqnr import logit_sqnr_db

RESULTS = Path(__file__).parent / "results" / "executorch.csv"
CALIBRATION, CHECKED = 64, 32


class Row(BaseModel):
    """One file with one number of threads. sqnr_db: of its logits against FP32's in torch, on CHECKED held-out images."""

    file: str
    threads: int
    median_ms: float
    cv: float
    size_bytes: int
    sqnr_db: float
    delegates: int | None = None


def own_recipe(model: LoadedModel, images: torch.Tensor, folder: Path) -> dict[str, tuple[Path, int]]:
    """Write FP32 and INT8 by ExecuTorch's own recipe; return file and number of delegates of each."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = import_executorch("backends.xnnpack.quantizer.xnnpack_quantizer")
    example = (images[:1],)
    floating = torch.export.export(model.module, example)
    scheme = quantizer.get_symmetric_quantization_config(is_per_channel=True)
    prepared = prepare_pt2e(floating.module(), quantizer.XNNPACKQuantizer().set_global(scheme))
    with torch.no_grad():
        for image in images[:CALIBRATION].split(1):
            prepared(image)
    quantised = torch.export.export(convert_pt2e(prepared), example)
    properties = ArtifactMetadata(model.name, None, model.preprocess, "normalized", "").properties()
    return {
        f"ExecuTorch's own recipe, {name}": _lowered(program, folder / f"{name}.pte", properties)
        for name, program in (("FP32", floating), ("INT8", quantised))
    }


def _lowered(program: ExportedProgram, path: Path, properties: dict[str, str]) -> tuple[Path, int]:
    exir = import_executorch("exir")
    partitioner = import_executorch("backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
    stored = torch.frombuffer(bytearray(json.dumps(properties).encode()), dtype=torch.uint8)
    with _quiet():
        lowered = exir.to_edge_transform_and_lower(
            program, partitioner=[partitioner()], constant_methods={METADATA: stored}
        )
        graph = lowered.exported_program().graph_module.graph
        path.write_bytes(lowered.to_executorch().buffer)
    return path, sum("executorch_call_delegate" in str(node.target) for node in graph.nodes)


def files_of(run: Path) -> dict[str, tuple[str, Path]]:
    """Return name, backend and path of a run's float form and artifact."""
    target = stored_target(load_run(run))
    backend = backend_for(target)
    return {
        f"{target.name}, {form}": (backend.name, run / path)
        for form, path in (("FP32", backend.baseline), ("INT8", backend.artifact))
    }


def main() -> None:
    """Check, time and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--model", required=True, help="the weights that the runs were made from")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    use_photographs()
    model = load_model(options.model)
    images = resolve_image_set(options.calib).take(CALIBRATION + CHECKED)
    pixels = torch.cat([batch.images for batch in batches(images, model.preprocess)]).contiguous()
    held_out = pixels[CALIBRATION:].numpy()
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(held_out)).numpy()
    with TemporaryDirectory() as scratch:
        own = own_recipe(model, pixels, Path(scratch))
        files = {name: ("executorch", path) for name, (path, _) in own.items()}
        for run in options.runs:
            files |= files_of(run)
        quality = {
            name: _sqnr_db(name_of_backend, path, held_out, expected) for name, (name_of_backend, path) in files.items()
        }
        for name, decibels in quality.items():
            print(f"{name}: {decibels:.1f} dB, {tree_size(files[name][1]):,} bytes", flush=True)
        rows = []
        for threads in map(int, options.threads.split(",")):
            timed = {name: TimedFile(backend, path) for name, (backend, path) in files.items()}
            for name, times in time_processes(timed, threads=threads, batch=1, seconds=options.seconds).items():
                if not isinstance(times, ProcessTimes):
                    print(f"{name}: not timed: {times}")
                    continue
                figures = summarize(times.samples.times_ms, 1)
                size, delegates = tree_size(files[name][1]), own[name][1] if name in own else None
                row = Row(
                    file=name,
                    threads=threads,
                    median_ms=figures.median_ms,
                    cv=figures.cv,
                    size_bytes=size,
                    sqnr_db=quality[name],
                    delegates=delegates,
                )
                rows.append(row)
                print(f"{name}, {threads} threads: {row.median_ms:.3f} ms, cv {row.cv:.2f}", flush=True)
    write_rows(RESULTS, rows)
    print(", ".join(f"{name} {value}" for name, value in describe_device().items()))


def _sqnr_db(backend: str, path: Path, images: np.ndarray, expected: np.ndarray) -> float:
    from edgeconvnext.backends import backend as named

    return logit_sqnr_db(expected, named(backend).runner(path).outputs(images)[0])


if __name__ == "__main__":
    main()
