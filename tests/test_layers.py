"""No import runs upwards, and no files import each other in a circle: also not inside functions or for type checkers only."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

LAYERS = (
    ("__main__",),
    ("cli",),
    ("",),  # edgeconvnext itself, which hands out the functions of `api`
    ("api",),
    ("commands",),
    ("pipeline",),
    ("ssh", "tuning", "report"),
    ("options",),
    ("train",),
    ("prediction",),
    ("backends",),
    ("quantization",),
    ("evaluation",),
    ("rewrite",),
    ("run",),
    ("model",),
    ("schema",),
    ("data",),
    (
        "axis",
        "choices",
        "config_file",
        "decisions",
        "errors",
        "escape",
        "files",
        "machine",
        "memory",
        "progress",
        "received",
        "resources",
        "sqnr",
        "targets",
        "tensor_header",
    ),
)
"""From high to low; what shares a line may not import each other, but for base modules, the last line."""

LAYERS_OF_BACKENDS = (
    ("kit", "processes"),  # kits are written, and files timed, for any backend: they ask the registry
    ("timed_process",),
    ("",),  # the registry, which loads the runtimes by name
    ("tensorrt", "coreml", "triton", "openvino", "executorch"),
    ("onnxruntime",),
    ("onnx",),
    ("device", "latency", "programs", "channels_first"),
    ("base",),
    ("block_outputs", "constants", "limits", "metadata"),
)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("edgeconvnext", cache_dir=None, exclude_type_checking_imports=False)


def imports(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """Return (file, imported file) as dotted names, in order."""
    return sorted(
        (module, imported) for module in graph.modules for imported in graph.find_modules_directly_imported_by(module)
    )


def part(module: str, package: str) -> str:
    """Return the name right below `package` that `module` belongs to; "" for `package` itself."""
    return module.removeprefix(package).removeprefix(".").partition(".")[0]


def unplaced(graph: grimp.ImportGraph, package: str, layers: tuple[tuple[str, ...], ...]) -> set[str]:
    """Return what stands in `package` but in no layer, or in a layer but not in `package`."""
    inside = {part(module, package) for module in graph.modules if f"{module}.".startswith(f"{package}.")}
    return inside ^ {name for layer in layers for name in layer}


def upward(graph: grimp.ImportGraph, package: str, layers: tuple[tuple[str, ...], ...]) -> list[str]:
    """Return a line for each import between parts of `package` that does not lead to a lower layer."""
    rank = {name: -number for number, layer in enumerate(layers) for name in layer}
    lines = []
    for module, imported in imports(graph):
        if not all(f"{name}.".startswith(f"{package}.") for name in (module, imported)):
            continue
        above, below = part(module, package), part(imported, package)
        base = layers[-1]
        if above != below and rank[below] >= rank[above] and not (above in base and below in base):
            details = graph.get_import_details(importer=module, imported=imported)
            lines += [f"{module}:{detail['line_number']} imports {imported}" for detail in details]
    return lines


def test_every_package_and_module_has_its_layer(graph: grimp.ImportGraph) -> None:
    assert not unplaced(graph, "edgeconvnext", LAYERS)
    assert not unplaced(graph, "edgeconvnext.backends", LAYERS_OF_BACKENDS)


def test_no_import_runs_upwards_between_packages(graph: grimp.ImportGraph) -> None:
    assert upward(graph, "edgeconvnext", LAYERS) == []


def test_no_import_runs_upwards_between_runtimes(graph: grimp.ImportGraph) -> None:
    assert upward(graph, "edgeconvnext.backends", LAYERS_OF_BACKENDS) == []


def test_no_files_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    importers: dict[str, set[str]] = {module: set() for module in graph.modules}
    for module, imported in imports(graph):
        importers[module].add(imported)
    try:
        tuple(TopologicalSorter(importers).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_imports_of_functions_and_of_type_checkers_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "upside_down"
    for name, text in {
        "__init__.py": "",
        "low.py": "def late():\n    import upside_down.high\n",
        "lowest.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from upside_down.low import late\n",
        "high.py": "",
    }.items():
        package.mkdir(exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    built = grimp.build_graph("upside_down", cache_dir=None, exclude_type_checking_imports=False)
    assert upward(built, "upside_down", (("", "high"), ("low",), ("lowest",))) == [
        "upside_down.low:2 imports upside_down.high",
        "upside_down.lowest:3 imports upside_down.low",
    ]
