"""Run a MIL program on many images at once, with every intermediate result in the type that the program gives it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeconvnext.backends.coreml.mil.operators import OPERATORS
from edgeconvnext.backends.coreml.mil.program import CLASSIFY, Program, Step, Value, read_program
from edgeconvnext.errors import ExportError


@dataclass(frozen=True)
class Classified:
    """What `classify` gives: the most likely label of each image, and the probability of every label, (N, classes)."""

    labels: tuple[str, ...]
    probabilities: torch.Tensor


class Evaluator:
    """Computes what the package at `path` holds: the weights in the file, not those of the network it was made from.

    batch: images a call of `run` takes: any number (None) where the program keeps each image in a row of its own from input to
    outputs, as ConvNeXts do, else one.
    Raises ExportError for what cannot be read or is not known (see `read_program`).
    """

    def __init__(self, path: Path) -> None:
        self.program = read_program(path)
        self.path = path
        self.batch = None if all(map(_keeps_rows, self.program.steps)) else 1
        self._last_use = _last_use(self.program)

    @torch.inference_mode()
    def run(self, pixels: torch.Tensor, keep: Iterable[str] = ()) -> dict[str, Any]:
        """Return the outputs by name, and the intermediate results named in `keep`.

        pixels: whole numbers 0..255, (N, C, H, W), float32. Tensors come in the program's own types; "classLabel" and its
        probabilities as `Classified`. Raises ExportError for images of another size.
        """
        declared = self.program.image
        if tuple(pixels.shape[1:]) != declared.shape[1:]:
            raise ExportError(
                f"{self.path} takes images of shape {list(declared.shape[1:])}; these have {list(pixels.shape[1:])}. Give images "
                "of the resolution it was exported for."
            )
        kept = {*keep, *self.program.outputs}
        image = pixels.contiguous(memory_format=torch.channels_last)
        values: dict[str, Any] = {declared.name: image.to(declared.dtype)}
        for number, step in enumerate(self.program.steps):
            for output, value in zip(step.outputs, _compute(step, values), strict=True):
                values[output.name] = value
            for name in self._last_use[number]:
                if name not in kept:
                    values.pop(name, None)
        return {name: values[name] for name in values if name in kept}


def _compute(step: Step, values: dict[str, Any]) -> tuple[Any, ...]:
    arguments = {
        name: values[argument.name] if isinstance(argument, Value) else argument
        for name, argument in step.arguments.items()
    }
    if step.operator == CLASSIFY:
        probabilities, labels = arguments["probabilities"], arguments["classes"]
        classified = Classified(tuple(labels[int(index)] for index in probabilities.argmax(dim=1)), probabilities)
        return classified, classified
    result = OPERATORS[step.operator](**arguments)
    (output,) = step.outputs
    return (result if output.dtype is None else result.to(output.dtype),)


def _last_use(program: Program) -> list[list[str]]:
    """Return, for each step, the values that no later step reads."""
    last: dict[str, int] = {}
    for number, step in enumerate(program.steps):
        for value in (*step.inputs(), *step.outputs):
            last[value.name] = number
    return [[name for name, at in last.items() if at == number] for number in range(len(program.steps))]


def _keeps_rows(step: Step) -> bool:
    """Return whether the step's first axis stays the images', so that it computes the same for several of them."""
    if step.operator == CLASSIFY:
        return True
    if not step.inputs() or any(not value.shape or value.shape[0] != 1 for value in (*step.inputs(), *step.outputs)):
        return False
    arguments = step.arguments
    rank = len(step.inputs()[0].shape)
    if step.operator == "transpose":
        return bool(arguments["perm"][0] == 0)
    if step.operator in ("expand_dims", "squeeze"):
        axes = arguments.get("axes")
        return axes is not None and all(axis > 0 for axis in axes)
    if step.operator == "matmul":
        return rank > 2 or not (arguments.get("transpose_x") or isinstance(arguments["y"], Value))
    if step.operator.startswith("reduce_") or step.operator == "layer_norm":
        axes = arguments.get("axes")
        return axes is not None and all(axis % rank for axis in axes)
    return not (step.operator == "softmax" and arguments.get("axis", -1) % rank == 0)
