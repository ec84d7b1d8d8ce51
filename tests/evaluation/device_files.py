"""A small kit, and device.json as its script writes it, with every figure by hand."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from edgeconvnext.backends.kit.description import KitDescription
from edgeconvnext.backends.kit.known import Kit

COUNT, CLASSES = 32, 10
Results = dict[str, Any]


def described(**changes: Any) -> KitDescription:
    """kit.json of a classifier for a Jetson, with its gates."""
    values: Results = {
        "format": 3,
        "model": "small",
        "target": "jetson",
        "script": "build_and_check.py",
        "module": "tensorrt",
        "minimum": "10.3",
        "artifact": "model.onnx",
        "artifact_form": "W8A8",
        "baseline": "model_fp16.onnx",
        "baseline_form": "FP16",
        "count": COUNT,
        "image_shape": [3, 2, 2],
        "classes": CLASSES,
        "outputs": [{"name": "logits", "size": CLASSES, "samples": CLASSES}],
        "labels": None,
        "batch": [1, 4, 8],
        "gates": {"min_fidelity_db": 30.0, "min_speedup": 1.0},
        "layers": [{"name": "stages.0"}, {"name": "stages.1"}],
        "files": dict.fromkeys(("model.onnx", "model_fp16.onnx", "vectors.bin"), "0" * 64),
    }
    return KitDescription.model_validate(values | changes)


def kit(labels: bool = True, **changes: Any) -> Kit:
    """Random answers; the labels are FP32's own."""
    rng = np.random.default_rng(0)
    fp32 = rng.normal(size=(COUNT, CLASSES)).astype(np.float32)
    simulated = fp32 + rng.normal(scale=0.01, size=fp32.shape).astype(np.float32)
    known = fp32.argmax(1).tolist() if labels else None
    return Kit("a" * 64, described(labels=known, **changes), fp32, simulated)


def backbone(**changes: Any) -> Kit:
    """The same numbers as the samples of two outputs."""
    outputs = [{"name": "stage1", "size": 7, "samples": 7}, {"name": "stage2", "size": 300, "samples": 3}]
    gates = {"min_fidelity_db": 30.0, "min_feature_sqnr_db": 20.0}
    return kit(labels=False, **({"classes": 0, "outputs": outputs, "gates": gates} | changes))


def times(*blocks: list[float], batch: int = 1) -> Results:
    """Figures of one network's runs, ms; each block has the same times, so that they are known: see UNEQUAL."""
    runs = sorted(run for block in blocks for run in block)
    mean = sum(runs) / len(runs)
    at = [share * (len(runs) - 1) for share in (0.5, 0.9, 0.95, 0.99)]
    median, p90, p95, p99 = (
        runs[int(place)] + (runs[min(int(place) + 1, len(runs) - 1)] - runs[int(place)]) * (place % 1) for place in at
    )
    return {
        "blocks_ms": list(blocks),
        "median_ms": median,
        "mean_ms": mean,
        "min_ms": runs[0],
        "max_ms": runs[-1],
        "p90_ms": p90,
        "p95_ms": p95,
        "p99_ms": p99,
        "throughput": 1000 * batch / mean,
        "cv": (sum((run - mean) ** 2 for run in runs) / len(runs)) ** 0.5 / mean,
        "runs": len(runs),
        "gpu": {"median_ms": 1},
    }


POWER = {
    "source": "ina3221",
    "total": "sum of CPU, GPU",
    "summed": ["CPU", "GPU"],
    "rails": {
        "CPU": {"idle": 1.0, "artifact": 2.0, "baseline": 3.0},
        "GPU": {"idle": 0.5, "artifact": 4.0, "baseline": 6.0},
        "DRAM": {"idle": 0.25, "artifact": 0.25, "baseline": 0.25},
    },
    "seconds_per_image": {"artifact": 0.002, "baseline": 0.003},
    "idle_w": 1.5,
    "artifact_w": 6.0,
    "baseline_w": 9.0,
    "artifact_mj_per_image": 12.0,
    "baseline_mj_per_image": 27.0,
}


def packed(answers: np.ndarray) -> str:
    return base64.b64encode(answers.astype("<f4").tobytes()).decode()


def told(answers: np.ndarray | None, **changes: object) -> Results:
    """device.json as a kit's script writes it: the artifact takes 1 ms, the baseline 1.5 ms, in every run."""
    return {
        "format": 4,
        "kit": "a" * 64,
        "model": "small",
        "target": "jetson",
        "started": "2026-11-25T01:41:13Z",
        "runtime": {"name": "tensorrt", "version": "10.3.0"},
        "forms": {"artifact": "W8A8", "baseline": "FP16"},
        "machine": {"name": "Jetson"},
        "answers": None if answers is None else packed(answers),
        "latency": {
            "batch": 1,
            "threads": 1,
            "settings": {"timed": "by events"},
            "artifact": times([1.0] * 2, [1.0] * 2),
            "baseline": times([1.5] * 2, [1.5] * 2),
        },
        "speedup": {"value": 1.5, "low": 1.5, "high": 1.5},
        "power": None,
        "power_absent": "this machine shows no power sensor",
        "clocks_before": {"cpu": {"mhz": 1500.0, "max_mhz": 2400.0, "governor": "ondemand"}},
        "clocks_after": {"cpu": {"mhz": 2400.0, "max_mhz": 2400.0}},
        "layers": {"artifact": [{"name": "a", "kind": "Conv", "precision": "int8", "median_ms": 0.1}]},
        "layer_fidelity": [],
        "saved": ["layers.json"],
        "a key of a later version": 1,
    } | changes


def timed(
    answers: np.ndarray | None, artifact: list[list[float]], baseline: list[list[float]], **changes: object
) -> Results:
    """device.json with other times; the speed-up is left to whoever reads it."""
    latency = {"batch": 1, "threads": 1, "settings": {}, "artifact": times(*artifact), "baseline": times(*baseline)}
    return told(answers, latency=latency, speedup=None, **changes)
