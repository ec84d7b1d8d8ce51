"""Core ML packages: run in Core ML on a Mac, and by the reference evaluator elsewhere."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeconvnext.backends.base import Backend, Exported, InputShape, KitScript, Programs, RuntimePackage
from edgeconvnext.backends.limits import Limits
from edgeconvnext.errors import RuntimeMissingError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgeconvnext.backends.coreml.runner import CoreMLRunner
    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.targets import Target

HERE = Path(__file__).parent

_SENTENCES = {
    "minimum_os": 'exporter "{exporter}" needs minimum_os, such as "iOS17"',
    "palette_system": (
        "Core ML has palettes with a scale per channel from iOS18 and macOS15 on; "
        'set minimum_os = "iOS18", or leave quantize.weights.palette_bits out'
    ),
    "ends": (
        'exporter "{exporter}" takes images and gives probabilities in any case; leave out --input uint8 and --probabilities'
    ),
    "value_range": (
        "a Core ML image input has one scale for all channels and cannot be normalised; "
        'set input.value_range = "0..255"'
    ),
    "batch": "a Core ML image input takes one image; set input.batch = [1, 1, 1]",
    "free_sizes": (
        "Target {target} writes Core ML packages of one input size. Leave out --sizes, and export one package for each size with "
        "--resolution."
    ),
    "low_bits_system": (
        "{layer} asks for 4-bit weights, which Core ML has from iOS18 and macOS15 on; target {target} is for {minimum_os}. Set "
        'minimum_os = "iOS18" in a target file of your own.'
    ),
}


class CoreML(Backend):
    """An .mlpackage that takes one image; int8 or palettised weights beside float16. 16-bit activations are float16."""

    name = "coreml"
    runtime = "coreml"
    artifact = "model.mlpackage"
    baseline = "model_fp16.mlpackage"
    suffixes = (".mlpackage",)
    not_timed = "Core ML can be timed on an Apple device only"
    limits = Limits(
        float_type="float16",
        channel_multiple=16,
        palettes=True,
        value_ranges=("0..1", "0..255"),
        largest_batch=1,
        free_sizes=False,
        systems=("iOS17", "iOS18", "macOS14", "macOS15"),
        systems_without_low_bits=("iOS17", "macOS14"),
        sentences=_SENTENCES,
    )

    @property
    def packages(self) -> tuple[RuntimePackage, ...]:
        does = (
            "converts and runs .mlpackage"
            if sys.platform == "darwin"
            else "converts to .mlpackage, and reads it for the reference evaluator; Core ML itself needs macOS"
        )
        return (RuntimePackage("coremltools", does, "pip install 'edgeconvnext[coreml]'"),)

    def require(self, target: Target) -> None:
        from edgeconvnext.backends.coreml.convert import deployment_target
        from edgeconvnext.backends.coreml.runtime import import_coremltools

        assert target.minimum_os is not None
        deployment_target(import_coremltools(), target.minimum_os)

    def write(self, target: Target, program: ExportedProgram, path: Path, metadata: ArtifactMetadata) -> Path:
        from edgeconvnext.backends.programs import for_batch_of

        return self._write(target, for_batch_of(target, program), path, metadata)

    def export(self, target: Target, programs: Programs, folder: Path, metadata: ArtifactMetadata) -> Exported:
        from edgeconvnext.backends.coreml.package_checks import package_checks
        from edgeconvnext.backends.programs import for_batch_of

        quantized = for_batch_of(target, programs.quantized)
        package = self._write(target, quantized, folder / self.artifact, metadata)
        palettised = target.quantize.weights.palette_bits is not None
        return Exported(package_checks(quantized, package, palettised=palettised), {})

    def runner(self, path: Path) -> CoreMLRunner:
        from edgeconvnext.backends.coreml.runner import CoreMLRunner

        return CoreMLRunner(path)

    def metadata_of(self, path: Path) -> ArtifactMetadata:
        from edgeconvnext.backends.coreml.package import package_metadata

        return package_metadata(path)

    def input_of(self, path: Path) -> InputShape:
        raise RuntimeMissingError(f"{path} cannot be timed on this machine: Core ML runs on macOS and iOS only.")

    def kit_script(self) -> KitScript:
        return KitScript(
            "check.py",
            HERE / "on_device.py",
            needs="coremltools and pillow on macOS",
            does="checks the package and times it",
            imports="coremltools",
            for_classifiers=(HERE / "classify.swift",),
        )

    @contextmanager
    def kit_baseline(
        self,
        target: Target,
        folder: Path,
        floating: Callable[[], ExportedProgram],
        metadata: ArtifactMetadata,
    ) -> Iterator[Path]:
        """Make the float16 package for the block: it has no other use than the comparison on a Mac."""
        with tempfile.TemporaryDirectory() as scratch:
            yield self.write(target, floating(), Path(scratch) / self.baseline, metadata)

    def how_to_run(self) -> str:
        return (HERE / "how_to_run.md.jinja").read_text(encoding="utf-8")

    def _write(self, target: Target, program: ExportedProgram, path: Path, metadata: ArtifactMetadata) -> Path:
        from edgeconvnext.backends.coreml.convert import export_coreml

        assert target.minimum_os is not None
        return export_coreml(
            program,
            path,
            metadata=metadata,
            minimum_os=target.minimum_os,
            palette_bits=target.quantize.weights.palette_bits,
        )


BACKENDS = (CoreML(),)
