"""Compare an ONNX file, run in onnxruntime, with the simulated graph."""

from __future__ import annotations

from pathlib import Path

from edgeconvnext.backends.base import Programs
from edgeconvnext.backends.onnxruntime.runner import OnnxRunner
from edgeconvnext.schema.report import ExportCheck


def simulation_check(model: Path, programs: Programs) -> ExportCheck:
    """Run the ONNX file in onnxruntime on real images and compare its outputs, the worst one, with the simulation's."""
    from edgeconvnext.evaluation.runner import in_fixed_batches
    from edgeconvnext.sqnr import logit_sqnr_db

    runner = OnnxRunner(model)
    found = in_fixed_batches(runner.run, programs.images, runner.batch)
    decibels = min(logit_sqnr_db(*pair) for pair in zip(programs.simulated, found, strict=True))
    return ExportCheck(
        name="onnxruntime against the simulation",
        passed=decibels >= 30,
        result=f"{decibels:.1f} dB over {len(programs.images)} images in {runner.runtime}",
    )
