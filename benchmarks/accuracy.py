"""Accuracy, latency and cost of INT8 ConvNeXts, side by side with other quantization tools.

    python -m benchmarks.accuracy [--model NAME ...] [--peer NAME ...] [--method TEXT] [--only-accuracy] [--again]
    python -m benchmarks.accuracy --timings     # time all artifacts of each model anew, together, on a quiet machine
    python -m benchmarks.accuracy --page        # write docs/accuracy.md and the plot from the CSV, measure nothing

Every peer works in an environment of its own, made on first use from benchmarks/peers/<peer>.txt, on the same FP32 network,
the same 256 calibration images and the same evaluation images. This process hands out the work, one worker at a time.
Latencies are taken at the end of each model: all artifacts are loaded, each in a process of its own, and asked in turn
for short blocks of runs. Each row is written as soon as it is there; rows in the CSV are kept, so that an interrupted
benchmark goes on where it stopped, and --again measures the chosen ones anew.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgeconvnext
from benchmarks.accuracy_models import MODELS, BenchmarkModel
from benchmarks.accuracy_page import write_page, write_plot
from benchmarks.accuracy_table import OWN, RESULTS, Row, Table
from benchmarks.own_runs import OWN_RUNS, OwnRun
from benchmarks.peers.grid import CONFIGURATIONS, RUNTIMES, SUFFIXES, Configuration, PeerName
from benchmarks.peers.protocol import Task
from benchmarks.peers.worker import Worker, WorkerError
from benchmarks.photographs import use_photographs
from edgeconvnext.evaluation.timing import BLOCK_S, MIN_BLOCKS, MIN_RUNS, MIN_SECONDS, WARM_UP_S, Samples, speedup
from edgeconvnext.targets import LayoutSection

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache" / "accuracy"
CALIBRATION_IMAGES = 256
# Int4 weights need 21. There, onnxruntime cannot open some files with int8 activations (microsoft/onnxruntime#25526) unless
# a pass is off that makes them fast on x86, so W8A8 starts from 20, the first with GELU as one node.
OPSETS = {"W8A8": 20, "W4A8": 21}
LARGEST_BATCH = 32
# Other tools get the network as torch's exporter writes it, which is what they know patterns for. Speed-ups are over the best
# float file, in the forms that onnxruntime fuses.
AS_EXPORTED = LayoutSection(linears="matmul", residual="channels_first")


@dataclass(frozen=True)
class Prepared:
    """A network and its images as files. onnx: the FP32 network as ONNX for each of OPSETS; baseline: in its best form."""

    model: BenchmarkModel
    folder: Path
    checkpoint: Path
    onnx: dict[str, Path]
    baseline: Path
    program: Path
    calibration: Path
    evaluation: Path
    one_image: Path
    labels: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=[model.name for model in MODELS], help="default: all")
    parser.add_argument("--peer", nargs="+", choices=[*SUFFIXES, OWN], help="default: all")
    parser.add_argument("--method", default="", help="only methods whose name contains this text")
    parser.add_argument("--only-accuracy", action="store_true", help="take no latencies")
    parser.add_argument("--again", action="store_true", help="measure the chosen rows anew")
    parser.add_argument("--timings", action="store_true", help="only take all latencies anew")
    parser.add_argument("--page", action="store_true", help="only write the page and the plot from the CSV")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.page:
        use_photographs()
        table = Table(options.results)
        peers = options.peer or [*SUFFIXES, OWN]
        for model in MODELS:
            if options.model is None or model.name in options.model:
                if options.timings:
                    time_all(model, table)
                else:
                    benchmark(
                        model, peers, options.method, table, again=options.again, latency=not options.only_accuracy
                    )
    chose_some = options.model or options.peer or options.method
    if options.page or not chose_some:
        write_page(options.results)
        write_plot(options.results)


def benchmark(
    model: BenchmarkModel, peers: list[str], method: str, table: Table, *, again: bool, latency: bool
) -> None:
    """Measure the chosen configurations of one model."""
    prepared = prepare(model)
    baseline, reference = measure_baseline(prepared)
    known = table.find(baseline.key)
    table.put(baseline if known is None else known)
    chosen: list[Row] = []
    cases: list[Configuration | OwnRun] = [*CONFIGURATIONS, *OWN_RUNS]
    for case in cases:
        empty = empty_row(model, case)
        made = not isinstance(case, OwnRun) or not case.models or model.name in case.models
        if not made or empty.peer not in peers or method not in case.method:
            continue
        row = table.find(empty.key)
        if row is None or again:
            measure = measure_own if isinstance(case, OwnRun) else measure_peer
            row = measure(prepared, case, reference)  # type: ignore[arg-type]
            table.put(row)
            print(_summary(row), flush=True)
        chosen.append(row)
    if latency:
        for row in time_rows(prepared, baseline, [row for row in chosen if again or row.latency_ms is None]):
            table.put(row)
            print(_summary(row), flush=True)


def time_all(model: BenchmarkModel, table: Table) -> None:
    """Time every artifact of a model in one session; a time whose artifact is gone is of another session, and is dropped."""
    prepared = prepare(model)
    baseline, _ = measure_baseline(prepared)
    rows = [row for row in table.rows if row.model == model.name and row.key != baseline.key]
    for row in rows:
        row.latency_ms = row.speedup = row.speedup_low = row.speedup_high = None
        table.put(row)
    for row in time_rows(prepared, baseline, rows):
        table.put(row)
        print(_summary(row), flush=True)


def prepare(model: BenchmarkModel) -> Prepared:
    """Write the FP32 network and the images as files; taken from the cache where checkpoint and images are the same."""
    from edgeconvnext.data.labels import match_labels
    from edgeconvnext.data.sets import resolve_image_set
    from edgeconvnext.model.load import load_model

    folder = CACHE / model.name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = model.checkpoint(folder)
    loaded = load_model(checkpoint)
    calibration = resolve_image_set(model.calibration).take(CALIBRATION_IMAGES)
    evaluation = resolve_image_set(model.evaluation)
    classes = match_labels(evaluation, loaded.labels, loaded.config.num_classes)
    onnx = {bits: folder / f"fp32-opset{opset}.onnx" for bits, opset in OPSETS.items()}
    prepared = Prepared(
        model, folder, checkpoint, onnx, folder / "fp32-best-form.onnx", folder / "fp32.pt2", folder / "calibration.npy",
        folder / "evaluation.npy", folder / "one_image.npy", classes[np.array(evaluation.labels)],
    )  # fmt: skip
    stamp = json.dumps(
        [loaded.sha256, calibration.fingerprint, evaluation.fingerprint, model.folded, OPSETS, AS_EXPORTED.model_dump()]
    )
    written = folder / "prepared.json"
    if not written.is_file() or written.read_text() != stamp:
        images = _save_images(calibration, loaded.preprocess, prepared.calibration)
        _save_images(evaluation, loaded.preprocess, prepared.evaluation)
        np.save(prepared.one_image, images[:1])
        export_float(prepared, loaded, images[:: max(1, len(images) // 16)])
        written.write_text(stamp)
    return prepared


def export_float(prepared: Prepared, loaded: Any, images: np.ndarray) -> None:
    """Write the FP32 network as ONNX and as a torch.export program. images: what the folds are proven on."""
    import torch

    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.backends.onnxruntime.write import export_onnx
    from edgeconvnext.model.program import export_program
    from edgeconvnext.rewrite.exact import fold_exact

    module = fold_exact(loaded.module, torch.from_numpy(images)).module if prepared.model.folded else loaded.module
    program = export_program(module, torch.from_numpy(images[:1]), max_batch=LARGEST_BATCH)
    metadata = ArtifactMetadata(loaded.name, None, loaded.preprocess, "normalized", edgeconvnext.__version__)
    for bits, opset in OPSETS.items():
        export_onnx(program, prepared.onnx[bits], opset=opset, metadata=metadata, layout=AS_EXPORTED)
    export_onnx(program, prepared.baseline, opset=OPSETS["W8A8"], metadata=metadata)
    torch.export.save(program, prepared.program)


def measure_baseline(prepared: Prepared) -> tuple[Row, np.ndarray]:
    """Run the FP32 ONNX in onnxruntime; return its row and its logits."""
    with Worker("onnxruntime", prepared.folder / "onnxruntime.log") as worker:
        runtime = worker.load(prepared.baseline)
        logits = worker.logits(prepared.evaluation, prepared.folder / "logits.npy")
    row = Row(
        model=prepared.model.name, peer="onnxruntime", versions=runtime, method="FP32", placement="peer's own default",
        bits="", activations="", runtime=runtime, cpu=_cpu(), size_bytes=prepared.baseline.stat().st_size,
    )  # fmt: skip
    return _judged(row, prepared, logits, logits), logits


def measure_peer(prepared: Prepared, case: Configuration, reference: np.ndarray) -> Row:
    """Quantise with a peer in one process, run the artifact in another; a failure becomes the row's error."""
    row = empty_row(prepared.model, case)
    artifact = artifact_file(prepared, row)
    task = Task(
        prepared.onnx[case.bits], prepared.program, prepared.calibration, artifact,
        case.method, case.placement, case.bits, case.activations,
    )  # fmt: skip
    try:
        with Worker(case.peer, prepared.folder / f"{case.peer}.log") as worker:
            row.versions = worker.versions()
            cost = worker.quantize(task)
        with Worker(RUNTIMES[case.peer], prepared.folder / f"{case.peer}.log") as worker:
            row.runtime = worker.load(artifact)
            logits = worker.logits(prepared.evaluation, prepared.folder / "logits.npy")
    except WorkerError as error:
        artifact.unlink(missing_ok=True)
        row.error = _without_paths(str(error))
        return row
    row.quantize_s, row.peak_mib, row.size_bytes = cost.seconds, cost.peak_mib, cost.size_bytes
    return _judged(row, prepared, reference, logits)


