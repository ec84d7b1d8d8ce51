"""Run a network in its runtime: images in, logits or features out, whatever the runtime wants in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.errors import ExportError
from edgeconvnext.export.metadata import ArtifactMetadata
from edgeconvnext.export.onnx_file import require_own_files
from edgeconvnext.report.schema import REFERENCE_EVALUATOR

if TYPE_CHECKING:
    from edgeconvnext.data.loader import Batch


Outputs = tuple[np.ndarray, ...]
"""What a network gives for N images, (N, ...) float32 each: the logits alone, or several, in the network's own order."""


class Runner(Protocol):
    """A network in its runtime.

    Takes float32 images (N, C, H, W), normalised as the checkpoint wants them. Called, it returns the first output, the logits
    (N, num_classes) of a classifier; `outputs` returns all.
    runtime: its name and version.
    """

    @property
    def name(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    def __call__(self, images: np.ndarray) -> np.ndarray: ...

    def outputs(self, images: np.ndarray) -> Outputs: ...


class TorchRunner:
    """A torch module, or an exported program's `.module()`, in this process.

    batch: the batch size a program was exported for; None where it takes any.
    """

    def __init__(
        self,
        module: Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]],
        name: str = "torch",
        batch: int | None = None,
    ) -> None:
        self.name = name
        self.runtime = f"torch {torch.__version__}"
        self.batch = batch
        self._module = module

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.outputs(images)[0]

    def outputs(self, images: np.ndarray) -> Outputs:
        return in_fixed_batches(self._run, images, self.batch)

    def _run(self, images: np.ndarray) -> Outputs:
        with torch.inference_mode():
            tensor = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            result = self._module(tensor)
        return tuple(output.float().numpy() for output in (result if isinstance(result, tuple) else (result,)))


class OnnxRunner:
    """An ONNX file in onnxruntime on the CPU, all optimisations on.

    Input name, fixed batch, element type and the value range of the pixels are read from the file.
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
        if self._input.type not in _ELEMENT_TYPES:
            raise ExportError(f"{path} takes {self._input.type}; images can be given as float32 or float16.")
        first = self._input.shape[0]
        self.batch = first if isinstance(first, int) else None
        properties = self._session.get_modelmeta().custom_metadata_map
        self._metadata = ArtifactMetadata.from_properties(properties) if "preprocess" in properties else None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.outputs(images)[0]

    def outputs(self, images: np.ndarray) -> Outputs:
        return in_fixed_batches(lambda piece: self.run(self.prepare(piece)), images, self.batch)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Turn normalised images into the values and element type that the file takes."""
        if self._metadata is not None:
            images = to_value_range(images, self._metadata.preprocess, self._metadata.value_range)
        return np.ascontiguousarray(images, dtype=_ELEMENT_TYPES[self._input.type])

    def run(self, inputs: np.ndarray) -> Outputs:
        """Run prepared `inputs`, a whole batch of the file's own size; return what the file's outputs hold.

        Raises ExportError where the file does not take this shape.
        """
        try:
            found = self._session.run(None, {self._input.name: inputs})
            return tuple(output.astype(np.float32, copy=False) for output in found)
        except Exception as error:  # onnxruntime's own exceptions share no base class but Exception
            raise ExportError(
                f"{self.name} takes inputs of shape {self._input.shape} and does not run on {list(inputs.shape)}: "
                f"{_first_line(error)}. Give images of the resolution it was exported for."
            ) from error

    def end_profile(self) -> Path:
        """Stop profiling and return the file of events, JSON."""
        return Path(self._session.end_profiling())


_ELEMENT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class CoreMLRunner:
    """An .mlpackage: in Core ML itself on macOS, elsewhere in the reference evaluator (`validate.mil`).

    Resolution, mean and standard deviation are read from the file. Raises ExportError for a package that cannot be read, or that
    has operators the evaluator does not know.
    """

    def __init__(self, path: Path) -> None:
        from edgeconvnext.export.coreml_package import inspect_mlpackage
        from edgeconvnext.export.coreml_runtime import CoreMLModel, runs_here

        self.name = path.name
        properties = inspect_mlpackage(path).metadata
        if "preprocess" not in properties:
            raise ExportError(f"{path} does not say how images are prepared for it. Export the model again.")
        metadata = ArtifactMetadata.from_properties(properties)
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
        from edgeconvnext.export.coreml_runtime import whole_pixels

        return self._predict(whole_pixels(to_value_range(images, self._preprocess, "0..255")))


def artifact_runner(path: Path) -> OnnxRunner | CoreMLRunner:
    """Open an artifact in what runs it here. Raises ExportError for a file that is missing or broken."""
    return CoreMLRunner(path) if path.suffix == ".mlpackage" else OnnxRunner(path)


def _evaluated(path: Path, names: tuple[str, ...]) -> Callable[[np.ndarray], Outputs]:
    """Return a function from pixels, (N, C, H, W), to the outputs `names` that the package's program computes, float32."""
    from edgeconvnext.validate.mil.evaluate import Evaluator

    evaluator = Evaluator(path)

    def run(pixels: np.ndarray) -> Outputs:
        found = evaluator.run(torch.from_numpy(pixels))
        return tuple(found[name].float().numpy() for name in names)

    return lambda pixels: in_fixed_batches(run, pixels, evaluator.batch)


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


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def in_fixed_batches(run: Callable[[np.ndarray], Outputs], images: np.ndarray, batch: int | None) -> Outputs:
    """Run `images` in pieces of exactly `batch`, filling the last one with copies of its last image."""
    if batch is None or len(images) == batch:
        return run(images)
    pieces = []
    for start in range(0, len(images), batch):
        piece = images[start : start + batch]
        missing = batch - len(piece)
        filled = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)]) if missing else piece
        pieces.append([output[: len(piece)] for output in run(filled)])
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))


def collect(runners: Mapping[str, Runner], stream: Iterable[Batch]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Run every runner over one pass of the images, so that each image is decoded once.

    Returns the logits of each runner, (N, num_classes) float32, and the positions in the set, (N,): an image that
    could not be read has no row.
    """
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in runners}
    positions: list[np.ndarray] = []
    for batch in stream:
        images = np.ascontiguousarray(batch.images.numpy())
        positions.append(np.asarray(batch.indices, dtype=np.int64))
        for name, runner in runners.items():
            pieces[name].append(runner(images))
    if not positions:
        raise ValueError("the stream of images is empty")
    return {name: np.concatenate(parts) for name, parts in pieces.items()}, np.concatenate(positions)
