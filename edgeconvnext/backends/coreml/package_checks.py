"""What reading a written Core ML package proves."""

from __future__ import annotations

from pathlib import Path

from torch.export import ExportedProgram

from edgeconvnext.backends.coreml.package import check_weights, inspect_mlpackage
from edgeconvnext.schema.report import ExportCheck


def package_checks(quantized: ExportedProgram, package: Path, *, palettised: bool) -> list[ExportCheck]:
    """Load the package and compare its weights with the graph it was written from."""
    info, weights = inspect_mlpackage(package), check_weights(quantized, package)
    kinds = ", ".join(f"{entry.count} {entry.operator}" for entry in info.operators)
    types = ", ".join(f"{count} {kind}" for kind, count in info.weight_types.items())
    kind = "palettised" if palettised else "int8"
    return [
        ExportCheck(name="package loads", passed=True, result=f"operators: {kinds}; weights: {types}"),
        ExportCheck(
            name="weights equal the simulation's",
            passed=True,
            result=f"{weights.int8_layers} {kind} layers identical; scales within {weights.largest_scale_error:.1e}, "
            f"float weights within {weights.largest_float_error:.1e}",
        ),
    ]
