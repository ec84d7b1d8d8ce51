"""Run IR files in OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeconvnext.backends.base import InputShape, NodeTime, Profile
from edgeconvnext.backends.openvino.ir import read_ir
from edgeconvnext.backends.openvino.package import core, import_openvino
from edgeconvnext.data.preprocess import as_element_type, to_value_range
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation.runner import Outputs

SETTINGS = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}
"""Latency of one image. Floats in float32: by itself OpenVINO takes bfloat16 on processors that have it."""
PROFILED_RUNS = 10
_CONVERSIONS = frozenset({"Reorder", "Convert", "FakeQuantize", "Quantize", "Transpose", "Reshape"})
_NOTHING = frozenset({"Reshape", "Parameter", "Result", "Const", "Input", "Output"})
_MULTIPLY = frozenset({"FullyConnected", "MatMul", "Convolution", "GroupConvolution"})


class OpenVinoRunner:
    """An IR file in OpenVINO on the CPU. batch: None, because it takes any; it is compiled anew for each shape of images.

    threads: of the runtime; None leaves the choice to OpenVINO.
    """

    batch: int | None = None

    def __init__(self, path: Path, threads: int | None = None, *, profile: bool = False) -> None:
        openvino = import_openvino()
        self.name = path.name
        self.runtime = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self._model, self._metadata = read_ir(path)
        self._element_type = np.dtype(self._model.inputs[0].element_type.to_dtype()).type
        self._settings = SETTINGS | ({} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)})
        if profile:
            self._settings["PERF_COUNT"] = "YES"
        self._shape: tuple[int, ...] = ()
        self._request: Any = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.outputs(images)[0]

    def outputs(self, images: np.ndarray) -> Outputs:
        return self.run(self.prepare(images))

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Turn normalised images into the values that the file takes, and compile it for their shape."""
        pixels = to_value_range(images, self._metadata.preprocess, self._metadata.value_range)
        prepared = as_element_type(pixels, self._element_type)
        self._compile(prepared.shape)
        return prepared

    def run(self, inputs: np.ndarray) -> Outputs:
        """Run prepared `inputs`, (N, C, H, W); return copies of the outputs, float32."""
        self._compile(inputs.shape)
        results = self._request.infer([as_element_type(inputs, self._element_type)], share_inputs=True)
        names = self._metadata.outputs  # probabilities, where the file has them, come after these
        return tuple(np.array(results[index], dtype=np.float32) for index in range(len(names)))

    def profile(self, images: np.ndarray) -> Profile:
        """Return the median time of each node over PROFILED_RUNS runs; needs `profile` when opened."""
        inputs = self.prepare(images)
        times: dict[str, list[float]] = {}
        nodes: dict[str, NodeTime] = {}
        for number in range(1 + PROFILED_RUNS):
            self.run(inputs)
            for node in self._request.profiling_info if number else ():
                if _runs(node):
                    times.setdefault(node.node_name, []).append(node.real_time.total_seconds() * 1e3)
                    nodes[node.node_name] = _node(node)
        timed = tuple(replace(node, median_ms=float(np.median(times[node.name]))) for node in nodes.values())
        return Profile(timed, self._in_float(timed))

    def _in_float(self, nodes: Iterable[NodeTime]) -> tuple[str, ...]:
        """Return the layers whose weights are int8 in the file and that are multiplied in float."""
        quantised = {
            operator.get_friendly_name().removesuffix(".weight")
            for operator in self._model.get_ordered_ops()
            if operator.get_type_name() == "Constant" and operator.get_element_type().get_type_name() == "i8"
        }
        layers = (
            node.name.partition("/")[0] for node in nodes if node.operator in _MULTIPLY and node.precision == "float"
        )
        return tuple(layer for layer in layers if layer in quantised)

    def _compile(self, shape: tuple[int, ...]) -> None:
        if shape == self._shape:
            return
        try:
            model = self._model.clone()
            model.reshape(list(shape))
            self._request = core().compile_model(model, "CPU", self._settings).create_infer_request()
        except RuntimeError as error:
            raise ExportError(
                f"{self.name} takes inputs of shape {self._model.inputs[0].partial_shape} and does not run on {list(shape)}. Give "
                "images of the resolution it was exported for."
            ) from error
        self._shape = shape


def _runs(node: Any) -> bool:
    """Say whether a node is executed: OpenVINO says so from a microsecond on, and gives no kernel to nodes that are fused."""
    if node.status == node.Status.EXECUTED:
        return True
    if node.node_type == "Reorder":
        return not node.exec_type.startswith("reorder_")  # these change the description of a tensor only
    return node.exec_type != "undef" and node.node_type not in _NOTHING


def _node(node: Any) -> NodeTime:
    """Return a node as OpenVINO's counters give it, without its time; its kernel's name ends in what it computes on."""
    executed = node.exec_type.rpartition("_")[2]
    precision: Literal["int8", "float", "conversion"] = "int8" if executed.lower() in ("i8", "u8") else "float"
    if node.node_type in _CONVERSIONS:
        precision = "conversion"
    return NodeTime(node.node_name, node.node_type, executed, 0.0, precision)


def input_shape(path: Path) -> InputShape:
    """Return what an IR file takes. Raises ExportError as `read_ir`."""
    model, metadata = read_ir(path)
    height, width = metadata.preprocess.input_size
    return InputShape(None, model.inputs[0].partial_shape[1].get_length(), (height, width))
