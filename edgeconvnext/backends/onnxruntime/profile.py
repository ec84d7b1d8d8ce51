"""What onnxruntime really runs: the time of each operator, and quantised layers that it computes in float."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeconvnext.backends.base import NodeTime, Profile
from edgeconvnext.backends.onnxruntime.runner import OnnxRunner

PROFILED_RUNS = 30

# Operators of onnxruntime's optimised graphs, by what they do for a network.
_CLASSES = {
    "linears": (
        "MatMul",
        "FusedMatMul",
        "Gemm",
        "FusedGemm",
        "QGemm",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
    ),
    "convs": ("Conv", "FusedConv", "QLinearConv", "ConvInteger"),
    "norms": ("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization"),
    "GELU": ("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Erf"),
    "additions": ("Add", "QLinearAdd"),
    "quantize, dequantize": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    "layout": ("Transpose", "ReorderInput", "ReorderOutput", "Reshape", "Squeeze", "Unsqueeze", "Concat"),
    "pooling": ("ReduceMean", "GlobalAveragePool", "AveragePool", "MaxPool", "QLinearGlobalAveragePool"),
}
_CONVERSIONS = {*_CLASSES["quantize, dequantize"], *_CLASSES["layout"], "Cast", "Flatten"}
_INTEGER = ("QGemm", "QLinear", "MatMulInteger", "ConvInteger")
"""How operators on codes are called; what runs behind a DequantizeLinear is called as in float."""

_CLASS_OF = {operator: name for name, operators in _CLASSES.items() for operator in operators}


def profile_onnx(path: Path, images: np.ndarray, threads: int, runs: int = PROFILED_RUNS) -> Profile:
    """Run an ONNX file on normalised images, (N, C, H, W), with onnxruntime's profiler on.

    A profiled run is a little slower than one that is not: figures are for comparing operators, `latency` for the whole.
    Raises ExportError for a file that cannot be opened or that does not take these images.
    """
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        runner = OnnxRunner(path, threads, optimised=optimised, profile=Path(scratch) / "profile")
        inputs = runner.prepare(images)
        for _ in range(runs):
            runner.run(inputs)
        events = json.loads(runner.end_profile().read_text(encoding="utf-8"))
        graph = onnx.load(optimised).graph
    return Profile(_node_times(events), _in_float(graph))


def _node_times(events: list[dict[str, Any]]) -> tuple[NodeTime, ...]:
    """Return each node's median over the runs; the profiler notes microseconds."""
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            arguments = event["args"]
            key = (arguments["node_index"], event["name"].removesuffix("_kernel_time"), arguments["op_name"])
            times[key].append(event["dur"] / 1000)
    return tuple(
        NodeTime(name, operator, _CLASS_OF.get(operator, "other"), float(np.median(each)), _precision(operator))
        for (_, name, operator), each in times.items()
    )


def _precision(operator: str) -> Literal["int8", "float", "conversion"]:
    if operator in _CONVERSIONS:
        return "conversion"
    return "int8" if operator.startswith(_INTEGER) else "float"


def _in_float(graph: Any) -> tuple[str, ...]:
    """Return the layers whose stored integer weight is still dequantised in the graph that runs.

    Where onnxruntime multiplies codes, the DequantizeLinear of the weight is gone.
    """
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    suffix = ".weight_dequantize"
    layers = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            readers = [reader.name for reader in graph.node if node.output[0] in reader.input]
            layers += [node.name.removesuffix(suffix)] if node.name.endswith(suffix) else readers
    return tuple(layers)
