"""IR files that run in OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeconvnext.backends.base import (
    Backend,
    Exported,
    InputShape,
    KitScript,
    LatencyResult,
    LatencySettings,
    Profile,
    Programs,
    RuntimePackage,
)
from edgeconvnext.backends.limits import Limits

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.backends.openvino.runner import OpenVinoRunner
    from edgeconvnext.targets import Target

HERE = Path(__file__).parent
TIMED_WITH = {"performance hint": "latency", "streams": "1", "float precision": "float32"}


class OpenVino(Backend):
    """A folder with an IR file: int8 where the plan has it, float32 elsewhere."""

    name = "openvino"
    runtime = "openvino"
    artifact = "model.openvino"
    baseline = "baseline/model_fp32.openvino"
    suffixes = (".openvino", ".xml")
    limits = Limits(
        float_type="float32",
        channel_multiple=8,
        weight_bits=(8,),
        activation_bits=(8,),
        layouts=True,
        ends=True,
    )

    @property
    def packages(self) -> tuple[RuntimePackage, ...]:
        return (RuntimePackage("openvino", "writes and runs IR files", "pip install 'edgeconvnext[openvino]'"),)

    def require(self, target: Target) -> None:
        from edgeconvnext.backends.openvino.package import import_openvino

        import_openvino()

    def write(self, target: Target, program: ExportedProgram, path: Path, metadata: ArtifactMetadata) -> Path:
        from edgeconvnext.backends.onnx.file_ends import ends_of
        from edgeconvnext.backends.openvino.ir import export_ir
        from edgeconvnext.backends.programs import for_batch_of

        return export_ir(
            for_batch_of(target, program),
            path,
            metadata=metadata,
            layout=target.layout,
            ends=ends_of(target, metadata),
        )

    def export(self, target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
        from edgeconvnext.backends.programs import against_simulation

        model, baseline = folder / self.artifact, folder / self.baseline
        baseline.parent.mkdir()
        self.write(target, programs.quantized, model, metadata)
        self.write(target, programs.floating, baseline, metadata)
        return Exported([against_simulation(self.runner(model), programs)], {})

    def runner(self, path: Path) -> OpenVinoRunner:
        from edgeconvnext.backends.openvino.runner import OpenVinoRunner

        return OpenVinoRunner(path)

    def metadata_of(self, path: Path) -> ArtifactMetadata:
        from edgeconvnext.backends.openvino.ir import read_ir

        return read_ir(path)[1]

    def timed_runner(self, path: Path, threads: int) -> OpenVinoRunner:
        from edgeconvnext.backends.openvino.runner import OpenVinoRunner

        return OpenVinoRunner(path, threads)

    def input_of(self, path: Path) -> InputShape:
        from edgeconvnext.backends.openvino.runner import input_shape

        return input_shape(path)

    def latency(self, baseline: Path | None, artifact: Path, settings: LatencySettings) -> LatencyResult:
        from edgeconvnext.backends.latency import interleaved_latency

        return interleaved_latency(self.timed_runner, baseline, artifact, settings, TIMED_WITH)

    def profile(self, path: Path, images: np.ndarray, threads: int) -> Profile:
        from edgeconvnext.backends.openvino.runner import OpenVinoRunner

        return OpenVinoRunner(path, threads, profile=True).profile(images)

    def installed(self) -> str:
        from edgeconvnext.backends.openvino.package import import_openvino

        return f"OpenVINO {import_openvino().__version__.partition('-')[0]}"

    def kit_script(self) -> KitScript:
        return KitScript(
            "check.py",
            HERE / "on_device.py",
            needs="openvino",
            does="checks model.openvino and times it; --device GPU or NPU for those",
            imports="openvino",
        )

    def how_to_run(self) -> str:
        return (HERE / "how_to_run.md.jinja").read_text(encoding="utf-8")


BACKENDS = (OpenVino(),)
