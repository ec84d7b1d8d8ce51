"""Latency of INT8 ConvNeXts at 224 pixels, batch 1, beside other tools: one worker a tool, their runs interleaved.

    python -m benchmarks.speed [--model NAME ...] [--tool NAME ...] [--again]     # on a quiet machine
    python -m benchmarks.speed --page                                            # only write the plot and the page

The trained Atto and a Tiny with random weights. Every tool quantises the same exactly folded network on the same images; artifacts
are kept in benchmarks/.cache, so that an interrupted benchmark goes on where it stopped. Times of a network and a number of
threads are taken together: every artifact is loaded in a process of its own, and asked in turn for short blocks of runs. Speed-ups
are over the folded FP32 network in the form that onnxruntime runs fastest.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel

import edgeconvnext
from benchmarks.accuracy import AS_EXPORTED, take_turns
from benchmarks.accuracy_models import atto
from benchmarks.accuracy_table import OWN
from benchmarks.csv_rows import read_rows, write_rows
from benchmarks.own_runs import OwnRun, target_text
from benchmarks.peers.grid import RUNTIMES, SUFFIXES, Configuration
from benchmarks.peers.protocol import Task
from benchmarks.peers.worker import Worker, WorkerError
from benchmarks.photographs import use_photographs
from benchmarks.pipeline import random_checkpoint
from benchmarks.speed_page import write_page, write_plot
from edgeconvnext.evaluation.timing import load_before, speedup

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "speed.csv"
CACHE = HERE / ".cache" / "speed"
SIDE = 224
THREADS = (1, 2)
MEMORY_GIB = 16
# This toolkit's: its target as shipped, and only what "linears only" of the peers means, with weights of eight bits as theirs.
OWN_RUNS = (
    OwnRun("target onnx", "onnx", "peer's own default", "affine"),
    OwnRun("target file", target_text("linears only", "affine"), "linears only", "affine"),
)
PEERS = (
    Configuration("onnxruntime", "MinMax"),
    Configuration("onnxruntime", "Entropy"),
    Configuration("onnxruntime", "Percentile"),
    Configuration("onnxruntime", "MinMax", "linears only"),
    Configuration("nncf", "default preset", activations="symmetric"),
    Configuration("nncf", "model_type=TRANSFORMER"),
    Configuration("nncf", "MIXED preset", "linears only"),
    Configuration("modelopt", "max", activations="symmetric"),
    Configuration("modelopt", "max", "linears only", "symmetric"),
)


@dataclass(frozen=True)
class Subject:
    """A network of the benchmark. images: to calibrate on; judged: others that the answers are compared with FP32's on."""

    name: str
    image_set: str
    images: int
    judged: int


SUBJECTS = (Subject("atto", "imagenette", 64, 128), Subject("tiny", "imagenet_1k_subset", 32, 64))


class Row(BaseModel):
    """One line of the CSV: an artifact and a number of threads.

    sqnr_db, agreement: of the artifact in its runtime against FP32, on `judged` images. speedup: with its 95 % interval. load:
    what else the machine did when the times were taken. error: why there are no figures.
    """

    model: str
    tool: str
    method: str
    placement: str = ""
    threads: int = 1
    judged: int | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    size_bytes: int | None = None
    versions: str = ""
    cpu: str = ""
    load: str = ""
    error: str | None = None

    @property
    def artifact_key(self) -> tuple[str, ...]:
        return self.model, self.tool, self.method, self.placement


