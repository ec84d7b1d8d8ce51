"""Run ONNX files in onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeconvnext.backends.base import InputShape
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnx.file import require_own_files
from edgeconvnext.backends.onnx.file_ends import PROBABILITIES
from edgeconvnext.data.preprocess import as_element_type, to_value_range
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation.runner import Outputs, in_fixed_batches


class OnnxRunner:
    """An ONNX file in onnxruntime on the CPU, all optimisations on.

    Logits or features are its outputs; probabilities beside them are left out. Input name, fixed batch, element type and the value
    range of the pixels are read from the file.
    threads: intra-op threads; None leaves the choice to onnxruntime. optimised, profile: see `onnx_session`.
    """

    def __init__(
        self, path: Path, threads: int | None = None, *, optimised: Path | None = None, profile: Path | None = None
    ) -> None:
        import onnxruntime

        self.name = path.name
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self._session = onnx_session(path, threads, optimised=optimised, profile=profile)
        self._input = self._session.get_inputs()[0]
        if self._input.type not in ELEMENT_TYPES:
            raise ExportError(f"{path} takes {self._input.type}; images can be given as float32, float16 or uint8.")
        self._outputs = [output.name for output in self._session.get_outputs() if output.name != PROBABILITIES]
        first = self._input.shape[0]
        self.batch = first if isinstance(first, int) else None
        properties = self._session.get_modelmeta().custom_metadata_map
        self._metadata = ArtifactMetadata.from_properties(properties) if "preprocess" in properties else None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.outputs(images)[0]

    def outputs(self, images: np.ndarray) -> Outputs:
        return in_fixed_batches(lambda piece: self.run(self.prepare(piece)), images, self.batch)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Turn normalised images into the values and element type that the file takes: whole numbers where it takes pixels."""
        if self._metadata is not None:
            images = to_value_range(images, self._metadata.preprocess, self._metadata.value_range)
        return as_element_type(images, ELEMENT_TYPES[self._input.type])

    def run(self, inputs: np.ndarray) -> Outputs:
        """Run prepared `inputs`, a whole batch of the file's own size; return what the file's outputs hold.

        Raises ExportError where the file does not take this shape.
        """
        try:
            inputs = as_element_type(inputs, ELEMENT_TYPES[self._input.type])
            outputs = self._session.run(self._outputs, {self._input.name: inputs})
            return tuple(output.astype(np.float32, copy=False) for output in outputs)
        except Exception as error:  # onnxruntime's own exceptions share no base class but Exception
            raise ExportError(
                f"{self.name} takes inputs of shape {self._input.shape} and does not run on {list(inputs.shape)}: "
                f"{_first_line(error)}. Give images of the resolution it was exported for."
            ) from error

    def end_profile(self) -> Path:
        """Stop profiling and return the file of events, JSON."""
        return Path(self._session.end_profiling())


ELEMENT_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


def onnx_session(
    path: Path, threads: int | None = None, *, optimised: Path | None = None, profile: Path | None = None
) -> Any:
    """Open an ONNX file in onnxruntime on the CPU with all optimisations.

    optimised: where onnxruntime writes the graph that it runs. profile: start of the name of the file that it writes times to.
    Raises ExportError for a file that is missing, that keeps weights outside of its own folder, or that onnxruntime does not take.
    """
    import onnxruntime

    require_own_files(Path(path))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    # Threads that still spin for work after a run would take the cores from the network timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class but Exception
        raise ExportError(
            f"{path} cannot be opened in onnxruntime {onnxruntime.__version__}: {_first_line(error)}. Export the model "
            f"again, or check that this is an ONNX file and that onnxruntime is as new as the target's runtime.minimum."
        ) from error


def input_shape(path: Path) -> InputShape:
    """Return what an ONNX file takes; raises ExportError for a file that cannot be opened or whose input is no image."""
    from edgeconvnext.backends.onnx.write import read_metadata

    shape = onnx_session(path).get_inputs()[0].shape
    if len(shape) != 4 or not isinstance(shape[1], int):
        raise ExportError(f"{path} takes input of shape {shape}; only networks of images can be timed.")
    height, width = shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        height, width = read_metadata(path).preprocess.input_size
    return InputShape(shape[0] if isinstance(shape[0], int) else None, shape[1], (height, width))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
