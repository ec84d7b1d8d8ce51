"""Typed ONNX for boards with TensorRT, and engines of TensorRT and TensorRT-RTX."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgeconvnext.backends.base import Backend, Exported, InputShape, KitScript, Programs, RuntimePackage
from edgeconvnext.backends.limits import Limits
from edgeconvnext.errors import RuntimeMissingError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.schema.report import ExportCheck
    from edgeconvnext.targets import Target

HERE = Path(__file__).parent
TYPED_ONNX = "model.onnx"

_SENTENCES = {
    "zero_points": 'TensorRT takes int8 without zero points only; set quantize.activations.scheme = "symmetric"',
    "opsets": "opset {opset} writes GELU as one node, which TensorRT 10.3 does not know; set opset = {first_opset}",
    "activation_bits": (
        "{layer} asks for 16-bit activations, and TensorRT has 8-bit ones only. Leave the layer float (float16) in a plan file "
        "instead: `float = true`."
    ),
    "weight_bits": (
        "{layer} asks for 4-bit weights, and TensorRT multiplies 8-bit activations with 8-bit weights only. Use 8."
    ),
}


class _TensorRT(Backend):
    """What the three have in common: typed ONNX, INT8 without zero points beside FP16, in blocks of 32 channels."""

    baseline = "baseline/model_fp16.onnx"
    limits = Limits(
        float_type="float16",
        channel_multiple=32,
        weight_bits=(8,),
        activation_bits=(8,),
        zero_points=False,
        ends=True,
        opsets=(19,),
        sentences=_SENTENCES,
    )
    device_package = "tensorrt"

    def write(self, target: Target, program: ExportedProgram, path: Path, metadata: ArtifactMetadata) -> Path:
        from edgeconvnext.backends.onnx.file_ends import ends_of
        from edgeconvnext.backends.programs import for_batch_of
        from edgeconvnext.backends.tensorrt.typed_onnx import export_typed_onnx
        from edgeconvnext.model.program_float16 import to_float16

        assert target.opset is not None
        half = to_float16(for_batch_of(target, program))
        ends = ends_of(target, metadata)
        return export_typed_onnx(half, path, opset=target.opset, metadata=metadata, ends=ends)

    def export(self, target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
        from edgeconvnext.backends.onnx.sparse import sparsity_checks
        from edgeconvnext.backends.onnxruntime.runner import OnnxRunner
        from edgeconvnext.backends.programs import against_simulation

        model, baseline = folder / TYPED_ONNX, folder / self.baseline
        baseline.parent.mkdir()
        self.write(target, programs.quantized, model, metadata)
        self.write(target, programs.floating, baseline, metadata)
        checks, missing = [against_simulation(OnnxRunner(model), programs)], {}
        try:
            checks.append(self.build(target, programs, model, folder))
        except _NoParser as error:
            missing["checks.TensorRT-RTX"] = str(error)
        return Exported([*checks, *sparsity_checks(programs.sparse, model)], missing)

    def build(self, target: Target, programs: Programs, model: Path, folder: Path) -> ExportCheck:
        """Build an engine from the typed ONNX file, which proves that it is read; raises _NoParser where nothing here reads it."""
        raise NotImplementedError

    def kit_script(self) -> KitScript:
        built_there = "engines" if self.device_package == "tensorrt" else "FP16 engine"
        return KitScript(
            "build_and_check.py",
            HERE / "on_device.py",
            needs=self.device_package,
            does=f"builds the {built_there}, checks the INT8 one and times it",
            imports=self.device_package,
            builds_engines=True,
            saves=r"layers\.json|[\w-]+\.engine",
        )

    def input_of(self, path: Path) -> InputShape:
        raise RuntimeMissingError(
            f"{path} cannot be timed on this machine: an engine runs on the NVIDIA GPU it was built for; use "
            f"device/{self.kit_script().name} there."
        )


class _NoParser(Exception):
    """Nothing on this machine reads the file as TensorRT would."""


class TensorRTOnnx(_TensorRT):
    """Typed ONNX, from which a board builds its engine. TensorRT-RTX stands in for the board's parser where it is installed."""

    name = "tensorrt-onnx"
    runtime = "tensorrt"
    artifact = TYPED_ONNX
    not_run = "on the board: not measured; run device/build_and_check.py there, or edgeconvnext remote"
    not_timed = not_run

    def build(self, target: Target, programs: Programs, model: Path, folder: Path) -> ExportCheck:
        from edgeconvnext.backends.tensorrt.engine import build_rtx_engine
        from edgeconvnext.backends.tensorrt.engine_check import engine_check

        with tempfile.TemporaryDirectory() as scratch:
            engine = Path(scratch) / "model.engine"
            try:
                built = build_rtx_engine(model, engine, batch=target.input.batch, sizes=programs.sizes)
            except RuntimeMissingError as error:
                raise _NoParser(str(error)) from error
            return engine_check(built, folder)

    def how_to_run(self) -> str:
        from edgeconvnext.backends.onnxruntime.backend import OnnxRuntime

        board = (HERE / "how_to_run_on_board.md.jinja").read_text(encoding="utf-8")
        return board + OnnxRuntime().how_to_run()