@dataclass(frozen=True)
class Prepared:
    """The network and its images as files. best: FP32 as onnxruntime runs it fastest; onnx, program: as other tools take it."""

    folder: Path
    checkpoint: Path
    best: Path
    onnx: Path
    program: Path
    calibration: Path
    judged: Path
    one_image: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=[subject.name for subject in SUBJECTS], help="default: all")
    parser.add_argument("--tool", nargs="+", choices=[OWN, *SUFFIXES], help="default: all")
    parser.add_argument("--again", action="store_true", help="quantise and measure the chosen ones anew")
    parser.add_argument("--page", action="store_true", help="only write the plot and the page from the CSV")
    options = parser.parse_args()
    if not options.page:
        use_photographs()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GIB << 30, MEMORY_GIB << 30))
        for subject in SUBJECTS:
            if options.model is None or subject.name in options.model:
                measure(subject, options.tool or [OWN, *SUFFIXES], again=options.again)
    write_plot(RESULTS)
    write_page(RESULTS)


def measure(subject: Subject, tools: list[str], *, again: bool) -> None:
    """Quantise with each tool, judge the artifacts, and time all of them together for each number of threads."""
    prepared = prepare(subject)
    rows = list(_artifacts(subject, prepared, tools, again=again))
    for threads in THREADS:
        timed = time_together(prepared, [row.model_copy(update={"threads": threads}) for row in rows])
        kept = [row for row in read_rows(RESULTS, Row) if (row.model, row.threads) != (subject.name, threads)]
        write_rows(RESULTS, sorted([*kept, *timed], key=lambda row: (row.model, row.threads)))
        for row in timed:
            print(
                f"{row.model}, {row.threads} threads: {row.tool} {row.method}: {row.speedup} {row.error or ''}",
                flush=True,
            )


def prepare(subject: Subject) -> Prepared:
    """Write network and images; what is there already is used again."""
    import torch

    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.backends.onnxruntime.write import export_onnx
    from edgeconvnext.data.loader import batches
    from edgeconvnext.data.sets import resolve_image_set
    from edgeconvnext.model.load import load_model
    from edgeconvnext.model.program import export_program
    from edgeconvnext.rewrite.exact import fold_exact

    folder = CACHE / subject.name
    folder.mkdir(parents=True, exist_ok=True)
    names = ("fp32-best-form.onnx", "fp32.onnx", "fp32.pt2", "calibration.npy", "judged.npy", "one_image.npy")
    checkpoint = atto(folder) if subject.name == "atto" else folder / "convnext_tiny.pth"
    if not checkpoint.is_file():
        random_checkpoint("convnext_tiny", folder)
    prepared = Prepared(folder, checkpoint, *(folder / name for name in names))
    if prepared.one_image.is_file():
        return prepared
    loaded = load_model(checkpoint, resolution=SIDE)
    chosen = resolve_image_set(subject.image_set).take(subject.images + subject.judged)
    stream = batches(chosen, loaded.preprocess, description="Reading images")
    images = np.concatenate([np.ascontiguousarray(batch.images.numpy()) for batch in stream])
    # Sets are ordered by class: every so many images are judged.
    judged = np.linspace(0, len(images) - 1, subject.judged).round().astype(int)
    np.save(prepared.judged, images[judged])
    np.save(prepared.calibration, np.delete(images, judged, axis=0))
    few = torch.from_numpy(images[:4])
    program = export_program(fold_exact(loaded.module, few).module, few[:1], max_batch=32)
    metadata = ArtifactMetadata(loaded.name, None, loaded.preprocess, "normalized", edgeconvnext.__version__)
    export_onnx(program, prepared.best, opset=21, metadata=metadata)
    export_onnx(program, prepared.onnx, opset=20, metadata=metadata, layout=AS_EXPORTED)
    torch.export.save(program, prepared.program)
    np.save(prepared.one_image, images[:1])
    return prepared


