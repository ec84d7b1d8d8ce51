"""Placements of Q/DQ pairs and forms of the file, and the moves from one to another.

A move changes one thing for one region: a form of the whole file, a class of layers, a class in one stage, a class in one block.
Layers that only a region quantises are written as the class with the others in `quantize.float_layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edgeconvnext.choices import Operator
from edgeconvnext.schema.placement import Placement

Region = Literal["file", "class", "stage", "block"]
REGIONS: tuple[Region, ...] = ("file", "class", "stage", "block")


@dataclass(frozen=True)
class Move:
    """One change. key: the same move in every search; what: in words; layers: whose precision it changes (none: a form)."""

    key: str
    what: str
    layers: tuple[str, ...]
    apply: Callable[[Placement], Placement | None]


def moves(
    region: Region,
    layers: Mapping[str, Operator],
    outputs_too: frozenset[Operator],
) -> Iterator[Move]:
    """Yield the moves of one kind of region. outputs_too: operators whose outputs go to int8 with them (`Limits`).

    `Move.apply` gives None where a move would change nothing, or quantise nothing.
    """
    if region == "file":
        yield from _forms()
        return
    for group, kind, names in _groups(region, layers):
        yield _precision_move(group, kind, names, layers, outputs_too)
    if region == "class":
        for kind in dict.fromkeys(layers.values()):
            if kind not in ("pointwise1", "pointwise2", "head"):
                yield _output_move(kind, tuple(layer for layer, own in layers.items() if own == kind))


def _forms() -> Iterator[Move]:
    choices: dict[str, tuple[str, ...]] = {
        "linears": ("gemm", "matmul", "conv"),
        "residual": ("channels_last", "channels_first"),
        "gelu": ("erf", "tanh"),
    }
    for key, values in choices.items():
        for value in values:

            def apply(placement: Placement, key: str = key, value: str = value) -> Placement | None:
                layout = placement.layout.model_copy(update={key: value})
                return None if layout == placement.layout else replace(placement, layout=layout)

            yield Move(f"{key} = {value}", f'{key} = "{value}"', (), apply)


def _groups(region: Region, layers: Mapping[str, Operator]) -> list[tuple[str, Operator, tuple[str, ...]]]:
    """Return regions as (name, class, layers): "depthwise", "depthwise in stages.1", "depthwise in stages.1.0"."""
    found: dict[tuple[str, Operator], list[str]] = {}
    for layer, kind in layers.items():
        parts = layer.split(".")
        if region == "class":
            found.setdefault((kind, kind), []).append(layer)
        elif parts[0] == "stages":
            place = ".".join(parts[: 2 if region == "stage" else 3])
            found.setdefault((f"{kind} in {place}", kind), []).append(layer)
        elif region == "stage" and parts[0] == "downsample_layers":
            found.setdefault((f"{kind} in {'.'.join(parts[:2])}", kind), []).append(layer)
    return [(name, kind, tuple(names)) for (name, kind), names in found.items()]


def _precision_move(
    name: str,
    kind: Operator,
    names: tuple[str, ...],
    layers: Mapping[str, Operator],
    outputs_too: frozenset[Operator],
) -> Move:
    """Turn a region to float where it is quantised, and to int8 where it is float."""
    own = frozenset(names)
    siblings = frozenset(layer for layer, other in layers.items() if other == kind)

    def apply(placement: Placement) -> Placement | None:
        quantised = {layer for layer in siblings if placement.quantises(layer, kind)}
        to_float = bool(own & quantised)
        wanted = quantised - own if to_float else quantised | own
        kept = tuple(operator for operator in placement.operators if operator != kind)
        if not wanted and not kept:
            return None
        outputs = placement.outputs
        if not wanted:
            outputs = tuple(operator for operator in outputs if operator != kind)
        elif kind in outputs_too and kind not in outputs:
            outputs = (*outputs, kind)
        operators = placement.operators if kind in placement.operators else (*placement.operators, kind)
        return replace(
            placement,
            operators=operators if wanted else kept,
            outputs=outputs,
            float_layers=(placement.float_layers - siblings) | (siblings - wanted if wanted else frozenset()),
        )

    return Move(name, name, names, apply)


def _output_move(kind: Operator, names: tuple[str, ...]) -> Move:
    """Quantise the outputs of a class of convs, which is the input of a LayerNorm or a term of a sum, or leave them float."""

    def apply(placement: Placement) -> Placement | None:
        if kind not in placement.operators:
            return None
        present = kind in placement.outputs
        kept = tuple(operator for operator in placement.outputs if operator != kind)
        return replace(placement, outputs=kept if present else (*kept, kind))

    return Move(f"outputs of {kind}", f"outputs of {kind}", (), apply)
