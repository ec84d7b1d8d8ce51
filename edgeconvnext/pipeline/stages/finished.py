"""All stages that a command has been through."""

from __future__ import annotations

from dataclasses import dataclass

from edgeconvnext.pipeline.stages.evaluation import ClassifierStages, Measured
from edgeconvnext.pipeline.stages.quantization import Planned
from edgeconvnext.pipeline.stages.quantized_graph import Quantized
from edgeconvnext.pipeline.stages.values import ArtifactValues, DeviceValues, LatencyValues
from edgeconvnext.run.directory import StageResult
from edgeconvnext.schema.report import StageCost


@dataclass(frozen=True)
class Finished:
    """What `quantize` and `export` have done. artifact: None for quantize.

    latency: None where nothing was timed. device: None where there is no kit.
    """

    planned: Planned
    quantized: Quantized
    measured: Measured
    artifact: StageResult[ArtifactValues] | None = None
    latency: StageResult[LatencyValues] | None = None
    device: StageResult[DeviceValues] | None = None

    @property
    def costs(self) -> list[StageCost]:
        """Time and memory of each stage, in their order."""
        planned, answers = self.planned, self.measured.answers
        stages = (
            planned.compress,
            planned.fold,
            planned.statistics,
            planned.plan,
            self.quantized.stage,
            self.artifact,
            *((answers.reference, answers.accuracy) if isinstance(answers, ClassifierStages) else (answers,)),
            self.measured.sizes,
            self.latency,
            self.device,
        )
        return [stage.cost for stage in stages if stage is not None]
