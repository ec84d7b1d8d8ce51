"""Write the artifact of a target, with what proves it here: parsers, checkers, and runtimes that can stand in for the target's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch.export import ExportedProgram

from edgeconvnext.backends.base import FLOAT16_ONNX, FLOAT_ONNX, Exported, Programs
from edgeconvnext.backends.coreml.export import _write_coreml
from edgeconvnext.backends.coreml.runner import CoreMLRunner
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnxruntime.export import _write_onnx
from edgeconvnext.backends.onnxruntime.runner import OnnxRunner
from edgeconvnext.backends.tensorrt.export import _write_tensorrt
from edgeconvnext.config_file import parse_toml
from edgeconvnext.errors import TargetError, nearest
from edgeconvnext.received import user_path
from edgeconvnext.targets import Target, target_files

if TYPE_CHECKING:
    pass


def require_target(target: Target) -> None:
    """Raise RuntimeMissingError before any work where the exporter of `target` cannot run on this machine."""
    if target.exporter == "tensorrt":
        from edgeconvnext.backends.tensorrt.engine import require_gpu

        require_gpu()
    elif target.exporter == "tensorrt-rtx":
        from edgeconvnext.backends.tensorrt.engine import require_runtime

        require_runtime("tensorrt_rtx")
    elif target.exporter == "coreml":
        from edgeconvnext.backends.coreml.convert import deployment_target
        from edgeconvnext.backends.coreml.runtime import import_coremltools

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
    from edgeconvnext.backends.coreml.convert import export_coreml
    from edgeconvnext.model.program import with_batch

    assert target.minimum_os is not None
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "model_fp16.mlpackage"
        program = with_batch(floating(), target.input.batch[0])
        yield export_coreml(program, package, metadata=metadata, minimum_os=target.minimum_os)


def artifact_runner(path: Path) -> OnnxRunner | CoreMLRunner:
    """Open an artifact in what runs it here. Raises ExportError for a file that is missing or broken."""
    return CoreMLRunner(path) if path.suffix == ".mlpackage" else OnnxRunner(path)


def load_target(name_or_path: str) -> Target:
    """Read a shipped target by name, or a user's own TOML file by path.

    Raises TargetError for an unknown name and ConfigFileError for a file that does not hold.
    """
    files = target_files()
    path = files.get(name_or_path)
    if path is None:
        path = user_path(name_or_path, TargetError)
        if path.suffix != ".toml":
            raise TargetError(
                f"There is no target {name_or_path!r}.{nearest(name_or_path, files)} "
                f"Known targets: {', '.join(files)}; a file of your own is named by its path, ending in .toml."
            )
        if not path.is_file():
            raise TargetError(f"There is no target file {path}. Known targets: {', '.join(files)}.")
    return parse_toml(path, Target)
