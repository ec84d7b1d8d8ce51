"""The `device/` folder of a run: what a board needs to build the engine, check it and time it, without this package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeconvnext.errors import ExportError
from edgeconvnext.files import atomic_write
from edgeconvnext.targets import GateSection

SCRIPT = Path(__file__).parent / "device" / "build_and_check.py"
MOST_VECTORS = 32

_README = """\
Copy this whole run directory to the board and run there: python3 device/build_and_check.py (Python 3.8+, tensorrt).
It builds engines from model.onnx and device/model_fp16.onnx, checks and times them; figures are in device/device.json.
Exit code 0: every gate met; 1: a file is missing; 3: a gate missed; 4: no TensorRT or GPU.
"""


@dataclass(frozen=True)
class CheckVectors:
    """Images with the answers the engine must give.

    images: (N, C, H, W) float32, as the ONNX file takes them. fp32, simulated: logits (N, classes) float32 of the FP32
    network and of the quantised simulation. labels: (N,) class numbers, None where unknown.
    """

    images: np.ndarray
    fp32: np.ndarray
    simulated: np.ndarray
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.images)
        if not count or self.fp32.shape != self.simulated.shape or len(self.fp32) != count:
            raise ExportError(
                f"Check vectors need as many logits as images, at least one; there are {count} images, FP32 "
                f"logits {self.fp32.shape} and simulated logits {self.simulated.shape}."
            )
        if self.labels is not None and len(self.labels) != count:
            raise ExportError(f"Check vectors have {count} images and {len(self.labels)} labels.")

    def first(self, count: int) -> CheckVectors:
        labels = None if self.labels is None else self.labels[:count]
        return CheckVectors(self.images[:count], self.fp32[:count], self.simulated[:count], labels)


def write_device_kit(
    folder: Path, vectors: CheckVectors, *, model_name: str, batch: tuple[int, int, int], gates: GateSection
) -> list[Path]:
    """Write script, check vectors and README into `folder`, and return the files.

    At most 32 vectors are kept. The FP16 network belongs beside them as model_fp16.onnx (`export_typed_onnx` of the
    folded float program), model.onnx one folder up. batch: smallest, typical and largest batch of the engines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = vectors.first(MOST_VECTORS)
    about = {
        "format": 1,
        "model": model_name,
        "count": len(kept.images),
        "image_shape": list(kept.images.shape[1:]),
        "classes": int(kept.fp32.shape[1]),
        "labels": None if kept.labels is None else [int(label) for label in kept.labels],
        "batch": list(batch),
        "gates": {"min_fidelity_db": gates.min_fidelity_db, "min_speedup": gates.min_speedup},
        "layout": "vectors.bin: little-endian float32: images, FP32 logits, simulated logits, each in row-major order",
    }
    written = [folder / name for name in ("build_and_check.py", "vectors.json", "vectors.bin", "README.txt")]
    atomic_write(written[0], SCRIPT.read_bytes())
    written[0].chmod(0o755)
    numbers = (np.ascontiguousarray(array, dtype="<f4") for array in (kept.images, kept.fp32, kept.simulated))
    atomic_write(written[1], json.dumps(about, indent=2) + "\n")
    atomic_write(written[2], b"".join(array.tobytes() for array in numbers))
    atomic_write(written[3], _README)
    return written
