"""What each LayerNorm costs in a runtime of this machine: the float network timed with and without it, interleaved."""

from __future__ import annotations

from collections import Counter

import torch

from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.progress import progress_bar
from edgeconvnext.rewrite.float_timer import FloatTimer
from edgeconvnext.rewrite.norms import replaceable_norms


def measure_norm_latencies(
    module: ConvNeXt,
    input_size: tuple[int, int],
    timer: FloatTimer,
    *,
    threads: int = 1,
) -> dict[str, float]:
    """Return the milliseconds that each replaceable norm's absence saves, batch 1; below 0 where it saves none.

    module: exactly folded. The float network is timed beside itself without the norms of a group, two networks at a time. Norms of
    one width and place are taken out together and share what they save, so that it stands out from the noise. What a network costs
    does not depend on its weights, so norms are simply left out of the graph.
    """
    groups = norm_groups(module)
    if not groups:
        return {}
    present = [norm for norm in module.config.norm_paths if norm not in module.config.identity_norms]
    graph = timer.float_graph(module, (module.config.in_channels, *input_size))
    saved: dict[str, float] = {}
    with progress_bar("Timing LayerNorms", len(groups)) as advance:
        for group in groups:
            bypassed = timer.without_norms(graph, [present.index(norm) for norm in group])
            ms = timer.medians_ms([("with", graph), ("without", bypassed)], threads=threads)
            saved |= dict.fromkeys(group, (ms["with"] - ms["without"]) / len(group))
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
