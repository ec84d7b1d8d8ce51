"""Float networks and parts of them, timed in onnxruntime on this machine, batch 1, in turns with each other.

The module is a `rewrite.float_timer.FloatTimer`.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeconvnext.backends.base import LatencySettings
from edgeconvnext.backends.onnxruntime.runner import OnnxRunner, onnx_session
from edgeconvnext.evaluation import timing
from edgeconvnext.evaluation.timing import Samples, speedup, time_interleaved
from edgeconvnext.schema.report import FloatLatency

OPSET = 20
FOREIGN_OPSET = 21


def compare_latency(
    before: nn.Module, after: nn.Module, input_shape: tuple[int, int, int], *, threads: int = 1
) -> FloatLatency:
    """Time two networks that take images of (C, H, W); return their medians and the speed-up with its interval."""
    networks = {"before": before, "after": after}
    samples = time_graphs(((name, float_graph(each, input_shape)) for name, each in networks.items()), threads=threads)
    ratio = speedup(samples["before"], samples["after"])
    first, second = (float(np.median(samples[name].times_ms)) for name in networks)
    return FloatLatency(before_ms=first, after_ms=second, speedup=ratio.value, low=ratio.low, high=ratio.high)


def float_graph(module: nn.Module, input_shape: tuple[int, int, int]) -> bytes:
    """Return the ONNX graph of a network or a part of one that takes (N, C, H, W), laid out as the artifacts are.

    Raises ExportError where the weights exceed what one ONNX graph can hold.
    """
    import onnx_ir as ir

    from edgeconvnext.backends.onnx.write import refuse_too_large
    from edgeconvnext.backends.onnxruntime.write import build_laid_out
    from edgeconvnext.model.program import export_program
    from edgeconvnext.targets import LayoutSection

    program = export_program(module, torch.zeros(1, *input_shape), max_batch=16)
    graph = build_laid_out(program, opset=OPSET, layout=LayoutSection())
    refuse_too_large(graph, "The float network's graph")
    return ir.to_proto(graph).SerializeToString()


def without_norms(graph: bytes, positions: Sequence[int]) -> bytes:
    """Return an ONNX graph with some LayerNormalization nodes bypassed. positions: among all of them, in forward order."""
    import onnx

    proto = onnx.load_model_from_string(graph)
    nodes = [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    for position in positions:
        bypassed, source = nodes[position].output[0], nodes[position].input[0]
        proto.graph.node.remove(nodes[position])
        for other in proto.graph.node:
            for index, name in enumerate(other.input):
                if name == bypassed:
                    other.input[index] = source
    return proto.SerializeToString()


def medians_ms(
    graphs: Iterable[tuple[str, bytes]],
    *,
    threads: int = 1,
    seconds: float | None = None,
    warm_up_s: float | None = None,
) -> dict[str, float]:
    """Return the median time of each graph by name, ms; arguments as `time_graphs`."""
    samples = time_graphs(graphs, threads=threads, seconds=seconds, warm_up_s=warm_up_s)
    return {name: float(np.median(each.times_ms)) for name, each in samples.items()}


def time_graphs(
    graphs: Iterable[tuple[str, bytes]],
    *,
    threads: int = 1,
    seconds: float | None = None,
    warm_up_s: float | None = None,
) -> dict[str, Samples]:
    """Time each ONNX graph by name, at least `seconds` of each (None: SCREENING_SECONDS), on a picture of its own input's size.

    graphs: opened one after the other, through a file: a session that gets bytes keeps them beside its own weights.
    """
    calls: dict[str, Callable[[], None]] = {}
    with tempfile.TemporaryDirectory(prefix="edgeconvnext-") as folder:
        path = Path(folder) / "graph.onnx"
        for name, graph in graphs:
            path.write_bytes(graph)
            calls[name] = _call(onnx_session(path, threads))
    return time_interleaved(calls, timing.SCREENING_SECONDS if seconds is None else seconds, warm_up_s)


def foreign_latency_ms(module: nn.Module, input_size: tuple[int, int], *, threads: int = 1) -> float:
    """Return the median of any network by torch's own exporter: this package's names layers as its networks' are.

    input_size: (height, width) of RGB images.
    """
    from edgeconvnext.backends.latency import interleaved_latency
    from edgeconvnext.model.program import export_program

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        program = export_program(module, torch.zeros(1, 3, *input_size), max_batch=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own deprecated calls
            torch.onnx.export(
                program, (), path, dynamo=True, opset_version=FOREIGN_OPSET, external_data=False, verbose=False
            )
        result = interleaved_latency(OnnxRunner, None, path, LatencySettings(threads=threads, input_size=input_size))
    assert result.comparison.artifact is not None
    return result.comparison.artifact.median_ms


def _call(session: Any) -> Callable[[], None]:
    """Return a run on values that rise over the image: what float layers cost does not depend on them."""
    image = session.get_inputs()[0]
    channels, height, width = image.shape[1:]
    rising = np.linspace(-2, 2, height * width, dtype=np.float32).reshape(1, 1, height, width)
    inputs = {image.name: np.ascontiguousarray(np.repeat(rising, channels, axis=1))}

    def call() -> None:
        session.run(None, inputs)

    return call
