"""Reports as the other stages write them: a full one, and one where nothing past the simulation could be measured."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

from edgeconvnext.schema.report import (
    Accuracy,
    BudgetMove,
    BudgetRecord,
    ClassChange,
    DeviceLatency,
    DeviceLayer,
    DevicePower,
    DeviceRecord,
    ExportCheck,
    Flip,
    Gate,
    Interval,
    Latency,
    LatencyComparison,
    LayerError,
    LayerFidelity,
    ModelRecord,
    PreprocessRecord,
    QuantizationRecord,
    Report,
    ScoreRecord,
    Sizes,
    StageCost,
)

CLASSES = [
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
]


def layer_names(depths: tuple[int, ...]) -> list[tuple[str, str]]:
    """Names and operators of a ConvNeXt's weighted layers in forward order."""
    layers = []
    for stage, depth in enumerate(depths):
        layers.append((f"downsample_layers.{stage}.{1 if stage else 0}", "downsample" if stage else "stem"))
        for block in range(depth):
            prefix = f"stages.{stage}.{block}"
            layers += [
                (f"{prefix}.dwconv", "depthwise"),
                (f"{prefix}.pwconv1", "pointwise1"),
                (f"{prefix}.pwconv2", "pointwise2"),
            ]
    return [*layers, ("head", "head")]


def sample_layer(name: str, operator: str, rng: np.random.Generator) -> LayerError:
    """Quantization of random values shaped like that operator's input: GELU output, residual stream or normalised."""
    values = rng.normal(size=20_000)
    if operator == "pointwise2":
        values = values * (1 + 3 * rng.random())
        values = values * 0.5 * (1 + np.tanh(0.7979 * (values + 0.0447 * values**3)))
    elif operator == "depthwise":
        values = values * 3 + rng.standard_t(3, size=values.size)
    signal = float((values**2).mean())
    bound = float(np.abs(values).max()) * (0.4 + 0.5 * rng.random())
    scale = bound / 127
    error = float(((np.clip(np.round(values / scale), -128, 127) * scale - values) ** 2).mean())
    histogram, _ = np.histogram(values, bins=64)
    estimator = ["mse", "percentile", "min-max", "entropy"][int(rng.integers(0, 8)) % 4]
    return LayerError(
        layer=name,
        operator=operator,
        estimator=estimator,
        sqnr_db=10 * math.log10(signal / error),
        low=-128 * scale,
        high=127 * scale,
        scale=scale,
        zero_point=0,
        bits=8,
        observed_low=float(values.min()),
        observed_high=float(values.max()),
        saturated=float((np.abs(values) > bound).mean()),
        candidates={"min-max": error * 1.3, "percentile": error * 1.02, "mse": error, "entropy": error * 2.7}
        | {estimator: error},
        histogram=(histogram / values.size).tolist(),
        weight_bits=8,
        weight_sqnr_db=float(38 + 4 * rng.random()),
        smoothing="smooth 0.75, shift",
        rounding="gptq, re-fitted 0.01",
        block_sqnr_db=41.2,
        plain_sqnr_db=37.9,
    )


def sample_latency(median: float, rng: np.random.Generator) -> Latency:
    samples = median * (1 + 0.03 * rng.gamma(1.5, size=200))
    samples[7] = 2.1 * median
    return Latency(
        median_ms=float(np.median(samples)),
        mean_ms=float(samples.mean()),
        min_ms=float(samples.min()),
        max_ms=float(samples.max()),
        p90_ms=float(np.percentile(samples, 90)),
        p95_ms=float(np.percentile(samples, 95)),
        p99_ms=float(np.percentile(samples, 99)),
        throughput=float(1000 / samples.mean()),
        cv=float(samples.std() / samples.mean()),
        runs=412,
        samples_ms=samples.tolist(),
    )


