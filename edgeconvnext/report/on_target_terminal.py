"""What a target's runtime makes of a network, laid out for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeconvnext.report.visible import visible
from edgeconvnext.schema import format
from edgeconvnext.schema.on_target import OnTarget


def render_on_target(found: OnTarget) -> RenderableType:
    """Lay the counts out in two tables of 80 columns, with the layers that fell back and the hints below."""
    found = visible(found)
    layers = Table(box=None, pad_edge=False)
    layers.add_column(f"layers on {found.target}")
    layers.add_column("INT8", justify="right")
    layers.add_column("float", justify="right")
    for layer in found.layers:
        layers.add_row(Text(layer.kind), str(layer.int8), str(layer.float))
    nodes = Table(box=None, pad_edge=False)
    nodes.add_column(f"nodes in {found.runtime}")
    nodes.add_column("precision")
    nodes.add_column("count", justify="right")
    for node in found.nodes:
        nodes.add_row(Text(node.operator), Text(node.precision), str(node.nodes))
    pieces = "1 piece, the whole network" if found.partitions == 1 else f"{found.partitions} pieces"
    lines = [f"{format.share(found.int8_macs)} of the multiply-adds in INT8; {pieces}"]
    if found.fell_back:
        lines.append(f"Quantised, but computed in float: {', '.join(found.fell_back)}")
    return Group(layers, Text(), nodes, Text(), *map(Text, [*lines, *found.hints]))
