"""Int8 products that saturate on x86 without VNNI, as a check of an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeconvnext.backends.onnxruntime.saturation import products_saturate, saturation
from edgeconvnext.schema.report import ExportCheck


def saturation_check(model: Path, images: np.ndarray) -> ExportCheck:
    """Count int8 products that saturate on x86 without VNNI: a failure where this processor is one, else a warning."""
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
