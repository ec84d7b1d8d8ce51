"""The ends of an ONNX file: pixels as image files hold them at its input, probabilities beside its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeconvnext.backends.metadata import ArtifactMetadata
    from edgeconvnext.targets import Target

PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class FileEnds:
    """pixels: the input is uint8. probabilities: the operator that makes them of the logits; None: the file has none."""

    pixels: bool = False
    probabilities: Literal["Softmax", "Sigmoid"] | None = None


def ends_of(target: Target, metadata: ArtifactMetadata) -> FileEnds:
    """Return the ends that a target asks for; logits that decide one by one become probabilities one by one."""
    single = metadata.notes.get("task", "single-label") == "single-label"
    wanted = target.output.probabilities and metadata.outputs == ("logits",)
    return FileEnds(target.input.type == "uint8", ("Softmax" if single else "Sigmoid") if wanted else None)


def add_ends(model: ir.Model, ends: FileEnds) -> None:
    """Put the ends on a graph with one float input and float logits, (N, classes), in place."""
    import onnx_ir as ir

    graph = model.graph
    if ends.pixels:
        image = graph.inputs[0]
        pixels = ir.Value(name=image.name, shape=image.shape, type=ir.TensorType(ir.DataType.UINT8))
        cast = ir.node("Cast", [pixels], attributes={"to": ir.DataType.FLOAT})
        values = cast.outputs[0]
        values.name, values.shape, values.type = f"{image.name}_values", image.shape, image.type
        ir.convenience.replace_all_uses_with(image, values)
        graph.inputs[0] = pixels
        graph.insert_before(graph[0], cast)
    if ends.probabilities is not None:
        logits = graph.outputs[0]
        node = ir.node(ends.probabilities, [logits], attributes={"axis": -1} if ends.probabilities == "Softmax" else {})
        shares = node.outputs[0]
        shares.name, shares.shape, shares.type = PROBABILITIES, logits.shape, logits.type
        graph.append(node)
        graph.outputs.append(shares)
