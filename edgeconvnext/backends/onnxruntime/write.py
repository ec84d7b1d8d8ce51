"""ONNX files in the forms that onnxruntime fuses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnx.file_ends import FileEnds, add_ends
from edgeconvnext.backends.onnx.write import build_onnx, save_onnx
from edgeconvnext.targets import LayoutSection

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.export import ExportedProgram


def export_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    opset: int,
    metadata: ArtifactMetadata,
    layout: LayoutSection = LayoutSection(),  # noqa: B008  (frozen)
    ends: FileEnds = FileEnds(),  # noqa: B008  (frozen)
) -> Path:
    """Write `program` as one ONNX file for onnxruntime, checked, with labels and preprocessing in its metadata.

    program: one input image, (N, C, H, W), and the outputs that `metadata` names; Q/DQ stays where it is, with int8 weights.
    opset: from 20 on GELU is one node, below it is x * (1 + erf(x / sqrt 2)) / 2, which TensorRT fuses back.
    Raises ExportError where the file would exceed what a single ONNX file can hold.
    """
    model = build_laid_out(program, opset=opset, outputs=metadata.outputs, layout=layout, ends=ends)
    return save_onnx(model, path, metadata=metadata)


def build_laid_out(
    program: ExportedProgram,
    *,
    opset: int,
    layout: LayoutSection,
    outputs: tuple[str, ...] = ("logits",),
    ends: FileEnds = FileEnds(),  # noqa: B008  (frozen)
) -> ir.Model:
    """Translate `program` to an ONNX graph in the forms of `layout`, with `ends`; names as `build_onnx` gives them."""
    from edgeconvnext.backends.onnxruntime.layout import lay_out

    model = build_onnx(program, opset=opset, outputs=outputs, rewrite=lambda model: lay_out(model, layout))
    add_ends(model, ends)
    return model
