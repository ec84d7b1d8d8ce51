"""Reconstruct small networks with a target's settings changed, for the tests of the accuracy engine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from networks import sqnr_db

from edgeconvnext.backends import check_target, load_target
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.quantization.candidates import ReconstructionOptions
from edgeconvnext.quantization.fake import fake_quantized
from edgeconvnext.quantization.precision import BitPlan, resolve_precision
from edgeconvnext.quantization.reconstruct import Reconstructed, reconstruct
from edgeconvnext.targets import Target

PREPROCESS = Preprocess(input_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


def photographs(count: int = 36, seed: int = 3) -> torch.Tensor:
    """Smooth random pictures with whole pixel values, normalised: (N, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)
    return ((fine * 255).round() / 255 - 0.5) / 0.25


def target_with(name: str = "jetson", **quantize: Any) -> Target:
    """A shipped target with some of its [quantize] table replaced."""
    values = load_target(name).model_dump()
    for key, value in quantize.items():
        values["quantize"][key] = {**values["quantize"][key], **value} if isinstance(value, dict) else value
    target = Target.model_validate(values)
    check_target(target)
    return target


def reconstructed(
    module: ConvNeXt, target: Target, images: torch.Tensor, *, bits: BitPlan | None = None, **options: Any
) -> Reconstructed:
    """Fit on the first two thirds of the images, judge on the last."""
    cut = 2 * len(images) // 3
    with tempfile.TemporaryDirectory() as folder:
        return reconstruct(
            module,
            target,
            resolve_precision(module, target, bits or BitPlan()),
            images[:cut].split(8),
            images[cut:].split(8),
            preprocess=PREPROCESS,
            folder=Path(folder),
            options=ReconstructionOptions(**options),
        )


def logit_db(module: ConvNeXt, result: Reconstructed, images: torch.Tensor) -> float:
    """SQNR of the reconstructed network's logits on other images."""
    with torch.inference_mode(), fake_quantized(result.module, result.plan):
        return sqnr_db(module(images), result.module(images))
