"""What a target's runtime makes of a network, as `inspect --target` says it."""

from __future__ import annotations

from pydantic import Field

from edgeconvnext.schema.report import Record


class LayerShare(Record):
    """Layers of one kind: how many the runtime multiplies in INT8, and how many in float."""

    kind: str
    int8: int
    float: int


class NodeShare(Record):
    """Nodes of the graph that the runtime runs, by operator and precision (int8, float or conversion)."""

    operator: str
    precision: str
    nodes: int


class OnTarget(Record):
    """A network in a target's runtime, compiled without images.

    layers: weighted layers by kind. int8_macs: share of the multiply-adds in INT8, 0..1. fell_back: layers that the plan
    quantises and the runtime computes in float. partitions: pieces that the runtime cuts the graph into; 1 is the whole. hints:
    what would bring more of the network to INT8, or cost less around it.
    """

    target: str
    runtime: str
    layers: list[LayerShare]
    int8_macs: float
    fell_back: list[str] = Field(default=[])
    nodes: list[NodeShare]
    partitions: int
    hints: list[str] = Field(default=[])