class TensorRTRtx(_TensorRT):
    """An engine of TensorRT-RTX, which builds without a GPU."""

    name = "tensorrt-rtx"
    runtime = "tensorrt-rtx"
    artifact = "model.engine"
    not_run = "a TensorRT-RTX engine needs an NVIDIA RTX GPU to run, and this machine has none"
    not_timed = not_run
    device_package = "tensorrt_rtx"

    @property
    def packages(self) -> tuple[RuntimePackage, ...]:
        return (
            RuntimePackage(
                "tensorrt-rtx-cu13",
                "checks the ONNX of target jetson and builds engines of target rtx; running one needs an RTX GPU",
                "TensorRT-RTX is made for Linux and Windows"
                if sys.platform == "darwin"
                else "pip install 'edgeconvnext[rtx]'",
            ),
        )

    def require(self, target: Target) -> None:
        from edgeconvnext.backends.tensorrt.engine import require_runtime

        require_runtime("tensorrt_rtx")

    def build(self, target: Target, programs: Programs, model: Path, folder: Path) -> ExportCheck:
        from edgeconvnext.backends.tensorrt.engine import build_rtx_engine
        from edgeconvnext.backends.tensorrt.engine_check import engine_check

        engine = folder / self.artifact
        return engine_check(build_rtx_engine(model, engine, batch=target.input.batch, sizes=programs.sizes), folder)

    def how_to_run(self) -> str:
        return _engine_card("tensorrt_rtx", "TensorRT-RTX version it was built with")


class TensorRT(_TensorRT):
    """An engine of TensorRT, built on the GPU that runs it."""

    name = "tensorrt"
    runtime = "tensorrt"
    artifact = "model.engine"
    suffixes = (".engine",)
    not_run = "device/build_and_check.py checks and times the engine on this GPU; run it on this machine"
    not_timed = not_run

    @property
    def packages(self) -> tuple[RuntimePackage, ...]:
        return (
            RuntimePackage(
                "tensorrt",
                "builds and runs engines on the NVIDIA GPU of this machine (target gpu)",
                "TensorRT is made for NVIDIA GPUs on Linux and Windows"
                if sys.platform == "darwin"
                else "pip install 'edgeconvnext[tensorrt]'",
            ),
        )

    def require(self, target: Target) -> None:
        from edgeconvnext.backends.tensorrt.engine import require_gpu

        require_gpu()

    def build(self, target: Target, programs: Programs, model: Path, folder: Path) -> ExportCheck:
        from edgeconvnext.backends.tensorrt.engine import build_gpu_engine
        from edgeconvnext.backends.tensorrt.engine_check import engine_check

        engine = folder / self.artifact
        return engine_check(build_gpu_engine(model, engine, batch=target.input.batch, sizes=programs.sizes), folder)

    def how_to_run(self) -> str:
        return _engine_card("tensorrt", "GPU model and TensorRT version it was built with")


def _engine_card(module: str, belongs_to: str) -> str:
    """Fill in what the cards of the two kinds of engines differ in; the rest stays a template."""
    text = (HERE / "how_to_run_engine.md.jinja").read_text(encoding="utf-8")
    return text.replace("@module@", module).replace("@belongs_to@", belongs_to)


BACKENDS = (TensorRTOnnx(), TensorRTRtx(), TensorRT())
