"""ONNX files from exported programs, float or with Q/DQ."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.errors import ExportError
from edgeconvnext.files import atomic_write
from edgeconvnext.received import require_regular_file

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from torch.export import ExportedProgram

# Protocol buffers end at 2 GiB; a little is left for the graph itself.
_LARGEST_FILE_BYTES = 2**31 - 2**20


def build_onnx(
    program: ExportedProgram,
    *,
    opset: int,
    outputs: tuple[str, ...] = ("logits",),
    rewrite: Callable[[ir.Model], None] | None = None,
) -> ir.Model:
    """Translate `program` to an ONNX graph with readable names: input image, the given outputs, free axis batch.

    opset: from 20 on GELU is one node, below it is x * (1 + erf(x / sqrt 2)) / 2, which TensorRT fuses back. rewrite: brings the
    graph, with its readable names, into the forms that a runtime takes best, in place; None leaves those of torch's exporter.
    """
    import onnx_ir.passes.common as passes
    import torch

    from edgeconvnext.backends.onnx import graph as onnx_graph
    from edgeconvnext.backends.onnx.quantized_ops import translations

    with _quiet_exporter():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=["image"],
            output_names=list(outputs),
            custom_translation_table=translations(),
            optimize=False,
            verbose=False,
        )
    if exported is None:
        raise AssertionError("torch.onnx.export returned nothing")
    model = exported.model
    _simplify(model)
    onnx_graph.fold_constant_casts(model.graph)
    onnx_graph.block_dequantize(model.graph)
    onnx_graph.store_linear_weights_transposed(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    onnx_graph.name_after_layers(model.graph)
    if rewrite is not None:
        shapes = [value.shape for value in model.graph.outputs]
        rewrite(model)
        for value, name, shape in zip(model.graph.outputs, outputs, shapes, strict=True):
            value.name, value.shape = name, shape  # a transpose may stand in front of a stage's output now
    onnx_graph.drop_origins(model)
    return model


def _simplify(model: ir.Model) -> None:
    """Inline functions and fold constants as the exporter would, but leave equal tensors apart.

    After folding, all LayerNorms of a width have the same scale and shift; sharing them would take each layer's name
    away, and some runtime options fail on shared initializers.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    passes.InlinePass()(model)
    optimizer.fold_constants(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.NameFixPass()(model)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hold back the exporter's remarks on packages it could also use and on its own deprecated calls."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        log.setLevel(level)


def save_onnx(model: ir.Model, path: Path, *, metadata: ArtifactMetadata) -> Path:
    """Check `model` and write it to `path` in one step, so that an interrupted run leaves no half file."""
    import onnx
    import onnx_ir as ir

    refuse_too_large(model, path.name)
    model.producer_name = "edgeconvnext"
    model.producer_version = metadata.edgeconvnext_version
    model.graph.name = metadata.model_name
    model.metadata_props.update(metadata.properties())
    proto: onnx.ModelProto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    atomic_write(path, proto.SerializeToString(deterministic=True))
    return path


def refuse_too_large(model: ir.Model, name: str) -> None:
    """Raise ExportError where the weights exceed what one ONNX file can hold. name: what the error calls the file."""
    weight_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weight_bytes > _LARGEST_FILE_BYTES:
        raise ExportError(
            f"{name} would hold {weight_bytes / 2**30:.1f} GiB of weights, and one ONNX file ends at 2 GiB. "
            "Export the quantised model, or a smaller variant of the network."
        )


def read_metadata(path: Path) -> ArtifactMetadata:
    """Return the metadata that `save_onnx` wrote into an ONNX file; raises ExportError for any other file."""
    import onnx
    from google.protobuf.message import DecodeError

    require_regular_file(path, ExportError)
    try:
        proto = onnx.load(path, load_external_data=False)
    except DecodeError:
        properties = {}
    else:
        properties = {prop.key: prop.value for prop in proto.metadata_props}
    if "preprocess" not in properties:
        raise ExportError(
            f"{path} is not an ONNX file written by edgeconvnext: it does not say how images are prepared. "
            "Name the model.onnx of a run directory."
        )
    return ArtifactMetadata.from_properties(properties)
