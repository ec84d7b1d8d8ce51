"""A ResNet-50 with random weights, under torchvision's names; the same tensors each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

DEPTHS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
EXPANSION = 4
CLASSES = 1000


def write_resnet50(path: Path) -> None:
    """Write the checkpoint: He-normal weights, BatchNorms whose statistics are not those of a fresh network."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in _convs():
        fan_in = shape[1] * shape[2] * shape[3]
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        norm = _norm_after(name)
        for part, offset in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            tensors[f"{norm}.{part}"] = torch.rand(shape[0], generator=generator) + offset
    tensors["fc.weight"] = torch.randn((CLASSES, WIDTHS[-1] * EXPANSION), generator=generator) * 0.02
    tensors["fc.bias"] = torch.zeros(CLASSES)
    save_file(tensors, path)


def _convs() -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Yield name and shape of each conv, (out, in, height, width)."""
    yield "conv1", (64, 3, 7, 7)
    before = 64
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True), start=1):
        after = width * EXPANSION
        for block in range(depth):
            name = f"layer{stage}.{block}"
            yield f"{name}.conv1", (width, before, 1, 1)
            yield f"{name}.conv2", (width, width, 3, 3)
            yield f"{name}.conv3", (after, width, 1, 1)
            if block == 0:
                yield f"{name}.downsample.0", (after, before, 1, 1)
            before = after


def _norm_after(conv: str) -> str:
    """Name the BatchNorm behind a conv: bn2 of conv2, downsample.1 of downsample.0."""
    return conv.replace("downsample.0", "downsample.1").replace("conv", "bn")
