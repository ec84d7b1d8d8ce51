"""Write the artifact of a target, with what proves it here: parsers, checkers, and runtimes that can stand in for the target's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.export import ExportedProgram

from edgeconvnext.errors import RuntimeMissingError
from edgeconvnext.export.metadata import ArtifactMetadata
from edgeconvnext.model.input_size import Size
from edgeconvnext.report.schema import ExportCheck
from edgeconvnext.targets import Target

if TYPE_CHECKING:
    from edgeconvnext.export.tensorrt import EngineBuild

ARTIFACTS = {
    "onnx": "model.onnx",
    "tensorrt-onnx": "model.onnx",
    "tensorrt-rtx": "model.engine",
    "tensorrt": "model.engine",
    "coreml": "model.mlpackage",
}
FLOAT_ONNX = "baseline/model_fp32.onnx"
FLOAT16_ONNX = "baseline/model_fp16.onnx"
LAYER_LIST = "layers.csv"


@dataclass(frozen=True)
class Exported:
    """checks: proofs that ran. missing: proofs that did not, with the reason."""

    checks: list[ExportCheck]
    missing: dict[str, str]


@dataclass(frozen=True)
class Programs:
    """quantized, floating: float32 graphs with and without Q/DQ, both for the target's input.

    sizes: smallest, typical and largest height and width where these are free, else (). images: a few real images as that input,
    (N, C, H, W). simulated: the quantised graph's outputs for them, in the target's float
    type, (N, ...) each.
    """

    quantized: ExportedProgram
    floating: ExportedProgram
    images: np.ndarray
    simulated: tuple[np.ndarray, ...]
    sizes: tuple[Size, ...] = ()

    def with_batch(self, batch: int) -> Programs:
        """Return the same graphs with a batch axis of exactly `batch`."""
        from edgeconvnext.quantize.program import with_batch

        return replace(self, quantized=with_batch(self.quantized, batch), floating=with_batch(self.floating, batch))


def require_target(target: Target) -> None:
    """Raise RuntimeMissingError before any work where the exporter of `target` cannot run on this machine."""
    if target.exporter == "tensorrt":
        from edgeconvnext.export.tensorrt import require_gpu

        require_gpu()
    elif target.exporter == "tensorrt-rtx":
        from edgeconvnext.export.tensorrt import require_runtime

        require_runtime("tensorrt_rtx")
    elif target.exporter == "coreml":
        from edgeconvnext.export.coreml import deployment_target
        from edgeconvnext.export.coreml_runtime import import_coremltools

        assert target.minimum_os is not None
        deployment_target(import_coremltools(), target.minimum_os)


def write_artifact(target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
    """Write `ARTIFACTS[target.exporter]` and its float baseline into `folder`."""
    if not target.input.dynamic_batch:
        programs = programs.with_batch(target.input.batch[0])
    if target.exporter == "onnx":
        return _write_onnx(target, programs, folder, metadata)
    if target.exporter == "coreml":
        return _write_coreml(target, programs, folder, metadata)
    return _write_tensorrt(target, programs, folder, metadata)


@contextmanager
def kit_baseline(
    target: Target, folder: Path, floating: Callable[[], ExportedProgram], metadata: ArtifactMetadata
) -> Iterator[Path]:
    """Give the float form that a device is to compare the artifact with: of the run in `folder`, or made for the block.

    Core ML's has no other use than the comparison on a Mac, so that it is made here from the graph that `floating` returns.
    """
    if target.exporter != "coreml":
        yield folder / (FLOAT_ONNX if target.exporter == "onnx" else FLOAT16_ONNX)
        return
    from edgeconvnext.export.coreml import export_coreml
    from edgeconvnext.quantize.program import with_batch

    assert target.minimum_os is not None
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "model_fp16.mlpackage"
        program = with_batch(floating(), target.input.batch[0])
        yield export_coreml(program, package, metadata=metadata, minimum_os=target.minimum_os)


def _write_onnx(target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
    from edgeconvnext.export.onnx import export_onnx

    assert target.opset is not None
    model, baseline = folder / ARTIFACTS["onnx"], folder / FLOAT_ONNX
    baseline.parent.mkdir()
    for program, path in ((programs.quantized, model), (programs.floating, baseline)):
        export_onnx(program, path, opset=target.opset, metadata=metadata, layout=target.layout)
    return Exported([_stands_in(model, programs), _saturation_check(model, programs.images)], {})


def _saturation_check(model: Path, images: np.ndarray) -> ExportCheck:
    """Count int8 products that saturate on x86 without VNNI: a failure where this processor is one, else a warning."""
    from edgeconvnext.validate.fidelity import products_saturate, saturation

    layers = saturation(model, images)
    pairs, saturating = sum(layer.pairs for layer in layers), sum(layer.saturating for layer in layers)
    result = f"{saturating:,} of {pairs:,} int16 sums of two products saturate on x86 without VNNI"
    if saturating:
        worst = max(layers, key=lambda layer: layer.relative_error)
        here = "is such a one" if products_saturate() else "adds exactly, so no figure of this run shows it"
        result += (
            f", worst in {worst.layer} ({100 * worst.relative_error:.1f} % error); this processor {here}; "
            "range_bits = 7 under [quantize.weights] keeps the artifact exact everywhere"
        )
    return ExportCheck(name="x86 saturation", passed=not (saturating and products_saturate()), result=result)


def _write_tensorrt(target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
    from edgeconvnext.export.tensorrt import build_gpu_engine, build_rtx_engine
    from edgeconvnext.export.typed_onnx import export_typed_onnx
    from edgeconvnext.quantize.float16 import to_float16

    assert target.opset is not None
    model, baseline = folder / "model.onnx", folder / FLOAT16_ONNX
    baseline.parent.mkdir()
    export_typed_onnx(to_float16(programs.quantized), model, opset=target.opset, metadata=metadata)
    export_typed_onnx(to_float16(programs.floating), baseline, opset=target.opset, metadata=metadata)
    checks, missing = [_stands_in(model, programs)], {}
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


def _write_coreml(target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
    from edgeconvnext.export.coreml import export_coreml
    from edgeconvnext.export.coreml_package import check_weights, inspect_mlpackage

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


def _stands_in(model: Path, programs: Programs) -> ExportCheck:
    """Run the ONNX file in onnxruntime on real images and compare its outputs, the worst one, with the simulation's."""
    from edgeconvnext.validate.accuracy import logit_sqnr_db
    from edgeconvnext.validate.runners import OnnxRunner, in_fixed_batches

    runner = OnnxRunner(model)
    found = in_fixed_batches(runner.run, programs.images, runner.batch)
    decibels = min(logit_sqnr_db(*pair) for pair in zip(programs.simulated, found, strict=True))
    return ExportCheck(
        name="onnxruntime against the simulation",
        passed=decibels >= 30,
        result=f"{decibels:.1f} dB over {len(programs.images)} images in {runner.runtime}",
    )


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
