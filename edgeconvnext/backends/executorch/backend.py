"""Files for ExecuTorch's XNNPACK delegate."""

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
    Programs,
    RuntimePackage,
)
from edgeconvnext.backends.limits import Limits

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgeconvnext.backends.executorch.runner import ExecutorchRunner
    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.schema.report import ExportCheck
    from edgeconvnext.targets import Target

HERE = Path(__file__).parent


class Executorch(Backend):
    """One .pte file: int8 where the plan has it, float32 elsewhere, computed by XNNPACK."""

    name = "executorch"
    runtime = "executorch"
    artifact = "model.pte"
    baseline = "baseline/model_fp32.pte"
    suffixes = (".pte",)
    limits = Limits(
        float_type="float32",
        channel_multiple=8,
        weight_bits=(8,),
        activation_bits=(8,),
        free_sizes=False,
        largest_batch=1,
    )

    @property
    def packages(self) -> tuple[RuntimePackage, ...]:
        return (RuntimePackage("executorch", "writes and runs .pte files", "pip install 'edgeconvnext[executorch]'"),)

    def require(self, target: Target) -> None:
        from edgeconvnext.backends.executorch.package import import_executorch

        import_executorch("exir")
        import_executorch("runtime")

    def write(self, target: Target, program: ExportedProgram, path: Path, metadata: ArtifactMetadata) -> Path:
        self._write(target, program, path, metadata)
        return path

    def export(self, target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
        from edgeconvnext.backends.programs import against_simulation

        model, baseline = folder / self.artifact, folder / self.baseline
        baseline.parent.mkdir()
        delegates = self._write(target, programs.quantized, model, metadata)
        self._write(target, programs.floating, baseline, metadata)
        return Exported([against_simulation(self.runner(model), programs), _whole(delegates)], {})

    def runner(self, path: Path) -> ExecutorchRunner:
        from edgeconvnext.backends.executorch.runner import ExecutorchRunner

        return ExecutorchRunner(path)

    def metadata_of(self, path: Path) -> ArtifactMetadata:
        from edgeconvnext.backends.executorch.pte import metadata_of, open_pte

        return metadata_of(open_pte(path), path)

    def timed_runner(self, path: Path, threads: int) -> ExecutorchRunner:
        from edgeconvnext.backends.executorch.runner import ExecutorchRunner

        return ExecutorchRunner(path, threads)

    def input_of(self, path: Path) -> InputShape:
        from edgeconvnext.backends.executorch.runner import input_shape

        return input_shape(path)

    def latency(self, baseline: Path | None, artifact: Path, settings: LatencySettings) -> LatencyResult:
        from edgeconvnext.backends.latency import interleaved_latency

        return interleaved_latency(self.timed_runner, baseline, artifact, settings, {"delegate": "XNNPACK"})

    def installed(self) -> str:
        from edgeconvnext.backends.executorch.package import installed_version

        return f"ExecuTorch {installed_version()}"

    def kit_script(self) -> KitScript:
        return KitScript(
            "check.py",
            HERE / "on_device.py",
            needs="executorch and torch",
            does="checks model.pte and times it",
            imports="executorch",
        )

    def how_to_run(self) -> str:
        return (HERE / "how_to_run.md.jinja").read_text(encoding="utf-8")

    def _write(self, target: Target, program: ExportedProgram, path: Path, metadata: ArtifactMetadata) -> int:
        from edgeconvnext.backends.executorch.pte import export_pte
        from edgeconvnext.backends.programs import for_batch_of

        return export_pte(for_batch_of(target, program), path, metadata=metadata)


def _whole(delegates: int) -> ExportCheck:
    """Return the proof that nothing of the network runs outside of XNNPACK's delegate."""
    from edgeconvnext.schema.report import ExportCheck

    return ExportCheck(
        name="one delegate", passed=delegates == 1, result=f"XNNPACK takes the network in {delegates} delegate(s)"
    )


BACKENDS = (Executorch(),)
