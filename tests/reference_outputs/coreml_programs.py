"""Compare the programs of Core ML packages; their weights lie in weight.bin beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def coreml_differences(first: Path, second: Path) -> list[str]:
    """Compare two model.mlmodel files: interface and operations in their order; descriptions and build records aside."""
    ours, theirs = (_specification(path) for path in (first, second))
    if ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True):
        return []
    return _operation_differences(ours, theirs) or ["the interface or the program's frame differs"]


def _specification(path: Path) -> Any:
    """Read the protobuf message without what says only who made it, when, and for whom."""
    from coremltools.proto import Model_pb2

    specification = Model_pb2.Model()
    specification.ParseFromString(path.read_bytes())
    specification.description.ClearField("metadata")
    for feature in (*specification.description.input, *specification.description.output):
        feature.ClearField("shortDescription")
    specification.mlProgram.attributes.pop("buildInfo", None)
    return specification


def _operation_differences(first: Any, second: Any) -> list[str]:
    ours, theirs = (list(_operations(specification)) for specification in (first, second))
    counts = [] if len(ours) == len(theirs) else [f"{len(ours)} operations -> {len(theirs)} operations"]
    changed = [
        f"operation {number}: {_words(one)} -> {_words(other)}"
        for number, (one, other) in enumerate(zip(ours, theirs, strict=False))
        if one.SerializeToString(deterministic=True) != other.SerializeToString(deterministic=True)
    ]
    return counts + changed


def _operations(specification: Any) -> Iterator[Any]:
    for _, function in sorted(specification.mlProgram.functions.items()):
        for _, block in sorted(function.block_specializations.items()):
            yield from block.operations


def _words(operation: Any) -> str:
    inputs = ", ".join(
        f"{name}={binding.name}"
        for name, argument in sorted(operation.inputs.items())
        for binding in argument.arguments
    )
    return f"{operation.type} ({inputs}) {', '.join(output.name for output in operation.outputs)}"
