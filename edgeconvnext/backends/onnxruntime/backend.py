"""ONNX files that run in onnxruntime on CPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

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
    from torch.fx import GraphModule

    from edgeconvnext.backends.block_outputs import LayerOutput
    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.backends.onnxruntime.runner import OnnxRunner
    from edgeconvnext.rewrite.float_timer import FloatTimer
    from edgeconvnext.targets import Target

HERE = Path(__file__).parent
TIMED_WITH = {"graph optimisations": "all", "inter-op threads": "1", "spinning between runs": "off"}


class OnnxRuntime(Backend):
    """INT8 ONNX in the forms that onnxruntime fuses. Widths are pruned to multiples of 8, the floats of an AVX register."""

    name = "onnx"
    runtime = "onnxruntime"
    artifact = "model.onnx"
    baseline = "baseline/model_fp32.onnx"
    suffixes = (".onnx",)
    limits = Limits(
        float_type="float32",
        channel_multiple=8,
        low_bits_opset=21,
        block_scales=True,
        layouts=True,
        ends=True,
        # Other convs are written as linears over patches.
        outputs_too=frozenset({"depthwise", "projection"}),
        opsets=tuple(range(19, 26)),
    )

    @property
    def packages(self) -> tuple[RuntimePackage, ...]:
        return (RuntimePackage("onnxruntime", "runs ONNX artifacts on this CPU", "pip install edgeconvnext"),)

    def write(self, target: Target, program: ExportedProgram, path: Path, metadata: ArtifactMetadata) -> Path:
        from edgeconvnext.backends.onnx.file_ends import ends_of
        from edgeconvnext.backends.onnxruntime.write import export_onnx
        from edgeconvnext.backends.programs import for_batch_of

        assert target.opset is not None
        return export_onnx(
            for_batch_of(target, program),
            path,
            opset=target.opset,
            metadata=metadata,
            layout=target.layout,
            ends=ends_of(target, metadata),
        )

    def export(self, target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
        from edgeconvnext.backends.onnx.sparse import sparsity_checks
        from edgeconvnext.backends.onnxruntime.runner import OnnxRunner
        from edgeconvnext.backends.onnxruntime.saturation_check import saturation_check
        from edgeconvnext.backends.programs import against_simulation

        model, baseline = folder / self.artifact, folder / self.baseline
        baseline.parent.mkdir()
        self.write(target, programs.quantized, model, metadata)
        self.write(target, programs.floating, baseline, metadata)
        checks = [against_simulation(OnnxRunner(model), programs), saturation_check(model, programs.images)]
        return Exported([*checks, *sparsity_checks(programs.sparse, model)], {})

    def checks_depend_on(self) -> dict[str, object]:
        from edgeconvnext.backends.onnxruntime.saturation import products_saturate

        return {"saturates": products_saturate()}

    def runner(self, path: Path) -> OnnxRunner:
        from edgeconvnext.backends.onnxruntime.runner import OnnxRunner

        return OnnxRunner(path)

    def metadata_of(self, path: Path) -> ArtifactMetadata:
        from edgeconvnext.backends.onnx.write import read_metadata

        return read_metadata(path)

    def timed_runner(self, path: Path, threads: int) -> OnnxRunner:
        from edgeconvnext.backends.onnxruntime.runner import OnnxRunner

        return OnnxRunner(path, threads)

    def input_of(self, path: Path) -> InputShape:
        from edgeconvnext.backends.onnxruntime.runner import input_shape

        return input_shape(path)

    def latency(self, baseline: Path | None, artifact: Path, settings: LatencySettings) -> LatencyResult:
        from edgeconvnext.backends.latency import interleaved_latency

        return interleaved_latency(self.timed_runner, baseline, artifact, settings, TIMED_WITH)

    def profile(self, path: Path, images: np.ndarray, threads: int) -> Profile:
        from edgeconvnext.backends.onnxruntime.profile import profile_onnx

        return profile_onnx(path, images, threads)

    def installed(self) -> str:
        return f"onnxruntime {version('onnxruntime')}"

    def float_timer(self) -> FloatTimer:
        from edgeconvnext.backends.onnxruntime import float_latency

        return cast("FloatTimer", float_latency)

    def kit_script(self) -> KitScript:
        return KitScript(
            "check.py",
            HERE / "on_device.py",
            needs="onnxruntime",
            does="checks model.onnx and times it",
            imports="onnxruntime",
        )

    def layer_outputs(
        self,
        simulation: Callable[[], GraphModule],
        artifact: Path,
        images: np.ndarray,
    ) -> tuple[LayerOutput, ...]:
        from edgeconvnext.backends.onnxruntime.layer_outputs import layer_outputs

        return layer_outputs(simulation(), artifact, images)

    def added_outputs(self, layers: Iterable[LayerOutput], present: frozenset[str]) -> bytes:
        from edgeconvnext.backends.onnxruntime.layer_outputs import added_outputs

        return added_outputs(layers, present)

    def how_to_run(self) -> str:
        return (HERE / "how_to_run.md.jinja").read_text(encoding="utf-8")


BACKENDS = (OnnxRuntime(),)
