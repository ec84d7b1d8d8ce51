"""Write .pte files for XNNPACK, and read them."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from edgeconvnext.backends.executorch.forms import in_xnnpack_forms
from edgeconvnext.backends.executorch.package import import_executorch, installed_version
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.errors import ExportError
from edgeconvnext.files import atomic_write
from edgeconvnext.received import parse_json, require_regular_file

METADATA = "edgeconvnext_metadata"
"""A method of the file that gives its metadata, JSON as bytes."""


def export_pte(program: ExportedProgram, path: Path, *, metadata: ArtifactMetadata) -> int:
    """Write `program`, of a fixed batch, as a .pte file; return how many delegates it became.

    Raises ExportError for a network that a ConvNeXt is not, RuntimeMissingError without executorch.
    """
    if path.suffix != ".pte":
        raise ExportError(f"An ExecuTorch file must be named *.pte; {path.name} is not.")
    exir = import_executorch("exir")
    partitioner = import_executorch("backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
    stored = torch.frombuffer(bytearray(json.dumps(metadata.properties()).encode()), dtype=torch.uint8)
    with _quiet():
        lowered = exir.to_edge_transform_and_lower(
            in_xnnpack_forms(program),
            partitioner=[partitioner()],
            compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
            constant_methods={METADATA: stored},
        )
        graph = lowered.exported_program().graph_module.graph
        content = lowered.to_executorch().buffer
    atomic_write(path, bytes(content))
    return sum("executorch_call_delegate" in str(node.target) for node in graph.nodes)


def open_pte(path: Path) -> Any:
    """Return the program of a file, its structure verified. Raises ExportError where it is missing or broken."""
    runtime = import_executorch("runtime")
    require_regular_file(path, ExportError)
    try:
        return runtime.Runtime.get().load_program(path, verification=runtime.Verification.InternalConsistency)
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"{path} cannot be read by ExecuTorch {installed_version()}: {_first_line(error)}. Export the model again."
        ) from error


def metadata_of(program: Any, path: Path) -> ArtifactMetadata:
    """Return what a file says of its labels and preprocessing. Raises ExportError for a file of somebody else."""
    if METADATA not in program.method_names:
        raise ExportError(
            f"{path} was not written by edgeconvnext: it does not say how images are prepared. Name model.pte of a run directory."
        )
    (stored,) = program.load_method(METADATA).execute([])
    content = parse_json(bytes(stored.to(torch.uint8).tolist()), str(path), ExportError)
    if not isinstance(content, dict):
        raise ExportError(f"{path} holds metadata that are no table. Export the model again.")
    return ArtifactMetadata.from_properties({str(key): str(text) for key, text in content.items()})


@contextmanager
def _quiet() -> Iterator[None]:
    """Lowering warns of what it is going to change anyway."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
