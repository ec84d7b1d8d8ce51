"""Where the error of a plan comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeconvnext.backends import backend_for
from edgeconvnext.data.loader import batches, check_broken
from edgeconvnext.errors import RunDirectoryError
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.stages.images import images_of
from edgeconvnext.pipeline.stages.quantization import PLAN, PLAN_STATISTICS, Planned
from edgeconvnext.received import read_bytes, reading
from edgeconvnext.run.directory import RunDirectory, StageResult, StageValues

if TYPE_CHECKING:
    from edgeconvnext.schema.analysis import Analysis, Setting

ANALYSIS = "analysis.json"
ANALYSIS_PAGE = "analysis.html"


def analyze_plan(run: RunDirectory, planned: Planned) -> StageResult[StageValues]:
    """Say where the error of a plan comes from. Files: ANALYSIS, ANALYSIS_PAGE."""
    network, plan = planned.network, planned.plan
    job = network.job

    def make(folder: Path) -> None:
        from edgeconvnext.model.macs import layer_macs
        from edgeconvnext.quantization.plan_storage import load_plan
        from edgeconvnext.quantization.statistics import Statistics
        from edgeconvnext.report.analysis_page import render_analysis_html
        from edgeconvnext.tuning.analysis import measure
        from edgeconvnext.tuning.suspicions import with_suspicions

        module = network.module
        quant_plan, planned_network = load_plan(plan.path(PLAN), module)
        stored = Statistics.load(plan.path(PLAN_STATISTICS))
        preprocess = job.model.preprocess.with_value_range(job.target.input.value_range)
        stream = batches(job.calibration, preprocess, indices=judged, description="Reading images (held out)")
        images = list(images_of(stream))
        check_broken(job.calibration, stream.skipped)
        measured = measure(
            module,
            planned_network,
            quant_plan,
            stored,
            images,
            macs=layer_macs(module.config, job.model.preprocess.input_size),
            setting=_analysis_setting(job, stored.fit_images, stored.held_out_images, sum(map(len, images))),
        )
        record = with_suspicions(measured)
        (folder / ANALYSIS).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / ANALYSIS_PAGE).write_text(render_analysis_html(record), encoding="utf-8")

    from edgeconvnext.tuning.sensitivity import SENSITIVITY_IMAGES

    rows = np.linspace(0, len(job.held_out) - 1, min(SENSITIVITY_IMAGES, len(job.held_out))).round().astype(int)
    judged = [job.held_out[row] for row in rows]
    inputs = {
        "folded": network.folded.key,
        "plan": plan.key,
        "images": job.calibration.fingerprint,
        "judged": judged,
        "names": [job.model.name, job.target.name, job.calibration.name],
    }
    return run.stage("analysis", inputs, make)


def analysis_of(stage: StageResult[StageValues]) -> Analysis:
    """Read what the analysis stage wrote."""
    from edgeconvnext.schema.analysis import Analysis

    content = read_bytes(stage.path(ANALYSIS), RunDirectoryError)
    with reading(stage.path(ANALYSIS), RunDirectoryError, "Analyse the run again."):
        return Analysis.model_validate_json(content)


def _analysis_setting(job: Job, fit_images: int, held_out_images: int, sensitivity_images: int) -> Setting:
    from edgeconvnext.schema.analysis import Setting

    target, request = job.target, job.request
    allowed = backend_for(target).limits.allowed_bits(target)
    return Setting(
        model=job.model.name,
        target=target.name,
        exporter=target.exporter,
        wide_activations=(8, 16) in allowed,
        affine_activations=target.quantize.activations.scheme == "affine",
        prepares_hidden=target.quantize.smoothing.hidden,
        prepares_depthwise=target.quantize.smoothing.depthwise,
        effort=request.effort,
        calibrator=request.calibrator,
        smoothing=request.smoothing,
        calibration_set=job.calibration.name,
        fit_images=fit_images,
        held_out_images=held_out_images,
        sensitivity_images=sensitivity_images,
    )