def measure_own(prepared: Prepared, case: OwnRun, reference: np.ndarray) -> Row:
    """Export with this project's command line, then judge the artifact in onnxruntime as any other."""
    row = empty_row(prepared.model, case)
    artifact = artifact_file(prepared, row)
    with tempfile.TemporaryDirectory() as scratch:
        # Beside the runs of the same network, whose FP32 results are taken over.
        run = prepared.folder / "runs" / artifact.stem
        command = [
            sys.executable, "-m", "edgeconvnext", "export", "--target", case.target_in(Path(scratch)),
            "--model", str(prepared.checkpoint),
            "--calib", prepared.model.calibration, "--num-images", str(CALIBRATION_IMAGES),
            "--eval", prepared.model.evaluation, "--no-latency", "--output", str(run), "--json", *case.flags,
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode not in (0, 3):  # 3: a gate was missed, the artifact is there
            row.error = _without_paths((result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1])
            return row
        report = json.loads(result.stdout)
        stages = [s for s in report["stages"] if s["stage"] in ("fold", "statistics", "plan", "quantized", "artifact")]
        row.versions = f"edgeconvnext {edgeconvnext.__version__}"
        row.quantize_s = sum(stage["seconds"] for stage in stages)
        row.peak_mib = max(stage["peak_mib"] for stage in stages)
        row.size_bytes = report["size_bytes"]["artifact"]
        if not case.runs_here:
            measured = report["accuracy"]["measured_on"]
            row.runtime = report["accuracy"]["runtime"] if measured == "artifact" else "simulation"
            logits = np.load(run / "logits.npz")["artifact" if measured == "artifact" else "simulated"]
            return _judged(row, prepared, reference, logits)
        shutil.copy(run / "model.onnx", artifact)
    try:
        with Worker("onnxruntime", prepared.folder / f"{OWN}.log") as worker:
            row.runtime = worker.load(artifact)
            logits = worker.logits(prepared.evaluation, prepared.folder / "logits.npy")
    except WorkerError as error:
        row.error = _without_paths(str(error))
        return row
    return _judged(row, prepared, reference, logits)


def time_rows(prepared: Prepared, baseline: Row, rows: Iterable[Row]) -> list[Row]:
    """Time the artifacts of `rows` and the FP32 ONNX, interleaved; return the rows with latency and speed-up.

    Rows without a runtime, or whose artifact is not in the cache any more, are left as they are.
    """
    candidates = [row for row in rows if not row.error and artifact_file(prepared, row).is_file()]
    if not candidates:
        return []
    timed = []
    with ExitStack() as stack:
        workers = {baseline.key: _timed_worker(stack, prepared, "onnxruntime", prepared.baseline)}
        for row in candidates:
            runtime = "onnxruntime" if row.peer == OWN else RUNTIMES[_peer_name(row.peer)]
            try:
                workers[row.key] = _timed_worker(stack, prepared, runtime, artifact_file(prepared, row))
            except WorkerError as error:
                print(f"not timed: {_summary(row)}: {error}", flush=True)
                continue
            timed.append(row)
        samples = take_turns(workers, prepared.one_image)
    fp32 = samples[baseline.key]
    baseline.latency_ms, baseline.speedup = float(np.median(fp32.times_ms)), 1.0
    for row in timed:
        ratio = speedup(fp32, samples[row.key])
        row.latency_ms = float(np.median(samples[row.key].times_ms))
        row.speedup, row.speedup_low, row.speedup_high = ratio.value, ratio.low, ratio.high
    return [baseline, *timed]


def take_turns(workers: Mapping[tuple[str, ...], Worker], image: Path) -> dict[tuple[str, ...], Samples]:
    """Ask each worker in turn for about BLOCK_S of runs, until each has MIN_SECONDS; odd turns go backwards.

    Each turn starts at another worker, so that none always runs behind the same other one.
    """
    runs: dict[tuple[str, ...], int] = {}
    for key, worker in workers.items():
        fastest = min(worker.times_ms(image, 2))
        fastest = min(worker.times_ms(image, max(2, round(1000 * WARM_UP_S / fastest))))
        runs[key] = max(1, round(1000 * BLOCK_S / fastest))
    names = list(workers)
    times: dict[tuple[str, ...], list[float]] = {key: [] for key in names}
    turns: dict[tuple[str, ...], list[int]] = {key: [] for key in names}
    turn = 0
    while turn < MIN_BLOCKS or any(sum(t) < 1000 * MIN_SECONDS or len(t) < MIN_RUNS for t in times.values()):
        start = turn % len(names)
        for key in [*names[start:], *names[:start]][:: -1 if turn % 2 else 1]:
            taken = workers[key].times_ms(image, runs[key])
            times[key] += taken
            turns[key] += [turn] * len(taken)
        turn += 1
    return {key: Samples(np.array(times[key]), np.array(turns[key])) for key in names}


def empty_row(model: BenchmarkModel, case: Configuration | OwnRun) -> Row:
    """Return the row of a configuration before anything was measured."""
    peer = OWN if isinstance(case, OwnRun) else case.peer
    return Row(
        model=model.name, peer=peer, versions="", method=case.method, placement=case.placement, bits=case.bits,
        activations=case.activations, cpu=_cpu(),
    )  # fmt: skip


def artifact_file(prepared: Prepared, row: Row) -> Path:
    """Return where the artifact of a row lies, so that it can be timed by a later run."""
    text = "-".join((row.peer, row.method, row.placement, row.bits, row.activations))
    suffix = ".onnx" if row.peer == OWN else SUFFIXES[_peer_name(row.peer)]
    return prepared.folder / (re.sub(r"[^a-z0-9]+", "-", text.lower()) + suffix)


def _judged(row: Row, prepared: Prepared, reference: np.ndarray, logits: np.ndarray) -> Row:
    """Fill in top-1, drop, agreement and SQNR."""
    from edgeconvnext.evaluation.accuracy import agreement, paired_drop, topk
    from edgeconvnext.sqnr import logit_sqnr_db

    if logits.shape != reference.shape or not np.isfinite(logits).all():
        row.error = f"logits of shape {logits.shape}, {int((~np.isfinite(logits)).any(1).sum())} rows not finite"
        return row
    drop = paired_drop(reference, logits, prepared.labels)
    row.images, row.top1 = len(logits), topk(logits, prepared.labels).value
    row.drop_pp, row.drop_low, row.drop_high = drop.value, drop.low, drop.high
    row.agreement, row.sqnr_db = agreement(reference, logits), logit_sqnr_db(reference, logits)
    return row


def _timed_worker(stack: ExitStack, prepared: Prepared, runtime: PeerName, artifact: Path) -> Worker:
    worker = stack.enter_context(Worker(runtime, prepared.folder / f"{runtime}.log"))
    worker.load(artifact, threads=1)
    worker.times_ms(prepared.one_image, 1)  # compiles, where a runtime does
    return worker


def _save_images(images: Any, preprocess: Any, path: Path) -> np.ndarray:
    """Write a set's images as the network takes them, float32 (N, C, H, W)."""
    from edgeconvnext.data.loader import batches

    stream = batches(images, preprocess, description=f"Reading {images.name}")
    arrays = [np.ascontiguousarray(batch.images.numpy()) for batch in stream]
    if stream.skipped:
        raise AssertionError(f"{len(stream.skipped)} images of {images.name} cannot be read")
    whole = np.concatenate(arrays)
    np.save(path, whole)
    return whole


def _cpu() -> str:
    """Name the processor, and whether int8 products saturate on it: accuracy depends on that."""
    from edgeconvnext.backends.onnxruntime.saturation import products_saturate
    from edgeconvnext.machine import cpu_name

    return f"{cpu_name()}, {'no VNNI' if products_saturate() else 'int8 products exact'}"


def _peer_name(name: str) -> PeerName:
    return next(peer for peer in SUFFIXES if peer == name)


def _without_paths(text: str) -> str:
    """Keep only the last part of absolute paths, so that results say nothing about this machine's folders."""
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "", text)


def _summary(row: Row) -> str:
    name = f"{row.model} | {row.peer} {row.method} | {row.placement} | {row.bits} {row.activations}"
    if row.error:
        return f"{name}: {row.error}"
    speed = f", {row.latency_ms:.2f} ms, {row.speedup:.2f}x" if row.latency_ms is not None else ""
    return f"{name}: drop {row.drop_pp:+.2f}, agreement {row.agreement:.2f} %, {row.sqnr_db:.1f} dB{speed}"


if __name__ == "__main__":
    main()
