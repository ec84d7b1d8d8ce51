"""A searched placement as a target file: what a user reads, commits and gives to --target."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tomlkit
from tomlkit.items import Array, Table

from edgeconvnext.report.visible import visible

if TYPE_CHECKING:
    from edgeconvnext.schema.placement import PlacementFound

_WIDTH = 120
# A list whose text is longer is written with one item a line.
_LONGEST_LIST = 100


def placement_toml(found: PlacementFound) -> str:
    """Return the target file of a search: the target it began with, in its best placement, and why layers are float."""
    found = visible(found)
    target = found.placed.model_copy(
        update={
            "name": f"{found.target}-searched",
            "description": f"{found.placed.description}; placement searched for {found.model}",
        }
    )
    side = "x".join(str(length) for length in found.input_size)
    about = (
        f"Found by edgeconvnext search for {found.model} at {side}, {found.runtime}, {found.threads} threads, {found.device}: "
        f"{found.best.label} (95 % interval of the speed-up {found.best.speedup.low:.2f} to {found.best.speedup.high:.2f}); the "
        f"placement of target {found.target} has {found.start.label}. {len(found.trials)} placements were measured."
    )
    document = tomlkit.document()
    _comment(document, about)
    document.add(tomlkit.nl())
    tables: dict[str, Table] = {}
    for key, value in target.model_dump(mode="json", exclude_defaults=True).items():
        if isinstance(value, dict):
            tables[key] = tomlkit.table()
            _fill(tables[key], value)
        else:
            document.add(key, _item(value))
    for key, table in tables.items():
        if key == "quantize":
            document.add(tomlkit.nl())
            for reason in reasons(found.float_layers):
                _comment(document, reason)
        document.add(key, table)
    return tomlkit.dumps(document)


def reasons(float_layers: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each reason, naming all layers that are float for it."""
    by_reason: dict[str, list[str]] = {}
    for layer, reason in float_layers.items():
        by_reason.setdefault(reason, []).append(layer)
    for reason, layers in by_reason.items():
        yield f"Float: {', '.join(layers)}. {reason[0].upper()}{reason[1:]}."


def _fill(table: Table, values: Mapping[str, Any]) -> None:
    """Add `values` to a table, plain ones first: a key after a sub-table would belong to the sub-table."""
    for key, value in values.items():
        if not isinstance(value, dict):
            table.add(key, _item(value))
    for key, value in values.items():
        if isinstance(value, dict):
            inner = tomlkit.table()
            _fill(inner, value)
            table.add(key, inner)


def _item(value: object) -> Any:
    item = tomlkit.item(value)
    if isinstance(item, Array) and len(item.as_string()) > _LONGEST_LIST:
        item.multiline(True)
    return item


def _comment(document: tomlkit.TOMLDocument, text: str) -> None:
    for line in textwrap.wrap(text, _WIDTH - 2, break_long_words=False):
        document.add(tomlkit.comment(line))