def _artifacts(subject: Subject, prepared: Prepared, tools: list[str], *, again: bool) -> Iterator[Row]:
    """Yield a row for FP32 and for each tool's artifact, judged against FP32 on the same images."""
    from edgeconvnext.evaluation.accuracy import agreement
    from edgeconvnext.machine import cpu_name
    from edgeconvnext.sqnr import logit_sqnr_db

    with Worker("onnxruntime", prepared.folder / "onnxruntime.log") as worker:
        versions = worker.load(prepared.best)
        expected = worker.logits(prepared.judged, prepared.folder / "logits.npy")
    common = {"model": subject.name, "threads": 1, "judged": len(expected), "cpu": cpu_name()}
    size = prepared.best.stat().st_size
    yield Row(tool="onnxruntime", method="FP32", versions=versions, size_bytes=size, **common)  # type: ignore[arg-type]
    for case in (*OWN_RUNS, *PEERS):
        tool, runtime = (OWN, "onnxruntime") if isinstance(case, OwnRun) else (str(case.peer), RUNTIMES[case.peer])
        if tool not in tools:
            continue
        row = Row(tool=tool, method=case.method, placement=case.placement, **common)  # type: ignore[arg-type]
        artifact = artifact_file(prepared, row)
        try:
            if again or not artifact.is_file():
                _quantise(subject, prepared, case, artifact)
            with Worker(runtime, prepared.folder / f"{tool}.log") as worker:
                row.versions = worker.load(artifact)
                logits = worker.logits(prepared.judged, prepared.folder / "logits.npy")
            row.sqnr_db, row.agreement = logit_sqnr_db(expected, logits), agreement(expected, logits)
            row.size_bytes = sum(path.stat().st_size for path in artifact.parent.glob(f"{artifact.stem}.*"))
        except WorkerError as error:
            row.error = f"{error} (at most {MEMORY_GIB} GiB)"
        yield row


def _quantise(subject: Subject, prepared: Prepared, case: Configuration | OwnRun, artifact: Path) -> None:
    """Write the artifact of a tool with its own means."""
    if isinstance(case, Configuration):
        task = Task(
            prepared.onnx, prepared.program, prepared.calibration, artifact,
            case.method, case.placement, case.bits, case.activations,
        )  # fmt: skip
        with Worker(case.peer, prepared.folder / f"{case.peer}.log") as worker:
            worker.quantize(task)
        return
    from edgeconvnext.pipeline.commands import export
    from edgeconvnext.pipeline.job import Request

    outcome = export(
        Request(
            model=str(prepared.checkpoint),
            target=case.target_in(prepared.folder),
            calib=subject.image_set,
            num_images=subject.images,
            resolution=SIDE,
            latency=False,
            most_evaluated=16,
            output=prepared.folder / "runs" / artifact.stem,
        )
    )
    artifact.write_bytes((outcome.path / "model.onnx").read_bytes())


def time_together(prepared: Prepared, rows: list[Row]) -> list[Row]:
    """Time FP32, the first row, and all artifacts in turns; return the rows with latency and speed-up."""
    with ExitStack() as stack:
        workers = {}
        for row in rows:
            if row.error:
                continue
            runtime = "nncf" if row.tool == "nncf" else "onnxruntime"
            worker = stack.enter_context(Worker(runtime, prepared.folder / f"{row.tool}.log"))  # type: ignore[arg-type]
            worker.load(prepared.best if row.method == "FP32" else artifact_file(prepared, row), threads=row.threads)
            worker.times_ms(prepared.one_image, 1)
            workers[row.artifact_key] = worker
        load = load_before()
        samples = take_turns(workers, prepared.one_image)
    fp32 = samples[rows[0].artifact_key]
    for row in rows:
        if row.artifact_key in samples:
            own = samples[row.artifact_key]
            ratio = speedup(fp32, own)
            row.latency_ms, row.load = float(np.median(own.times_ms)), load
            row.speedup, row.speedup_low, row.speedup_high = ratio.value, ratio.low, ratio.high
    return rows


def artifact_file(prepared: Prepared, row: Row) -> Path:
    """Return where an artifact lies."""
    name = "-".join(row.artifact_key[1:]).lower()
    suffix = SUFFIXES["nncf"] if row.tool == "nncf" else ".onnx"
    return prepared.folder / ("".join(c if c.isalnum() else "-" for c in name) + suffix)


if __name__ == "__main__":
    main()
