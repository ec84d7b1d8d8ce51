"""Small ConvNeXts, quantised the way a target asks, for the export tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from edgeconvnext.backends import load_target
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.backends.onnxruntime.write import export_onnx
from edgeconvnext.backends.tensorrt.typed_onnx import export_typed_onnx
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig, Stem
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.program import export_program
from edgeconvnext.model.program_float16 import to_float16
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.simulate import FloatType, simulator
from edgeconvnext.quantization.statistics import collect_statistics

CLASSES = 7
METADATA = ArtifactMetadata(
    model_name="small",
    labels=tuple(f"class {index}" for index in range(CLASSES)),
    preprocess=Preprocess(input_size=(32, 32)),
    value_range="normalized",
    edgeconvnext_version="0.1.0",
    notes={"calibration": "smooth random pictures"},
)


@dataclass(frozen=True)
class Variant:
    """One architecture of the test matrix."""

    version: Literal[1, 2] = 1
    stem: Stem = "patch"
    head_norm: Literal["after_pool", "before_pool"] = "after_pool"


VARIANTS = (Variant(), Variant(version=2), Variant(stem="overlap_tiered", head_norm="before_pool"))
EACH_VARIANT = pytest.mark.parametrize(
    "variant", [*VARIANTS[:2], pytest.param(VARIANTS[2], marks=pytest.mark.exhaustive)], ids=str
)
"""For what depends on the stem and the place of the last norm in name only; whole files of each backend run with all three."""


@cache
@torch.inference_mode(False)  # whoever asks first: weights made in inference mode could never be exported
def small_convnext(variant: Variant = VARIANTS[0]) -> ConvNeXt:
    """A two-stage ConvNeXt with weights far from their initial zeros and ones."""
    torch.manual_seed(variant.version)
    config = ConvNeXtConfig(
        depths=(1, 2),
        dims=(16, 32),
        num_classes=CLASSES,
        version=variant.version,
        stem=variant.stem,
        head_norm=variant.head_norm,
        layer_scale=False,
    )
    module = ConvNeXt(config).eval()
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        else:
            is_gain = parameter.dim() == 1 and name.endswith("norm.weight")
            nn.init.normal_(parameter, mean=1.0 if is_gain else 0.0, std=0.2)
    return module


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures, (count, 3, 32, 32), about mean 0 and variance 1."""
    coarse = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")


@cache
def program_for(target: str | None, variant: Variant = VARIANTS[0]) -> ExportedProgram:
    """Return the small network as exported program: quantised for `target`, or float for None."""
    module = small_convnext(variant)
    program = export_program(module, images(2), max_batch=64)
    if target is None:
        return program
    statistics = collect_statistics(module, [images(48, seed=1)], [images(24, seed=2)])
    return quantize_program(program, build_plan(module, statistics, load_target(target), effort="quick"))


@cache
def half_program_for(target: str | None, variant: Variant = VARIANTS[0]) -> ExportedProgram:
    """The same in float16."""
    return to_float16(program_for(target, variant))


@cache
def onnx_bytes(target: str | None, variant: Variant = VARIANTS[0]) -> bytes:
    """The ONNX file of `program_for`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        return export_onnx(program_for(target, variant), path, opset=21, metadata=METADATA).read_bytes()


@cache
def typed_onnx_bytes(target: str | None, variant: Variant = VARIANTS[0]) -> bytes:
    """The typed ONNX file of `half_program_for`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        program = half_program_for(target, variant)
        return export_typed_onnx(program, path, opset=19, metadata=METADATA).read_bytes()


def in_onnxruntime(model: bytes, batch: torch.Tensor, optimized: Path | None = None) -> np.ndarray:
    """Logits of an ONNX file on one thread; `optimized` is where onnxruntime writes the graph it runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"image": batch.numpy()})[0]
    return logits


def layers_of(variant: Variant = VARIANTS[0]) -> dict[str, str]:
    """Weighted layers of a variant, by path, with their kinds."""
    return dict(weighted_layers(small_convnext(variant)))


def run(program: ExportedProgram, batch: torch.Tensor, float_type: FloatType = "float32") -> np.ndarray:
    """Logits of a float32 program in torch, its float side in `float_type`, (N, classes) float32."""
    with torch.inference_mode():
        logits: torch.Tensor = simulator(program, float_type)(batch)
    return logits.numpy()


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """10 log10(signal / noise), infinite where the two are equal."""
    noise = float(((reference - other) ** 2).sum())
    return float(10 * np.log10((reference**2).sum() / noise)) if noise else float("inf")
