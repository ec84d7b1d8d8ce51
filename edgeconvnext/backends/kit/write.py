"""The `device/` folder of a run: what a machine needs to check the artifact and time it, without this package."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgeconvnext.backends import backend_for
from edgeconvnext.backends.base import KitScript
from edgeconvnext.backends.block_outputs import LayerOutput, sample
from edgeconvnext.choices import TaskName
from edgeconvnext.data.size import Size
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation import turns
from edgeconvnext.files import atomic_write, tree_files, tree_sha256
from edgeconvnext.targets import Target

KIT_FILE = "kit.json"
VECTORS_FILE = "vectors.bin"
RESULTS_FILE = "device.json"
# What an ONNX file is followed by to have blocks among its outputs, and the simulation's values of these.
ADDED_OUTPUTS_FILE = "added_outputs.pb"
LAYER_VALUES_FILE = "layer_values.bin"
MOST_VECTORS = 32
COMPARED_VALUES = 4093
"""Values compared of each feature map and image: a prime, so that their steps do not fall on the same columns of every row."""

_DEVICE = Path(__file__).parents[1] / "device"
_SHARED = (_DEVICE / "kit.py", Path(turns.__file__), _DEVICE / "board.py")
_OWN_PACKAGE = "edgeconvnext."
# Python looks into the script's own folder first. A file there named like a module would run when that is imported.
_OWN_FOLDER_IS_NO_PACKAGE = """
import sys

