"""Run .pte files in ExecuTorch's Python runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeconvnext.backends.base import InputShape
from edgeconvnext.backends.executorch.package import import_executorch, installed_version
from edgeconvnext.backends.executorch.pte import metadata_of, open_pte
from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation.runner import Outputs, in_fixed_batches


class ExecutorchRunner:
    """A .pte file in ExecuTorch on the CPU. batch: images at once, fixed by the file.

    threads: of ExecuTorch's pool, which is one for the process; None leaves it as it is.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.name = path.name
        self._program = open_pte(path)
        self._metadata = metadata_of(self._program, path)
        if threads is not None:
            import_executorch("extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)
        self.runtime = f"ExecuTorch {installed_version()}"
        self._shape = input_of(self._program)
        self.batch: int | None = self._shape[0]
        try:
            self._method: Any = self._program.load_method("forward")
        except RuntimeError as error:
            raise ExportError(f"{path} cannot be loaded by {self.runtime}: {error}. Export the model again.") from error

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.outputs(images)[0]

    def outputs(self, images: np.ndarray) -> Outputs:
        """Return the outputs for normalised images, (N, C, H, W), in batches of the file's own size."""
        return in_fixed_batches(self.run, self.prepare(images), self.batch)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Turn normalised images into the values that the file takes."""
        values = to_value_range(images, self._metadata.preprocess, self._metadata.value_range)
        if values.shape[1:] != tuple(self._shape[1:]):
            raise ExportError(
                f"{self.name} takes images of shape {list(self._shape[1:])} and not {list(values.shape[1:])}. Give images of the "
                "resolution it was exported for."
            )
        return np.ascontiguousarray(values, dtype=np.float32)

    def run(self, inputs: np.ndarray) -> Outputs:
        """Run prepared `inputs`, (N, C, H, W) of the file's own batch; return copies of the outputs, float32."""
        import torch

        results = self._method.execute([torch.from_numpy(inputs)])
        return tuple(np.array(result.numpy(), dtype=np.float32) for result in results)


def input_of(program: Any) -> tuple[int, ...]:
    """Return the shape that the file's one input has, (N, C, H, W)."""
    return tuple(program.metadata("forward").input_tensor_meta(0).sizes())


def input_shape(path: Path) -> InputShape:
    """Return what a file takes. Raises ExportError as `open_pte`."""
    batch, channels, height, width = input_of(open_pte(path))
    return InputShape(batch, channels, (height, width))
