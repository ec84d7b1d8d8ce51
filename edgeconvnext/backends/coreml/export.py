"""Write model.mlpackage for Core ML."""

from __future__ import annotations

from pathlib import Path

from edgeconvnext.backends.base import ARTIFACTS, Exported, Programs
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.schema.report import ExportCheck
from edgeconvnext.targets import Target


def _write_coreml(target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
    from edgeconvnext.backends.coreml.convert import export_coreml
    from edgeconvnext.backends.coreml.package import check_weights, inspect_mlpackage

    assert target.minimum_os is not None
    package = folder / ARTIFACTS["coreml"]
    export_coreml(
        programs.quantized,
        package,
        metadata=metadata,
        minimum_os=target.minimum_os,
        palette_bits=target.quantize.weights.palette_bits,
    )
    info, weights = inspect_mlpackage(package), check_weights(programs.quantized, package)
    kinds = ", ".join(f"{entry.count} {entry.operator}" for entry in info.operators)
    types = ", ".join(f"{count} {kind}" for kind, count in info.weight_types.items())
    kind = "palettised" if target.quantize.weights.palette_bits else "int8"
    return Exported(
        [
            ExportCheck(name="package loads", passed=True, result=f"operators: {kinds}; weights: {types}"),
            ExportCheck(
                name="weights equal the simulation's",
                passed=True,
                result=f"{weights.int8_layers} {kind} layers identical; scales within {weights.largest_scale_error:.1e}, "
                f"float weights within {weights.largest_float_error:.1e}",
            ),
        ],
        {},
    )