if __name__ == "__main__" and not sys.flags.isolated and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]
"""


_README = """\
Copy this folder, whole, to the device and run there: python3 {name} (Python 3.8+ with {needs}, nothing else).
It {does} against the float form on {count} real images. For the report: edgeconvnext validate RUN --device device.json.
Exit code 0: every gate met; 1: a file is missing or broken; 3: a gate missed; 4: the runtime or its hardware is not here.
"""


@dataclass(frozen=True)
class KitOutput:
    """One output of a network without classifier. size: values of an image; samples: how many of them are compared.

    Sample i of n is the value at position i * size // n of the flattened output.
    """

    name: str
    size: int
    samples: int


@dataclass(frozen=True)
class CheckVectors:
    """Images with the answers the artifact must give.

    images: (N, C, H, W) float32, as the artifact takes them. fp32, simulated: logits (N, classes) float32 of the FP32
    network and of the quantised simulation; of a network without classifier the samples of its `outputs`, one behind the other
    (`compared_values`). labels: (N,) class numbers, of task multi-label (N, classes) of 0 and 1, None where unknown.
    layers: outputs of single blocks for the first few images, where the runtime can be asked for them. task: what the logits mean.
    """

    images: np.ndarray
    fp32: np.ndarray
    simulated: np.ndarray
    labels: np.ndarray | None = None
    layers: tuple[LayerOutput, ...] = ()
    outputs: tuple[KitOutput, ...] = ()
    task: TaskName | None = None

    def __post_init__(self) -> None:
        count = len(self.images)
        if not count or self.fp32.shape != self.simulated.shape or len(self.fp32) != count:
            raise ExportError(
                f"Check vectors need as many answers as images, at least one; there are {count} images, FP32 "
                f"answers {self.fp32.shape} and simulated answers {self.simulated.shape}."
            )
        if self.outputs and sum(output.samples for output in self.outputs) != self.fp32.shape[1]:
            raise ExportError(f"Check vectors hold {self.fp32.shape[1]} values an image; their outputs name others.")
        if self.labels is not None and len(self.labels) != count:
            raise ExportError(f"Check vectors have {count} images and {len(self.labels)} labels.")

    def first(self, count: int) -> CheckVectors:
        labels = None if self.labels is None else self.labels[:count]
        kept = (self.images[:count], self.fp32[:count], self.simulated[:count])
        return CheckVectors(*kept, labels, self.layers, self.outputs, self.task)


def compared_values(names: Sequence[str], outputs: Sequence[np.ndarray]) -> tuple[np.ndarray, tuple[KitOutput, ...]]:
    """Return what a kit compares of several outputs, (N, values) float32, and which values these are. outputs: (N, ...) each."""
    rows = [output.reshape(len(output), -1) for output in outputs]
    samples = [sample(flat, COMPARED_VALUES) for flat in rows]
    kept = zip(names, rows, samples, strict=True)
    return np.concatenate(samples, axis=1), tuple(
        KitOutput(name, flat.shape[1], part.shape[1]) for name, flat, part in kept
    )


@dataclass(frozen=True)
class KitNetworks:
    """What is compared on the device: files or packages of the run, and in which form each holds the network.

    artifact: as it was exported. baseline: the folded network in the target's float type. *_form: "W8A8", "FP16". sizes: smallest,
    typical and largest input, (height, width), of networks that take several; () where it is fixed.
    """

    artifact: Path
    baseline: Path
    artifact_form: str
    baseline_form: str
    sizes: tuple[Size, ...] = ()


def write_device_kit(
    folder: Path, vectors: CheckVectors, networks: KitNetworks, *, model_name: str, target: Target
) -> list[Path]:
    """Write script, networks, check vectors and README into `folder`; return the script, kit.json, README and what else is new.

    At most 32 vectors are kept. Networks are hard links to the run's own files where the disk allows. kit.json lists the sha256
    of every file, so that what comes back can be told from another run's results.
    Raises ExportError for a target whose backend has no kit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backend, kept = backend_for(target), vectors.first(MOST_VECTORS)
    script = backend.kit_script()
    if script is None:
        raise ExportError(f"There is no kit for what exporter {target.exporter} writes.")
    names = []
    for source in (networks.artifact, networks.baseline):
        _link(source, folder / source.name)
        names += [source.name] if source.is_file() else [f"{source.name}/{file}" for file in tree_files(source)]
    numbers = (np.ascontiguousarray(array, dtype="<f4") for array in (kept.images, kept.fp32, kept.simulated))
    atomic_write(folder / VECTORS_FILE, b"".join(array.tobytes() for array in numbers))
    names.append(VECTORS_FILE)
    if kept.layers:
        there = frozenset(output.name for output in kept.outputs)
        atomic_write(folder / ADDED_OUTPUTS_FILE, backend.added_outputs(kept.layers, there))
        values = (np.ascontiguousarray(layer.values, dtype="<f4").tobytes() for layer in kept.layers)
        atomic_write(folder / LAYER_VALUES_FILE, b"".join(values))
        names += [ADDED_OUTPUTS_FILE, LAYER_VALUES_FILE]
    outputs = kept.outputs or (KitOutput("logits", kept.fp32.shape[1], kept.fp32.shape[1]),)
    gates = {"min_fidelity_db": target.gates.min_fidelity_db, "min_speedup": target.gates.min_speedup}
    if kept.outputs:
        gates["min_feature_sqnr_db"] = target.gates.min_feature_sqnr_db
    about = {
        "format": 3,
        "model": model_name,
        "target": target.name,
        "script": script.name,
        "module": script.module,
        "minimum": target.runtime.minimum,
        "artifact": networks.artifact.name,
        "artifact_form": networks.artifact_form,
        "baseline": networks.baseline.name,
        "baseline_form": networks.baseline_form,
        "count": len(kept.images),
        "image_shape": list(kept.images.shape[1:]),
        "sizes": [list(size) for size in networks.sizes or (kept.images.shape[2:],) * 3],
        "classes": 0 if kept.outputs else int(kept.fp32.shape[1]),
        "task": kept.task,
        "outputs": [asdict(output) for output in outputs],
        "labels": None if kept.labels is None else np.asarray(kept.labels, np.int64).tolist(),
        "batch": list(target.input.batch),
        "gates": gates,
        "layout": "vectors.bin: little-endian float32: images, FP32's answers, the simulation's, each in row-major order",
        "layers": [
            {"name": layer.name, "tensor": layer.tensor, "size": layer.size, "samples": layer.values.shape[1]}
            for layer in kept.layers
        ],
        "layer_images": len(kept.layers[0].values) if kept.layers else 0,
        "files": {name: tree_sha256(folder / name) for name in names},
    }
    written = [folder / name for name in (script.name, KIT_FILE, "README.txt")]
    atomic_write(written[0], assemble_script(script))
    written[0].chmod(0o755)
    for source in () if kept.outputs else script.for_classifiers:
        written.append(folder / source.name)
        atomic_write(written[-1], source.read_bytes())
    atomic_write(written[1], json.dumps(about, indent=1) + "\n")
    atomic_write(
        written[2], _README.format(name=script.name, needs=script.needs, does=script.does, count=len(kept.images))
    )
    return written


def assemble_script(script: KitScript) -> str:
    """Join the shared parts and a runtime's own part into one file that imports nothing of this package."""
    own = script.source
    source = own.read_text(encoding="utf-8")
    body = ast.parse(source).body
    head = "".join(source.splitlines(keepends=True)[: body[0].end_lineno])
    pieces = [head, _OWN_FOLDER_IS_NO_PACKAGE]
    for path in (*_SHARED, own):
        pieces.append(f"\n# ==== {own.parent.name if path == own else path.stem}\n\n{_without_own_imports(path)}")
    return "\n".join(pieces)


def _without_own_imports(path: Path) -> str:
    """Return a part's source behind its docstring, without the imports that the joined file does not need."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    docstring, *statements = ast.parse(source).body
    dropped = set(range(docstring.end_lineno or 0))
    for node in statements:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(_OWN_PACKAGE):
            dropped |= set(range(node.lineno - 1, node.end_lineno or node.lineno))
    return "".join(line for number, line in enumerate(lines) if number not in dropped).strip("\n") + "\n"


def _link(source: Path, target: Path) -> None:
    """Give a file or folder a second name, so that the kit takes no space twice; copy where the disk has no links."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
