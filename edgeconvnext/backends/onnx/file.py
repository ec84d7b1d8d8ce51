"""ONNX files from anybody: what one may make a runtime read, checked before the runtime opens it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeconvnext.errors import ExportError
from edgeconvnext.escape import for_terminal
from edgeconvnext.received import reading, require_regular_file


def require_own_files(path: Path) -> None:
    """Raise ExportError where an ONNX file is no regular file, or keeps weights anywhere but in regular files of its own folder.

    A file that is no ONNX passes: whoever opens it says what is wrong with it.
    """
    import onnx
    from google.protobuf.message import DecodeError

    require_regular_file(path, ExportError)
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return
    folder = path.resolve().parent
    for location in sorted({location for tensor in _tensors(model) for location in _locations(tensor)}):
        with reading(path, ExportError):
            place = (path.parent / location).resolve()
        if Path(location).is_absolute() or folder not in place.parents:
            raise ExportError(
                f"{for_terminal(path)} keeps weights in {for_terminal(location)[:300]}, outside of its own folder. Such a file "
                "is not opened; ask whoever made it for one that holds its weights."
            )
        require_regular_file(place, ExportError)


def _locations(tensor: Any) -> Iterator[str]:
    if tensor.data_location == tensor.EXTERNAL:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of a model, those of attributes, subgraphs and functions too; walked without recursion."""
    left = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while left or nodes:
        if left:
            graph = left.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield attribute.t
            yield from attribute.tensors
            left += [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs
