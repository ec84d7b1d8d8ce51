"""Run Core ML packages, in Core ML on macOS and in the reference evaluator elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.evaluation.runner import Outputs, in_fixed_batches
from edgeconvnext.schema.report import REFERENCE_EVALUATOR


class CoreMLRunner:
    """An .mlpackage: in Core ML itself on macOS, elsewhere in the reference evaluator (`coreml.mil`).

    Resolution, mean and standard deviation are read from the file. Raises ExportError for a package that cannot be read, or that
    has operators the evaluator does not know.
    """

    def __init__(self, path: Path) -> None:
        from edgeconvnext.backends.coreml.package import package_metadata
        from edgeconvnext.backends.coreml.runtime import CoreMLModel, runs_here

        self.name = path.name
        metadata = package_metadata(path)
        self._preprocess = metadata.preprocess
        self._predict: Callable[[np.ndarray], Outputs]
        if runs_here():
            model = CoreMLModel(path, metadata.outputs)
            self.runtime, self._predict = model.runtime, model.predict
        else:
            self.runtime = f"{REFERENCE_EVALUATOR} on torch {torch.__version__}"
            self._predict = _evaluated(path, metadata.outputs)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.outputs(images)[0]

    def outputs(self, images: np.ndarray) -> Outputs:
        from edgeconvnext.backends.coreml.runtime import whole_pixels

        return self._predict(whole_pixels(to_value_range(images, self._preprocess, "0..255")))


def _evaluated(path: Path, names: tuple[str, ...]) -> Callable[[np.ndarray], Outputs]:
    """Return a function from pixels, (N, C, H, W), to the outputs `names` that the package's program computes, float32."""
    from edgeconvnext.backends.coreml.mil.evaluate import Evaluator

    evaluator = Evaluator(path)

    def run(pixels: np.ndarray) -> Outputs:
        found = evaluator.run(torch.from_numpy(pixels))
        return tuple(found[name].float().numpy() for name in names)

    return lambda pixels: in_fixed_batches(run, pixels, evaluator.batch)
