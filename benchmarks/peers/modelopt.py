"""NVIDIA ModelOpt's ONNX quantization, calibrated on the CPU. What it does not quantise stays float32 here.

It writes for TensorRT; its files are measured in onnxruntime, by that peer's worker.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import onnx
from modelopt.onnx.quantization import quantize

from benchmarks.peers.protocol import Loaded, Task, serve

METHODS = {"max": "max", "entropy": "entropy"}
LINEARS = ["MatMul", "Gemm"]


class ModelOpt:
    def versions(self) -> str:
        return f"nvidia-modelopt {importlib.metadata.version('nvidia-modelopt')}"

    def quantize(self, task: Task) -> list[Path]:
        if (task.bits, task.activations) != ("W8A8", "symmetric"):
            raise ValueError("ModelOpt offers W8A8 with symmetric activations only")
        source = task.onnx
        if task.placement == "all weighted ops":
            source = task.artifact.with_suffix(".kernel_shape.onnx")
            _write_kernel_shapes(task.onnx, source)
        quantize(
            str(source),
            quantize_mode="int8",
            calibration_data={"image": np.load(task.calibration)},
            calibration_method=METHODS[task.method],
            calibration_eps=["cpu"],
            op_types_to_quantize=_op_types(task),
            nodes_to_exclude=_depthwise_convs(task.onnx) if task.placement == "no depthwise" else None,
            high_precision_dtype="fp32",
            output_path=str(task.artifact),
        )
        if source != task.onnx:
            source.unlink()
        return [task.artifact]

    def load(self, artifact: Path, threads: int | None) -> Loaded:
        raise NotImplementedError("its ONNX files run in the onnxruntime worker")


def _op_types(task: Task) -> list[str] | None:
    if task.placement == "peer's own default":
        return None
    return LINEARS if task.placement == "linears only" else ["Conv", *LINEARS]


def _write_kernel_shapes(path: Path, copy: Path) -> None:
    """Add the optional attribute kernel_shape, which torch's exporter leaves out: without it ModelOpt takes a depthwise
    conv for one of 1x1, which it never quantises.
    """
    model = onnx.load(path)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and all(attribute.name != "kernel_shape" for attribute in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("kernel_shape", shapes[node.input[1]][2:]))
    onnx.save(model, copy)


def _depthwise_convs(path: Path) -> list[str]:
    """Return regular expressions for the names of the grouped convs."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    groups = {node.name: next((a.i for a in node.attribute if a.name == "group"), 1) for node in nodes}
    return [f"^{name}$" for node in nodes if node.op_type == "Conv" and groups[name := node.name] > 1]


if __name__ == "__main__":
    serve(ModelOpt())
