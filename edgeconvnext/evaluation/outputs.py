"""How far the outputs of a quantised backbone are from FP32's: sums over images, so that no feature map has to be kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgeconvnext.errors import CheckpointError, EdgeConvNextError, ExportError, QuantizationError
from edgeconvnext.evaluation.runner import Outputs, Runner
from edgeconvnext.schema.report import OutputRecord
from edgeconvnext.sqnr import power_ratio_db

if TYPE_CHECKING:
    from edgeconvnext.data.loader import Batch


@dataclass
class _Ratio:
    """Signal and error power of one output over the images seen so far."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        wide = reference.astype(np.float64)
        self.signal += float(np.square(wide).sum())
        self.noise += float(np.square(wide - other).sum())

    @property
    def decibels(self) -> float:
        return power_ratio_db(self.signal, self.noise)


@dataclass
class _Sums:
    """The three ratios of one output. shape: of one image."""

    shape: tuple[int, ...] = ()
    simulated: _Ratio = field(default_factory=_Ratio)
    artifact: _Ratio = field(default_factory=_Ratio)
    fidelity: _Ratio = field(default_factory=_Ratio)


def compare_outputs(
    names: Sequence[str], reference: Runner, simulated: Runner, artifact: Runner | None, stream: Iterable[Batch]
) -> tuple[list[OutputRecord], int]:
    """Run all networks over one pass of the images; return a record for each output, and how many images there were.

    names: of the outputs, in the networks' order. The SQNR of an output is 10 log10(sum ref^2 / sum (ref - q)^2) over all
    images and values. Raises CheckpointError, QuantizationError or ExportError for outputs with NaN, Inf or another shape.
    """
    sums = {name: _Sums() for name in names}
    images = 0
    for batch in stream:
        pixels = np.ascontiguousarray(batch.images.numpy())
        images += len(pixels)
        expected = reference.outputs(pixels)
        _check("FP32 model", expected, expected, names, CheckpointError)
        simulation = simulated.outputs(pixels)
        _check("simulated quantised graph", simulation, expected, names, QuantizationError)
        found = None if artifact is None else artifact.outputs(pixels)
        if found is not None:
            _check("artifact", found, expected, names, ExportError)
        for index, kept in enumerate(sums.values()):
            kept.shape = expected[index].shape[1:]
            kept.simulated.add(expected[index], simulation[index])
            if found is not None:
                kept.artifact.add(expected[index], found[index])
                kept.fidelity.add(simulation[index], found[index])
    if not images:
        raise ValueError("the stream of images is empty")
    return [_record(name, kept, ran=artifact is not None) for name, kept in sums.items()], images


def worst(records: Sequence[OutputRecord], figure: str) -> float | None:
    """Return the lowest of one figure, such as "sqnr_db", over the outputs; None where it was not measured."""
    found: Mapping[str, float | None] = {record.name: getattr(record, figure) for record in records}
    measured = [value for value in found.values() if value is not None]
    return min(measured) if measured else None


def _record(name: str, sums: _Sums, *, ran: bool) -> OutputRecord:
    simulated = sums.simulated.decibels
    return OutputRecord(
        name=name,
        shape=sums.shape,
        sqnr_db=sums.artifact.decibels if ran else simulated,
        simulated_sqnr_db=simulated,
        fidelity_db=sums.fidelity.decibels if ran else None,
    )


def _check(
    producer: str, outputs: Outputs, expected: Outputs, names: Sequence[str], error: type[EdgeConvNextError]
) -> None:
    shapes, wanted = ([output.shape for output in network] for network in (outputs, expected))
    if shapes != wanted or len(outputs) != len(names):
        raise error(
            f"The {producer} returned outputs of shape {shapes} where the FP32 model's have {wanted} ({', '.join(names)}): it is "
            "not the same network. Export it again from this model."
        )
    for name, output in zip(names, outputs, strict=True):
        if not math.isfinite(float(output.sum(dtype=np.float64))) and not np.isfinite(output).all():
            raise error(
                f"The {producer} returns NaN or Inf in {name}. In float16 this is an overflow beyond 65504; use a target with "
                'float_type "float32", or check the checkpoint with `edgeconvnext inspect`.'
            )
