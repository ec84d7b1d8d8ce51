"""NNCF: post-training quantization of the ONNX file with the OpenVINO backend, run in OpenVINO on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nncf
import openvino as ov
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

from benchmarks.peers.protocol import Loaded, Task, calibration_batches, serve


@dataclass(frozen=True)
class Method:
    """What is set of nncf.quantize; the rest stays at its defaults."""

    preset: nncf.QuantizationPreset | None = None
    model_type: nncf.ModelType | None = None
    fast_bias_correction: bool = True


METHODS = {
    "default preset": Method(),
    "MIXED preset": Method(preset=nncf.QuantizationPreset.MIXED),
    "model_type=TRANSFORMER": Method(model_type=nncf.ModelType.TRANSFORMER),
    "MIXED preset, accurate bias correction": Method(nncf.QuantizationPreset.MIXED, fast_bias_correction=False),
}
EXCLUDED = {
    "peer's own default": [],
    "no depthwise": ["GroupConvolution"],
    "linears only": ["Convolution", "GroupConvolution", "Add", "Multiply", "MVN", "ReduceMean"],
}


class Nncf:
    def versions(self) -> str:
        return f"nncf {nncf.__version__}, openvino {ov.__version__.partition('-')[0]}"

    def quantize(self, task: Task) -> list[Path]:
        method = METHODS[task.method]
        batches = calibration_batches(task, 1)
        excluded = EXCLUDED[task.placement]
        weights = QuantizationParameters(num_bits=4) if task.bits == "W4A8" else None
        quantized = nncf.quantize(
            ov.Core().read_model(task.onnx),
            nncf.Dataset(batches),
            subset_size=len(batches),
            preset=method.preset,
            model_type=method.model_type,
            fast_bias_correction=method.fast_bias_correction,
            ignored_scope=nncf.IgnoredScope(types=excluded, validate=False) if excluded else None,
            advanced_parameters=AdvancedQuantizationParameters(weights_quantization_params=weights)
            if weights
            else None,
        )
        ov.save_model(quantized, task.artifact, compress_to_fp16=False)
        return [task.artifact, task.artifact.with_suffix(".bin")]

    def load(self, artifact: Path, threads: int | None) -> Loaded:
        """Compile for latency; what stays float is computed in float32, as in the other runtimes."""
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        request = ov.Core().compile_model(artifact, "CPU", config).create_infer_request()
        runtime = f"openvino {ov.__version__.partition('-')[0]}"
        return Loaded(lambda images: request.infer([images])[0].copy(), runtime)


if __name__ == "__main__":
    serve(Nncf())
