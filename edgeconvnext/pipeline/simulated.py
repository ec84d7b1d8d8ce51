"""The quantised network of a run as a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from edgeconvnext.data.loader import MOST_AT_ONCE
from edgeconvnext.data.preprocess import to_value_range
from edgeconvnext.evaluation.runner import TorchRunner
from edgeconvnext.pipeline.job import Job, network_job, stored_model
from edgeconvnext.pipeline.stages import QuantizedGraph, stored_plan
from edgeconvnext.pipeline.stored_config import stored_target
from edgeconvnext.run.directory import RunDirectory
from edgeconvnext.run.manifest import load_run


class SimulatedNetwork(nn.Module):
    """The simulated INT8 network: prepared images (N, C, H, W), as the float network takes them, to its outputs.

    Its numbers are those that the report calls simulated. It runs on the CPU and is not trained.
    """

    def __init__(self, job: Job, graph: QuantizedGraph) -> None:
        super().__init__()
        self._preprocess, self._value_range = job.model.preprocess, job.target.input.value_range
        self.graph = graph.simulation()

    def forward(self, images: torch.Tensor) -> Any:
        """Return the logits (N, num_classes), or what else the network ends with."""
        values = to_value_range(images.detach().cpu().float().numpy(), self._preprocess, self._value_range)
        runner = TorchRunner(self.graph)
        # The graph was exported for batches of at most MOST_AT_ONCE.
        starts = range(0, len(values), MOST_AT_ONCE)
        pieces = [runner.outputs(values[start : start + MOST_AT_ONCE]) for start in starts]
        outputs = tuple(torch.from_numpy(np.concatenate(parts)) for parts in zip(*pieces, strict=True))
        return outputs if len(outputs) > 1 else outputs[0]

    def train(self, mode: bool = True) -> Self:
        """Do nothing: a simulated network is always in eval mode."""
        return self


def simulated_network(path: Path) -> SimulatedNetwork:
    """Rebuild the simulated network of a finished run; no images are read.

    Raises RunDirectoryError where `path` is no finished run, its files have changed, or it has no plan.
    """
    graph = quantized_graph(path)
    return SimulatedNetwork(graph.job, graph)


def quantized_graph(path: Path) -> QuantizedGraph:
    """Rebuild the quantised graph of a finished run from its folded network and its plan. Raises as `simulated_network`."""
    finished = load_run(path)
    job = network_job(finished, stored_target(finished), stored_model(finished).model)
    with RunDirectory.open(path, finished.config) as run:
        planned = stored_plan(run, job)
        return QuantizedGraph(planned.network, planned.plan)
