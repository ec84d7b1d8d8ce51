"""A kit's folder that no network was exported for: everything that is read before one is run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = ("model.onnx", "model_fp32.onnx")


def write_kit(folder: Path, **changes: Any) -> Path:
    """A kit of two one-pixel images and three classes, as the exporter describes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        (folder / name).write_bytes(name.encode())
    (folder / "vectors.bin").write_bytes(np.arange(2 * 3 + 2 * 2 * 3, dtype="<f4").tobytes())
    (folder / "layer_values.bin").write_bytes(np.zeros(2, "<f4").tobytes())
    (folder / "added_outputs.pb").write_bytes(b"")
    files = (*NETWORKS, "vectors.bin", "layer_values.bin", "added_outputs.pb")
    about = {
        "format": 3,
        "model": "small",
        "target": "onnx",
        "script": "check.py",
        "module": None,
        "minimum": "1.0",
        "artifact": NETWORKS[0],
        "artifact_form": "W8A8",
        "baseline": NETWORKS[1],
        "baseline_form": "FP32",
        "count": 2,
        "image_shape": [3, 1, 1],
        "sizes": [[1, 1]] * 3,
        "classes": 3,
        "outputs": [{"name": "logits", "size": 3, "samples": 3}],
        "labels": [0, 1],
        "batch": [1, 1, 2],
        "gates": {"min_fidelity_db": 30.0, "min_speedup": None},
        "layers": [{"name": "head", "tensor": "head_out", "size": 2, "samples": 1}],
        "layer_images": 2,
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files},
    }
    (folder / "kit.json").write_text(json.dumps(about | changes))
    return folder
