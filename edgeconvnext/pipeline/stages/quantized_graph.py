"""The quantised graph of a plan, and what simulates it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgeconvnext.memory import give_back_free_memory
from edgeconvnext.model.network import Network
from edgeconvnext.pipeline.job import Job
from edgeconvnext.pipeline.stages.network import TargetNetwork, exported
from edgeconvnext.pipeline.stages.quantization import PLAN, PLAN_STATISTICS, UNBUDGETED_PLAN, Planned
from edgeconvnext.pipeline.stages.values import PlanValues, QuantizedValues
from edgeconvnext.progress import progress_bar
from edgeconvnext.run.directory import RunDirectory, StageResult

if TYPE_CHECKING:
    from edgeconvnext.quantization.plan import QuantPlan


class QuantizedGraph:
    """The quantised graph of a plan, built once and held in memory: what a run stores runs nothing when it is read."""

    def __init__(self, network: TargetNetwork, plan: StageResult[PlanValues]) -> None:
        self.network = network
        self.plan = plan
        self._program: ExportedProgram | None = None

    @property
    def job(self) -> Job:
        """What the run was asked for."""
        return self.network.job

    @property
    def program(self) -> ExportedProgram:
        """The graph, float32 with Q/DQ pairs; built from the folded network and the plan where it is first asked for."""
        if self._program is None:
            quant_plan, planned_network = self.load_plan()
            self.network.release()
            self.build(planned_network, quant_plan)
        assert self._program is not None
        return self._program

    def load_plan(self) -> tuple[QuantPlan, Network]:
        """Read the plan; return it and a copy of the network with its codes in place."""
        from edgeconvnext.quantization.plan_storage import load_plan

        return load_plan(self.plan.path(PLAN), self.network.module)

    def build(self, planned_network: Network, quant_plan: QuantPlan) -> ExportedProgram:
        """Build the graph of what `load_plan` returned."""
        from edgeconvnext.quantization.program import quantize_program

        give_back_free_memory()
        self._program = quantize_program(exported(self.job, planned_network), quant_plan)
        return self._program

    def unbudgeted_program(self) -> ExportedProgram:
        """Build the graph that would have come out without --max-drop, where that gave layers back."""
        from edgeconvnext.quantization.plan_storage import load_plan
        from edgeconvnext.quantization.program import quantize_program

        quant_plan, planned_network = load_plan(self.plan.path(UNBUDGETED_PLAN), self.network.module)
        self.network.release()
        return quantize_program(exported(self.job, planned_network), quant_plan)

    def simulation(self) -> GraphModule:
        """The graph in the target's float type, ready to run."""
        from edgeconvnext.quantization.simulate import simulator

        return simulator(self.program, self.job.target.float_type)


@dataclass(frozen=True)
class Quantized:
    """A network's quantised graph and the stage that measured it."""

    stage: StageResult[QuantizedValues]
    graph: QuantizedGraph

    @property
    def job(self) -> Job:
        """What the run was asked for."""
        return self.graph.job

    @property
    def network(self) -> TargetNetwork:
        """The float network that was quantised."""
        return self.graph.network


def quantize_network(run: RunDirectory, planned: Planned) -> Quantized:
    """Build the quantised graph of a plan and compare its layers with the float network's. Files: none."""
    graph = QuantizedGraph(planned.network, planned.plan)
    job = graph.job

    def make(_folder: Path) -> QuantizedValues:
        from edgeconvnext.model.macs import layer_macs
        from edgeconvnext.quantization.layer_errors import layer_errors, scheme
        from edgeconvnext.quantization.statistics import Statistics

        module = graph.network.module
        quant_plan, planned_network = graph.load_plan()
        stored = Statistics.load(graph.plan.path(PLAN_STATISTICS))
        macs = layer_macs(module.config, job.model.preprocess.input_size)
        layers = layer_errors(module, planned_network, quant_plan, stored)
        del module, stored  # the graph needs room: 0.1 of a Tiny's 1 GiB
        graph.network.release()
        program = graph.build(planned_network, quant_plan)
        return QuantizedValues(
            layers=layers,
            int8_macs=sum(macs[layer] for layer in quant_plan.weights) / sum(macs.values()),
            scheme=scheme(quant_plan, job.target, macs),
            tensor_bytes=sum(tensor.nbytes for tensor in _tensors(program)),
        )

    inputs = {
        "plan": graph.plan.key,
        "sizes": job.sizes,
        "target": job.target.model_dump(mode="json", exclude={"gates", "description", "name", "runtime"}),
    }
    with progress_bar("Quantising", None):
        stage = run.stage("quantized", inputs, make, QuantizedValues)
    graph.network.release()
    return Quantized(stage, graph)


def _tensors(program: ExportedProgram) -> list[torch.Tensor]:
    constants = [value for value in program.constants.values() if isinstance(value, torch.Tensor)]
    return [*program.state_dict.values(), *constants]
