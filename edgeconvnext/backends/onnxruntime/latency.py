"""Latency as trtexec measures it, with FP32 and artifact interleaved so that both see the same machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeconvnext.backends.base import LatencyResult
from edgeconvnext.backends.onnxruntime.runner import OnnxRunner
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation import timing
from edgeconvnext.evaluation.timing import (
    grey_ramp,
    load_before,
    settings,
    speedup,
    summarize,
    time_interleaved,
)
from edgeconvnext.machine import cpu_name
from edgeconvnext.schema.report import LatencyComparison


def onnx_latency(
    fp32_path: Path | None,
    artifact_path: Path,
    batch: int = 1,
    threads: int = 1,
    input_size: tuple[int, int] = (224, 224),
    seconds: float | None = None,
    images: np.ndarray | None = None,
    in_channels: int = 3,
) -> LatencyResult:
    """Time an ONNX artifact on this CPU, interleaved with the folded FP32 file where that is given.

    images: normalised (N, C, H, W) photographs, repeated to fill the batch; without them a grey ramp is timed, and the
    settings say so. seconds: measured time for each of the two, at least; None: MIN_SECONDS.

    Raises ExportError for a file that cannot be opened or that does not take this batch or size.
    """
    seconds = timing.MIN_SECONDS if seconds is None else seconds
    source = "photographs"
    if images is None:
        source, images = "grey ramp", grey_ramp(input_size, in_channels)
    inputs = images[np.arange(batch) % len(images)]

    paths = {"artifact": artifact_path} if fp32_path is None else {"fp32": fp32_path, "artifact": artifact_path}
    runners = {name: OnnxRunner(path, threads) for name, path in paths.items()}
    load = load_before()
    samples = time_interleaved({name: _call(runner, inputs) for name, runner in runners.items()}, seconds=seconds)

    comparison = LatencyComparison(
        fp32=summarize(samples["fp32"].times_ms, batch) if "fp32" in samples else None,
        artifact=summarize(samples["artifact"].times_ms, batch),
        batch=batch,
        threads=threads,
        runtime=runners["artifact"].runtime,
        device=cpu_name(),
        settings=settings(seconds)
        | {
            "graph optimisations": "all",
            "inter-op threads": "1",
            "spinning between runs": "off",
            "load before": load,
            "input": f"{source}, {inputs.shape[2]}x{inputs.shape[3]}",
        },
    )
    return LatencyResult(comparison, speedup(samples["fp32"], samples["artifact"]) if "fp32" in samples else None)


def _call(runner: OnnxRunner, inputs: np.ndarray) -> Callable[[], None]:
    """Return a call that runs `inputs` once, already in the file's value range and element type."""
    if runner.batch not in (None, len(inputs)):
        raise ExportError(
            f"{runner.name} was exported for batch {runner.batch} and cannot be timed at batch {len(inputs)}."
        )
    prepared = runner.prepare(inputs)

    def call() -> None:
        runner.run(prepared)

    return call
