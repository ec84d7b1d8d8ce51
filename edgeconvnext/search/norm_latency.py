"""What each LayerNorm costs in a target's runtime: the float network timed with and without it, interleaved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import edgeconvnext
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.export.metadata import ArtifactMetadata
from edgeconvnext.export.onnx import export_onnx
from edgeconvnext.model.convnext import ConvNeXt
from edgeconvnext.rewrite.norms import replaceable_norms
from edgeconvnext.validate.interleaved import Samples, time_interleaved
from edgeconvnext.validate.latency import speedup
from edgeconvnext.validate.runners import OnnxRunner

SECONDS = 1.0
OPSET = 20


@dataclass(frozen=True)
class NormLatencies:
    """Medians, batch 1. all_ms: the network with every norm. without_ms: with this norm alone taken out.

    Norms of one width and place are timed together and share what they save, so that it stands out from the noise.
    """

    all_ms: float
    without_ms: Mapping[str, float]
    runtime: str
    threads: int

    @property
    def saved_ms(self) -> dict[str, float]:
        return {norm: self.all_ms - without for norm, without in self.without_ms.items()}


def measure_norm_latencies(
    module: ConvNeXt, preprocess: Preprocess, images: np.ndarray, folder: Path, *, threads: int = 1
) -> NormLatencies:
    """Time the float network in onnxruntime, whole and without the norms of each group.

    module: exactly folded. images: preprocessed, (N, C, H, W); the first is timed. folder: where ONNX files lie meanwhile.
    What a network costs does not depend on its weights, so norms are simply left out of the graph.
    """
    whole = write_float_onnx(module, preprocess, folder / "norms.onnx")
    groups = norm_groups(module)
    paths = {"": whole}
    for number, group in enumerate(groups):
        paths[group[0]] = _without(module, whole, group, folder / f"norms{number}.onnx")
    runners = {name: OnnxRunner(path, threads) for name, path in paths.items()}
    try:
        samples = _timed(runners, images[:1])
    finally:
        for path in paths.values():
            path.unlink()
    medians = {name: float(np.median(taken.times_ms)) for name, taken in samples.items()}
    without = {norm: medians[""] - (medians[""] - medians[group[0]]) / len(group) for group in groups for norm in group}
    return NormLatencies(medians[""], without, runners[""].runtime, threads)


def compare_latency(
    before: ConvNeXt, after: ConvNeXt, preprocess: Preprocess, images: np.ndarray, folder: Path, *, threads: int = 1
) -> tuple[float, float, tuple[float, float, float]]:
    """Return the medians in ms of two float networks in onnxruntime, and the speed-up with its 95 % interval."""
    paths = [
        write_float_onnx(module, preprocess, folder / f"{name}.onnx") for name, module in (("b", before), ("a", after))
    ]
    try:
        samples = _timed({str(i): OnnxRunner(path, threads) for i, path in enumerate(paths)}, images[:1])
    finally:
        for path in paths:
            path.unlink()
    ratio = speedup(samples["0"], samples["1"])
    first, second = (float(np.median(samples[name].times_ms)) for name in ("0", "1"))
    return first, second, (ratio.value, ratio.low, ratio.high)


def norm_groups(module: ConvNeXt) -> list[tuple[str, ...]]:
    """Return the replaceable norms, those of blocks of one stage together."""
    groups: dict[str, list[str]] = {}
    for path in replaceable_norms(module):
        groups.setdefault(".".join(path.split(".")[:2]) if path.startswith("stages") else path, []).append(path)
    return [tuple(group) for group in groups.values()]


def norm_elements(module: ConvNeXt, input_size: tuple[int, int]) -> dict[str, int]:
    """Return how many values each norm passes at batch 1: what stands in for its time where the runtime is not here."""
    counted: Counter[str] = Counter()
    handles = []
    for path in replaceable_norms(module):

        def count(_: object, inputs: tuple[torch.Tensor, ...], path: str = path) -> None:
            counted[path] += inputs[0].numel()

        handles.append(module.get_submodule(path).register_forward_pre_hook(count))
    with torch.no_grad():
        module(torch.zeros(1, module.config.in_channels, *input_size))
    for handle in handles:
        handle.remove()
    return dict(counted)


def write_float_onnx(module: ConvNeXt, preprocess: Preprocess, path: Path) -> Path:
    """Write a network as a float ONNX file."""
    from edgeconvnext.quantize.program import export_program  # torchao is slow to load, and most commands need none

    example = torch.zeros(1, module.config.in_channels, *preprocess.input_size)
    metadata = ArtifactMetadata("network", None, preprocess, "normalized", edgeconvnext.__version__)
    return export_onnx(export_program(module, example, max_batch=16), path, opset=OPSET, metadata=metadata)


def _timed(runners: Mapping[str, OnnxRunner], image: np.ndarray) -> dict[str, Samples]:
    inputs = {name: runner.prepare(image) for name, runner in runners.items()}

    def call(name: str) -> None:
        runners[name].run(inputs[name])

    return time_interleaved({name: lambda name=name: call(name) for name in runners}, seconds=SECONDS)  # type: ignore[misc]


def _without(module: ConvNeXt, whole: Path, norms: Sequence[str], path: Path) -> Path:
    """Write a copy of an ONNX file with some LayerNormalization nodes bypassed."""
    import onnx

    proto = onnx.load(whole)
    nodes = [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    present = [norm for norm in module.config.norm_paths if norm not in module.config.identity_norms]
    if len(nodes) != len(present):
        raise AssertionError(f"{len(nodes)} LayerNormalization nodes for {len(present)} norms")
    for norm, node in zip(present, nodes, strict=True):
        if norm in norms:
            bypassed, source = node.output[0], node.input[0]
            proto.graph.node.remove(node)
            for other in proto.graph.node:
                for index, name in enumerate(other.input):
                    if name == bypassed:
                        other.input[index] = source
    onnx.save(proto, path)
    return path
