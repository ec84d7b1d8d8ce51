"""What every backend takes and returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch.export import ExportedProgram

from edgeconvnext.data.size import Size
from edgeconvnext.schema.report import ExportCheck, Interval, LatencyComparison

ARTIFACTS = {
    "onnx": "model.onnx",
    "tensorrt-onnx": "model.onnx",
    "tensorrt-rtx": "model.engine",
    "tensorrt": "model.engine",
    "coreml": "model.mlpackage",
}

FLOAT_ONNX = "baseline/model_fp32.onnx"

FLOAT16_ONNX = "baseline/model_fp16.onnx"

LAYER_LIST = "layers.csv"


@dataclass(frozen=True)
class Exported:
    """checks: proofs that ran. missing: proofs that did not, with the reason."""

    checks: list[ExportCheck]
    missing: dict[str, str]


@dataclass(frozen=True)
class Programs:
    """quantized, floating: float32 graphs with and without Q/DQ, both for the target's input.

    sizes: smallest, typical and largest height and width where these are free, else (). images: a few real images as that input,
    (N, C, H, W). simulated: the quantised graph's outputs for them, in the target's float
    type, (N, ...) each.
    """

    quantized: ExportedProgram
    floating: ExportedProgram
    images: np.ndarray
    simulated: tuple[np.ndarray, ...]
    sizes: tuple[Size, ...] = ()

    def with_batch(self, batch: int) -> Programs:
        """Return the same graphs with a batch axis of exactly `batch`."""
        from edgeconvnext.model.program import with_batch

        return replace(self, quantized=with_batch(self.quantized, batch), floating=with_batch(self.floating, batch))


@dataclass(frozen=True)
class LatencyResult:
    """Both networks' times and, where both ran, how many times faster the artifact is."""

    comparison: LatencyComparison
    speedup: Interval | None
