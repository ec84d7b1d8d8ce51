"""Write model.onnx and its float baseline for onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeconvnext.backends.base import ARTIFACTS, FLOAT_ONNX, Exported, Programs
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnxruntime.simulation_check import simulation_check
from edgeconvnext.schema.report import ExportCheck
from edgeconvnext.targets import Target


def _write_onnx(target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
    from edgeconvnext.backends.onnx.write import export_onnx

    assert target.opset is not None
    model, baseline = folder / ARTIFACTS["onnx"], folder / FLOAT_ONNX
    baseline.parent.mkdir()
    for program, path in ((programs.quantized, model), (programs.floating, baseline)):
        export_onnx(program, path, opset=target.opset, metadata=metadata, layout=target.layout)
    return Exported([simulation_check(model, programs), _saturation_check(model, programs.images)], {})


def _saturation_check(model: Path, images: np.ndarray) -> ExportCheck:
    """Count int8 products that saturate on x86 without VNNI: a failure where this processor is one, else a warning."""
    from edgeconvnext.backends.onnxruntime.saturation import products_saturate, saturation

    layers = saturation(model, images)
    pairs, saturating = sum(layer.pairs for layer in layers), sum(layer.saturating for layer in layers)
    result = f"{saturating:,} of {pairs:,} int16 sums of two products saturate on x86 without VNNI"
    if saturating:
        worst = max(layers, key=lambda layer: layer.relative_error)
        here = "is such a one" if products_saturate() else "adds exactly, so no figure of this run shows it"
        result += (
            f", worst in {worst.layer} ({100 * worst.relative_error:.1f} % error); this processor {here}; "
            "range_bits = 7 under [quantize.weights] keeps the artifact exact everywhere"
        )
    return ExportCheck(name="x86 saturation", passed=not (saturating and products_saturate()), result=result)
