"""Records of a placement search: what was tried, what it measured, and which placements are on the front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from edgeconvnext.choices import Operator
from edgeconvnext.schema.report import Interval, Record
from edgeconvnext.targets import LayoutSection, Target


@dataclass(frozen=True)
class Placement:
    """What the search changes of a target. operators, outputs, float_layers: see `targets.QuantizeSection`."""

    operators: tuple[Operator, ...]
    outputs: tuple[Operator, ...]
    float_layers: frozenset[str]
    layout: LayoutSection

    @classmethod
    def of(cls, target: Target, layers: Mapping[str, Operator]) -> Placement:
        """Return the placement of `target` for a network with these layers; operators that it has none of are left out."""
        quantize, present = target.quantize, set(layers.values())
        return cls(
            tuple(operator for operator in quantize.operators if operator in present),
            tuple(operator for operator in quantize.outputs if operator in present),
            frozenset(quantize.float_layers) & frozenset(layers),
            target.layout,
        )

    def on(self, target: Target) -> Target:
        """Return `target` with this placement."""
        changes = {
            "operators": list(self.operators),
            "outputs": list(self.outputs),
            "float_layers": sorted(self.float_layers),
        }
        return target.model_copy(update={"quantize": target.quantize.model_copy(update=changes), "layout": self.layout})

    def quantises(self, layer: str, operator: Operator) -> bool:
        """Whether a layer multiplies integers."""
        return operator in self.operators and layer not in self.float_layers


class Measured(Record):
    """What one placement gave. speedup: over the best float form, with its 95 % interval; ms, fp32_ms: medians, batch 1.

    sqnr_db, kl, agreement: of the artifact in its runtime on held-out images, against FP32; kl is the mean in nats, agreement per
    cent.
    """

    speedup: Interval
    ms: float
    fp32_ms: float
    sqnr_db: float
    kl: float
    agreement: float
    size_bytes: int

    @property
    def label(self) -> str:
        return f"{self.speedup.value:.2f}x over FP32, {self.sqnr_db:.1f} dB"


class Trial(Record):
    """One move that was measured. against: what the incumbent had. taken: whether it became the incumbent."""

    move: str
    layers: list[str]
    measured: Measured
    against: Measured
    taken: bool

    @property
    def verdict(self) -> str:
        """What was measured, beside what it was compared with."""
        return f"{self.measured.label} instead of {self.against.label}"


class PlacementFound(Record):
    """The result of a search. start, best: measured; float_layers: why each layer is float in the best placement.

    untried: moves that the time did not suffice for. taken_over: trials that an earlier search had measured.
    """

    model: str
    target: str
    runtime: str
    device: str
    threads: int
    input_size: tuple[int, int]
    start: Measured
    best: Measured
    trials: list[Trial]
    float_layers: dict[str, str]
    untried: int
    taken_over: int
    placed: Target = Field(exclude=True)


def front(found: PlacementFound) -> list[tuple[str, Measured]]:
    """Return what no other trial beats in both speed and accuracy, fastest first, by the move that led there."""
    points = {trial.measured.model_dump_json(): (trial.move, trial.measured) for trial in found.trials}
    points[found.start.model_dump_json()] = ("the target's own placement", found.start)
    ordered = sorted(points.values(), key=lambda point: (-point[1].speedup.value, point[1].kl))
    kept: list[tuple[str, Measured]] = []
    for point in ordered:
        if not kept or point[1].kl < kept[-1][1].kl:
            kept.append(point)
    return kept
