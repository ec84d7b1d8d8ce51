"""IR files, OpenVINO's own format: a folder with model.xml, the graph, and model.bin, its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnx.file_ends import FileEnds
from edgeconvnext.backends.onnx.write import refuse_too_large
from edgeconvnext.backends.onnxruntime.write import build_laid_out
from edgeconvnext.backends.openvino.package import core, import_openvino
from edgeconvnext.errors import ExportError
from edgeconvnext.received import require_regular_file
from edgeconvnext.targets import LayoutSection

if TYPE_CHECKING:
    from torch.export import ExportedProgram

GRAPH = "model.xml"
OPSET = 21
SECTION = "edgeconvnext"
"""Where the file holds this package's metadata: rt_info of the model."""


def export_ir(
    program: ExportedProgram,
    path: Path,
    *,
    metadata: ArtifactMetadata,
    layout: LayoutSection,
    ends: FileEnds = FileEnds(),  # noqa: B008  (frozen)
) -> Path:
    """Write a program, float or with Q/DQ, as a folder `path` with an IR file, and return `path`.

    The graph goes through ONNX in the forms of `layout`, with `ends`. Floats stay float32, so that the file computes what was
    simulated. Its shape is that of one image, unless its size is free. Reshape a model of one size before it is compiled: with
    its batch made free, the CPU plugin of OpenVINO 2026.4.1 computes quantised networks wrongly. Of free sizes it does not.
    """
    import onnx_ir

    openvino = import_openvino()
    model = build_laid_out(program, opset=OPSET, outputs=metadata.outputs, layout=layout, ends=ends)
    refuse_too_large(model, path.name)
    converted = core().read_model(onnx_ir.to_proto(model).SerializeToString())
    shape = list(converted.inputs[0].partial_shape)
    if all(axis.is_static for axis in shape[1:]):
        converted.reshape([1, *(axis.get_length() for axis in shape[1:])])
    _number_names(converted)
    for key, text in metadata.properties().items():
        converted.set_rt_info(text, [SECTION, key])
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    openvino.save_model(converted, path / GRAPH, compress_to_fp16=False)
    return path


def read_ir(path: Path) -> tuple[Any, ArtifactMetadata]:
    """Read an IR file that `export_ir` wrote; return OpenVINO's model and the metadata.

    path: the folder, or its model.xml. Raises ExportError for any other file.
    """
    openvino = import_openvino()
    graph = path / GRAPH if path.is_dir() else path
    for file in (graph, graph.with_suffix(".bin")):
        require_regular_file(file, ExportError)
    try:
        model = core().read_model(graph)
    except RuntimeError as error:
        raise ExportError(
            f"{graph} cannot be read by OpenVINO {openvino.__version__}: {_last_line(error)}. Export the model again."
        ) from error
    if not model.has_rt_info([SECTION]):
        raise ExportError(
            f"{graph} was not written by edgeconvnext: it does not say how images are prepared. Name model.openvino of a run "
            "directory."
        )
    section = model.get_rt_info([SECTION])
    properties = {key: str(text) for key, text in getattr(section, "value", section).items()}
    return model, ArtifactMetadata.from_properties(properties)


def _number_names(model: Any) -> None:
    """Name operators by their place where OpenVINO numbered them by how many it made before: equal networks are equal bytes."""
    for index, operator in enumerate(model.get_ordered_ops()):
        kind, _, number = operator.get_friendly_name().rpartition("_")
        if kind.isalnum() and kind[:1].isupper() and number.isdecimal():
            operator.set_friendly_name(f"{kind}_at_{index}")


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2].rstrip(".")
