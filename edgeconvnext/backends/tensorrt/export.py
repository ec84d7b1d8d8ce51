"""Write typed ONNX and engines for TensorRT and TensorRT-RTX."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgeconvnext.backends.base import ARTIFACTS, FLOAT16_ONNX, LAYER_LIST, Exported, Programs
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnxruntime.simulation_check import simulation_check
from edgeconvnext.errors import RuntimeMissingError
from edgeconvnext.schema.report import ExportCheck
from edgeconvnext.targets import Target

if TYPE_CHECKING:
    from edgeconvnext.backends.tensorrt.engine import EngineBuild


def _write_tensorrt(target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
    from edgeconvnext.backends.tensorrt.engine import build_gpu_engine, build_rtx_engine
    from edgeconvnext.backends.tensorrt.typed_onnx import export_typed_onnx
    from edgeconvnext.model.program_float16 import to_float16

    assert target.opset is not None
    model, baseline = folder / "model.onnx", folder / FLOAT16_ONNX
    baseline.parent.mkdir()
    export_typed_onnx(to_float16(programs.quantized), model, opset=target.opset, metadata=metadata)
    export_typed_onnx(to_float16(programs.floating), baseline, opset=target.opset, metadata=metadata)
    checks, missing = [simulation_check(model, programs)], {}
    batch, sizes = target.input.batch, programs.sizes
    if target.exporter == "tensorrt":
        checks.append(
            _engine_check(build_gpu_engine(model, folder / ARTIFACTS["tensorrt"], batch=batch, sizes=sizes), folder)
        )
    elif target.exporter == "tensorrt-rtx":
        checks.append(
            _engine_check(build_rtx_engine(model, folder / ARTIFACTS["tensorrt-rtx"], batch=batch, sizes=sizes), folder)
        )
    else:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                build = build_rtx_engine(model, Path(scratch) / "model.engine", batch=batch, sizes=sizes)
                checks.append(_engine_check(build, folder))
            except RuntimeMissingError as error:
                missing["checks.TensorRT-RTX"] = str(error)
    return Exported(checks, missing)


def _engine_check(build: EngineBuild, folder: Path) -> ExportCheck:
    """Report a build, and write the layers that its parser found to LAYER_LIST."""
    weighted = build.network.weighted()
    (folder / LAYER_LIST).write_text(build.network.as_csv(), encoding="utf-8")
    return ExportCheck(
        name=build.network.runtime.rpartition(" ")[0],
        passed=True,
        result=f"{build.network.runtime} parses and builds it: {len(build.network.layers)} layers ({LAYER_LIST}), "
        f"{sum(layer.quantized for layer in weighted)} of {len(weighted)} convs and linears in INT8, "
        f"{build.size_bytes / 2**20:.1f} MiB in {build.seconds:.1f} s",
    )
