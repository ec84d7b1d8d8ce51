"""What each LayerNorm costs in a target's runtime: the float network timed with and without it, interleaved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from edgeconvnext.backends.onnxruntime.float_latency import float_graph, time_graphs
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.progress import progress_bar
from edgeconvnext.rewrite.norms import replaceable_norms


def measure_norm_latencies(module: ConvNeXt, input_size: tuple[int, int], *, threads: int = 1) -> dict[str, float]:
    """Return the milliseconds that each replaceable norm's absence saves in onnxruntime, batch 1; below 0 where it saves none.

    module: exactly folded. The float network is timed beside itself without the norms of a group, two networks at a time. Norms of
    one width and place are taken out together and share what they save, so that it stands out from the noise. What a network costs
    does not depend on its weights, so norms are simply left out of the graph.
    """
    groups = norm_groups(module)
    if not groups:
        return {}
    graph = float_graph(module, (module.config.in_channels, *input_size))
    saved: dict[str, float] = {}
    with progress_bar("Timing LayerNorms", len(groups)) as advance:
        for group in groups:
            samples = time_graphs([("with", graph), ("without", _without(module, graph, group))], threads=threads)
            there, gone = (float(np.median(samples[name].times_ms)) for name in ("with", "without"))
            saved |= dict.fromkeys(group, (there - gone) / len(group))
            advance(1)
    return saved


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


def _without(module: ConvNeXt, whole: bytes, norms: Sequence[str]) -> bytes:
    """Return an ONNX graph with some LayerNormalization nodes bypassed."""
    import onnx

    proto = onnx.load_model_from_string(whole)
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
    return proto.SerializeToString()
