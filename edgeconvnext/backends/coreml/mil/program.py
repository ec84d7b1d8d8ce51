"""Read the program of an .mlpackage: its operations in order, with every constant as the file holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeconvnext.backends.coreml.mil.operators import OPERATORS, parameters
from edgeconvnext.backends.coreml.mil.weights import CONSTEXPR
from edgeconvnext.backends.coreml.package import open_package
from edgeconvnext.errors import ExportError

CLASSIFY = "classify"
_TYPES = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class Value:
    """Names what an operation reads or writes. dtype: None for text and dictionaries. shape: as declared, for one image."""

    name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One operation. arguments: a `Value` computed before it, or a constant: tensor, number, text, tuple of these, or None."""

    operator: str
    name: str
    arguments: Mapping[str, Any]
    outputs: tuple[Value, ...]

    def inputs(self) -> list[Value]:
        """Return the arguments that other operations compute."""
        return [argument for argument in self.arguments.values() if isinstance(argument, Value)]


@dataclass(frozen=True)
class Program:
    """The function "main" of a package: float constants in float32, which holds float16 numbers exactly."""

    image: Value
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]


def read_program(path: Path) -> Program:
    """Read the program of the package at `path`, with its weights expanded.

    Raises ExportError for a path that is not a readable package, for a program that takes something other than one image, and for
    an operator or argument that is not known here, naming it and its place. RuntimeMissingError without coremltools.
    """
    model, operations = open_package(path)
    description = model.get_spec().description
    if len(description.input) != 1 or description.input[0].type.WhichOneof("Type") != "imageType":
        found = ", ".join(feature.name for feature in description.input) or "nothing"
        raise ExportError(f"{path} takes {found}, not one image: this is not a package that edgeconvnext wrote.")
    constants: dict[str, Any] = {}
    steps: list[Step] = []
    for number, op in enumerate(operations):
        if op.op_type == "const":
            constants[op.outputs[0].name] = _constant(op.outputs[0].val)
            continue
        arguments = {name: _argument(value, constants, path) for name, value in op.inputs.items() if value is not None}
        place = f"operation {number + 1}, {op.name!r}, of {path}"
        _check_known(op.op_type, arguments, place)
        outputs = tuple(_value(output, place) for output in op.outputs)
        if op.op_type in CONSTEXPR:
            constants[outputs[0].name] = CONSTEXPR[op.op_type](**arguments).to(outputs[0].dtype).float()
            continue
        if op.op_type == "reshape":
            arguments["shape"] = outputs[0].shape
        steps.append(Step(op.op_type, op.name, arguments, outputs))
    (image,) = operations[0].enclosing_block.inputs.values()
    return Program(_value(image, str(path)), tuple(steps), tuple(feature.name for feature in description.output))


def _check_known(kind: str, arguments: Mapping[str, Any], place: str) -> None:
    """Raise ExportError for an operation that the evaluator would have to guess at."""
    if kind == CLASSIFY:
        return
    operator = OPERATORS.get(kind) or CONSTEXPR.get(kind)
    if operator is None:
        raise ExportError(
            f"The reference evaluator does not know the operator {kind!r} ({place}), so this package cannot be checked "
            "away from a Mac. Validate it on macOS, where Core ML itself runs it."
        )
    unknown = sorted(set(arguments) - parameters(operator))
    if unknown:
        raise ExportError(
            f"The reference evaluator does not know the argument {unknown[0]!r} of {kind} ({place}). Validate the package "
            "on macOS, where Core ML itself runs it."
        )


def _argument(value: Any, constants: Mapping[str, Any], path: Path) -> Any:
    """Return an argument's constant, or the name of what computes it."""
    if isinstance(value, list | tuple):
        return tuple(_argument(part, constants, path) for part in value)
    return constants[value.name] if value.name in constants else _value(value, str(path))


def _constant(value: Any) -> Any:
    """Return a constant of the file as tensor; whole numbers (axes, sizes) and text as Python's own."""
    if isinstance(value, list | tuple):
        return tuple(_constant(part) for part in value)
    if isinstance(value, str | bool | int | float):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "US":
        return tuple(str(part) for part in array.tolist()) if array.ndim else str(array)
    if array.dtype.kind == "b" or array.dtype in (np.int32, np.uint32, np.int64):
        return tuple(array.tolist()) if array.ndim == 1 else array.item() if array.ndim == 0 else torch.tensor(array)
    # Fewer bits than a byte are bytes with a note in numpy's type, which torch does not take.
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(array.astype(np.int8 if array.dtype.kind == "i" else np.uint8))


def _value(variable: Any, place: str) -> Value:
    from coremltools.converters.mil.mil import types

    if types.is_dict(variable.sym_type) or types.is_str(variable.sym_type):
        return Value(variable.name, None, ())
    kind = types.builtin_to_string(variable.dtype)
    if kind not in _TYPES:
        raise ExportError(
            f"{variable.name} has the type {kind}, which the reference evaluator does not know ({place}). Validate the package on "
            "macOS, where Core ML itself runs it."
        )
    return Value(variable.name, _TYPES[kind], tuple(int(size) for size in variable.shape or ()))
