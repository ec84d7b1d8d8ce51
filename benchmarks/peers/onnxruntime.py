"""onnxruntime's own static quantization, and the runtime that every ONNX artifact and the FP32 baseline run in."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers.protocol import Loaded, Task, calibration_batches, serve

CALIBRATION_BATCH = 16
LINEARS = ["MatMul", "Gemm"]
WEIGHTED = ["Conv", *LINEARS]
PROVIDERS = ["CPUExecutionProvider"]


@dataclass(frozen=True)
class Method:
    """A range estimator of quantize_static, and whether weights are limited to 7 bits."""

    calibration: CalibrationMethod
    reduce_range: bool = False


METHODS = {
    "MinMax": Method(CalibrationMethod.MinMax),
    "Entropy": Method(CalibrationMethod.Entropy),
    "Percentile": Method(CalibrationMethod.Percentile),
    "MinMax, 7-bit weights": Method(CalibrationMethod.MinMax, reduce_range=True),
}


class Reader(CalibrationDataReader):
    """Hands the calibration images to the calibrator, batch by batch."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


class OnnxRuntime:
    def versions(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}"

    def quantize(self, task: Task) -> list[Path]:
        """Preprocess as the documentation asks, then quantise per channel."""
        method = METHODS[task.method]
        symmetric = task.activations == "symmetric"
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch) / "prepared.onnx"
            quant_pre_process(task.onnx, prepared)
            quantize_static(
                prepared,
                task.artifact,
                Reader(calibration_batches(task, CALIBRATION_BATCH)),
                calibrate_method=method.calibration,
                per_channel=True,
                reduce_range=method.reduce_range,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt4 if task.bits == "W4A8" else QuantType.QInt8,
                op_types_to_quantize=_op_types(task),
                nodes_to_exclude=depthwise_convs(prepared) if task.placement == "no depthwise" else None,
                extra_options={"ActivationSymmetric": symmetric},
            )
        return [task.artifact]

    def load(self, artifact: Path, threads: int | None) -> Loaded:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        runtime = self.versions()
        try:
            session = onnxruntime.InferenceSession(artifact, options, providers=PROVIDERS)
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
            # microsoft/onnxruntime#25526: at opset 21 this pass makes zero points uint8 and leaves output_dtype int8.
            off = ["QDQS8ToU8Transformer"]
            session = onnxruntime.InferenceSession(artifact, options, providers=PROVIDERS, disabled_optimizers=off)
            runtime += f" without {off[0]}"
        name = session.get_inputs()[0].name
        return Loaded(lambda images: session.run(None, {name: images})[0], runtime)


def _op_types(task: Task) -> list[str] | None:
    if task.placement == "peer's own default":
        return None
    return LINEARS if task.placement == "linears only" else WEIGHTED


def depthwise_convs(path: Path) -> list[str]:
    """Return the names of the grouped convs of an ONNX file."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return [node.name for node in nodes if node.op_type == "Conv" and _groups(node) > 1]


def _groups(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


if __name__ == "__main__":
    serve(OnnxRuntime())
