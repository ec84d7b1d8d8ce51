"""A searched placement as a target file: what a user reads, commits and gives to --target."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeconvnext.search.placement_search import PlacementFound


def placement_toml(found: PlacementFound) -> str:
    """Return the target file of a search: the target it began with, in its best placement, and why layers are float."""
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
    lines = [*_comment(about), ""]
    values = target.model_dump(mode="json", exclude_defaults=True)
    lines += [f"{key} = {_value(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, table in values.items():
        if isinstance(table, dict):
            if key == "quantize":
                lines += ["", *(line for reason in reasons(found.float_layers) for line in _comment(reason))]
            lines += _table(key, table)
    return "\n".join(lines) + "\n"


def reasons(float_layers: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each reason, naming all layers that are float for it."""
    by_reason: dict[str, list[str]] = {}
    for layer, reason in float_layers.items():
        by_reason.setdefault(reason, []).append(layer)
    for reason, layers in by_reason.items():
        yield f"Float: {', '.join(layers)}. {reason[0].upper()}{reason[1:]}."


def _table(path: str, table: Mapping[str, Any]) -> Iterator[str]:
    if path != "quantize":
        yield ""
    yield f"[{path}]"
    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{key} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _table(f"{path}.{key}", value)


def _value(value: object) -> str:
    """Return a TOML value; strings, numbers and lists of them are written as JSON writes them."""
    text = json.dumps(value)
    if isinstance(value, list) and len(text) > 100:
        return "[\n" + "".join(f"    {json.dumps(item)},\n" for item in value) + "]"
    return text


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
