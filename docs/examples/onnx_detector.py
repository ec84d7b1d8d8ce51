"""The INT8 stage outputs of a run, feeding a float detector head: two ONNX files in a row, or merged into one.

    python docs/examples/onnx_detector.py RUN centre_head.pth detector.onnx

RUN is a directory that `edgeconvnext export --target onnx --head features` wrote; the head is what fpn.py trained.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import onnx
import torch
from fpn import CentreHead
from onnx import compose


def head_file(head: CentreHead, backbone: onnx.ModelProto) -> onnx.ModelProto:
    """Return the head as an ONNX file whose inputs are called as the backbone's outputs, and of their sizes."""
    outputs = backbone.graph.output
    names = [output.name for output in outputs]
    shapes = [[dim.dim_value or 1 for dim in output.type.tensor_type.shape.dim] for output in outputs]
    batch = torch.export.Dim("batch", min=1, max=32)
    examples = tuple(torch.zeros(2, *shape[1:]) for shape in shapes)
    exported = torch.onnx.export(
        head.eval(),
        examples,
        dynamo=True,
        opset_version=backbone.opset_import[0].version,
        input_names=names,
        output_names=["heatmap"],
        dynamic_shapes=(tuple({0: batch} for _ in names),),
        verbose=False,
    )
    assert exported is not None
    buffer = io.BytesIO()
    exported.save(buffer)
    return onnx.load_from_string(buffer.getvalue())


def detector_file(backbone: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    """Merge both into one file, from image to heatmap; Q/DQ nodes stay as they are."""
    head = compose.add_prefix(head, "head/", rename_inputs=False, rename_outputs=False)
    head.ir_version = backbone.ir_version
    names = [(output.name, output.name) for output in backbone.graph.output]
    backbone = compose.add_prefix(backbone, "backbone/", rename_inputs=False, rename_outputs=False)
    merged = compose.merge_models(backbone, head, io_map=names)
    onnx.checker.check_model(merged, full_check=True)
    return merged


if __name__ == "__main__":
    run, weights, output = map(Path, sys.argv[1:4])
    features = onnx.load(run / "model.onnx")
    widths = tuple(value.type.tensor_type.shape.dim[1].dim_value for value in features.graph.output)
    detector = CentreHead(widths)
    detector.load_state_dict(torch.load(weights, weights_only=True))
    onnx.save(detector_file(features, head_file(detector, features)), output)
    print(f"written: {output}")