def sample_flip(index: int, rng: np.random.Generator) -> Flip:
    pixels = np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((24, 24, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=70)
    label, fp32, artifact = (CLASSES[int(i)] for i in rng.permutation(10)[:3])
    if index % 3 == 0:
        fp32 = label
    elif index % 3 == 1:
        artifact = label
    return Flip(
        image=f"imagenette2-320/val/n0{index}979186/n03425413_{1000 + index}.JPEG",
        label=label,
        fp32=fp32,
        artifact=artifact,
        fp32_confidence=0.3 + 0.05 * index,
        artifact_confidence=0.41,
        thumbnail="data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(),
    )


def sample_report(depths: tuple[int, ...] = (2, 2, 6, 2)) -> Report:
    """A run in which everything was measured and every gate is met."""
    rng = np.random.default_rng(0)
    fp32, artifact = sample_latency(19.1, rng), sample_latency(12.9, rng)
    return Report(
        target="onnx",
        target_description="ONNX Runtime on CPUs",
        exporter="onnx",
        artifact="model.onnx",
        model=ModelRecord(
            name="convnext_atto_imagenette",
            source="convnext_atto_imagenette.pth",
            layout="timm",
            sha256="3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855a",
            parameters=3_377_210,
            macs=546_800_000,
            input_size=(224, 224),
            num_classes=10,
            preprocess=PreprocessRecord(
                crop_pct=0.875,
                crop_mode="center",
                interpolation="bicubic",
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                value_range="normalized",
            ),
            folds={"layer scale into pwconv2": 2.1e-7, "LayerNorm affine into pwconv1, downsample and head": 8.4e-7},
        ),
        quantization=QuantizationRecord(
            scheme="W8A8",
            operators=["pointwise1", "pointwise2", "downsample", "head"],
            int8_macs=0.923,
            calibrator="auto",
            calibration_set="imagenette",
            calibration_images=256,
            calibration_held_out=85,
            calibration_sha256="a" * 64,
            calibration_skipped=["train/n01440764/broken.JPEG"],
            layers=[sample_layer(name, operator, rng) for name, operator in layer_names(depths)],
            budget=BudgetRecord(
                max_drop=0.5,
                judged_by="top-1",
                images=85,
                before_pp=1.18,
                before_kl=0.021,
                after_pp=0.0,
                after_kl=0.004,
                latency_before_ms=1.41,
                moves=[BudgetMove(layer="stages.3.1.pwconv2", to="float", kl=0.0123, macs_share=0.036)],
            ),
        ),
        accuracy=Accuracy(
            dataset="imagenette_val",
            images=1925,
            fp32=ScoreRecord(value=77.04, low=75.1, high=78.9, top5=97.3, n=1925),
            simulated=ScoreRecord(value=76.94, low=75.0, high=78.8, top5=97.2, n=1925),
            artifact=ScoreRecord(value=76.83, low=74.9, high=78.7, top5=97.25, n=1925),
            drop_pp=Interval(value=0.21, low=-0.16, high=0.57),
            agreement=99.48,
            sqnr_db=36.21,
            simulated_sqnr_db=36.4,
            measured_on="artifact",
            classes=[
                ClassChange(label=name, n=190, fp32=77.0 + i, artifact=77.0 + i - 0.53 * (i % 3 - 0.7))
                for i, name in enumerate(CLASSES)
            ],
            flips=[sample_flip(index, rng) for index in range(10)],
        ),
        fidelity_db=46.8,
        latency=LatencyComparison(
            fp32=fp32,
            artifact=artifact,
            batch=1,
            threads=1,
            runtime="onnxruntime 1.32.0",
            device="Intel(R) Xeon(R) CPU @ 2.20GHz, AVX2, no VNNI",
            settings={"warm-up": "200 ms", "duration": "3 s", "graph optimisation": "all", "order": "interleaved"},
        ),
        speedup=fp32.median_ms / artifact.median_ms,
        speedup_interval=Interval(value=fp32.median_ms / artifact.median_ms, low=1.45, high=1.5),
        size_bytes=Sizes(fp32=13_612_334, artifact=3_741_822),
        gates=[
            Gate(name="score_drop_pp", limit=1.0, measured=0.21, low=-0.16, high=0.57, passed=True),
            Gate(name="min_speedup", limit=1.0, measured=1.48, low=1.45, high=1.5, passed=True),
            Gate(name="min_fidelity_db", limit=30.0, measured=46.8, passed=True),
        ],
        checks=[ExportCheck(name="onnx.checker", passed=True, result="opset 21, 512 nodes")],
        verdict="passed",
        stages=[
            StageCost(stage="load", seconds=0.42, peak_mib=412.0),
            StageCost(stage="calibrate", seconds=38.2, peak_mib=1210.0, reused=True),
            StageCost(stage="quantize", seconds=21.6, peak_mib=1540.0),
            StageCost(stage="export", seconds=14.9, peak_mib=1390.0),
            StageCost(stage="validate", seconds=185.0, peak_mib=1105.0),
        ],
        environment={"edgeconvnext": "0.1.0", "torch": "2.13.0", "torchao": "0.18.0", "onnxruntime": "1.32.0"},
        notes=["Labels come from convnext_atto_imagenette.json beside the weights."],
    )


def unmeasured_report() -> Report:
    """An export for a board that is not here, calibrated without labels: everything that can be null is null."""
    report = sample_report()
    board = "needs a Jetson board: run device/build_and_check.py there"
    labels = "the folder has no labels that match the model's classes"
    return report.model_copy(
        deep=True,
        update={
            "target": "jetson",
            "exporter": "tensorrt-onnx",
            "accuracy": Accuracy(),
            "fidelity_db": None,
            "latency": LatencyComparison(),
            "speedup": None,
            "speedup_interval": None,
            "size_bytes": Sizes(),
            "gates": [
                Gate(name=name, limit=limit, measured=None, passed=None, reason=board)
                for name, limit in (("score_drop_pp", 1.0), ("min_speedup", 1.0), ("min_fidelity_db", 30.0))
            ],
            "stages": [],
            "environment": {},
            "notes": [],
            "not_measured": {
                "accuracy.fp32": labels,
                "accuracy.simulated": labels,
                "accuracy.drop_pp": labels,
                "accuracy.agreement": labels,
                "accuracy.artifact": board,
                "latency.fp32": board,
                "latency.artifact": board,
                "size_bytes.fp32": "no float engine was written",
            },
        },
    )


def sample_device() -> DeviceRecord:
    """What a board's kit measured, everything included."""
    rng = np.random.default_rng(1)
    scores = ScoreRecord(value=78.125, low=61.2, high=89.0, top5=96.9, n=32)
    return DeviceRecord(
        runtime="tensorrt 10.3.0",
        machine={"name": "Jetson Orin Nano <Developer Kit>", "power_mode": "NV Power Mode: 15W 0", "gpu": "Orin"},
        started="2026-11-25T01:41:13Z",
        baseline_form="FP16",
        artifact_form="W8A8",
        images=32,
        fp32=scores,
        artifact=scores,
        drop_pp=Interval(value=0.0, low=-5.9, high=5.9),
        agreement=96.875,
        sqnr_db=41.3,
        fidelity_db=45.2,
        latency=DeviceLatency(
            baseline=sample_latency(2.31, rng),
            artifact=sample_latency(1.62, rng),
            batch=1,
            threads=1,
            settings={"CUDA graph, artifact": "yes"},
        ),
        speedup=Interval(value=1.43, low=1.40, high=1.45),
        power=DevicePower(
            source="ina3221",
            total="VDD_IN",
            idle_w=4.1,
            baseline_w=9.5,
            artifact_w=8.2,
            baseline_mj_per_image=21.9,
            artifact_mj_per_image=13.3,
        ),
        clocks={"17000000.gpu": "306 MHz, then 625 MHz (at most 625)"},
        precisions={"int8": 41, "float16": 30},
        layers=[DeviceLayer(name="stages.0.0.pwconv1 <fused>", kind="CaskGemm", precision="int8", median_ms=0.04)],
        layer_fidelity=[
            LayerFidelity(layer="stages.0.0", sqnr_db=61.0),
            LayerFidelity(layer="stages.1.0", sqnr_db=44.0),
        ],
        messages=["WARNING: a tactic was skipped"],
        not_measured={},
    )
