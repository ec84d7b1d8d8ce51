"""The networks that the accuracy benchmark quantises: each a checkpoint file with a JSON, and the images it is for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.photographs import WEIGHTS
from benchmarks.v2_atto import OUTPUT as V2_OUTPUT
from benchmarks.v2_atto import Recipe, make_v2
from edgeconvnext.model.convnext.network import Block, ConvNeXt
from edgeconvnext.model.load import find_model, load_model

OUTLIER_SHARE = 0.02
OUTLIER_FACTOR = 30.0


@dataclass(frozen=True)
class BenchmarkModel:
    """A network of the benchmark.

    checkpoint: returns the weights file, made in the given folder where it is not there. folded: whether the peers get
    the exactly folded network, the best start; else the checkpoint as it is.
    """

    name: str
    checkpoint: Callable[[Path], Path]
    calibration: str
    evaluation: str
    folded: bool = True


def atto(_folder: Path) -> Path:
    """The trained Atto beside the photographs."""
    if not WEIGHTS.is_file():
        raise FileNotFoundError(
            f"{WEIGHTS} is not there: weights/ is looked for beside the folder that EDGECONVNEXT_DATA names"
        )
    return WEIGHTS


def atto_with_outliers(folder: Path) -> Path:
    """The same function with outlier channels behind its LayerNorms, as long ImageNet training leaves them.

    In each LayerNorm that is followed by a linear or a 2x2 conv, 2 % of the channels (at least one) are multiplied by 30,
    and the matching inputs of that layer divided by 30.
    """
    path = folder / "atto_outliers.pth"
    source = atto(folder)
    module = load_model(source).module
    images = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = module(images)
        for norm, layer in _followed_norms(module):
            count = max(1, round(OUTLIER_SHARE * len(norm.weight)))
            channels = torch.randperm(len(norm.weight), generator=generator)[:count]
            norm.weight[channels] *= OUTLIER_FACTOR
            norm.bias[channels] *= OUTLIER_FACTOR
            layer.weight[:, channels] /= OUTLIER_FACTOR
        error = float((module(images) - before).abs().max() / before.abs().max())
    if error > 1e-4:
        raise AssertionError(f"the outliers changed the function by {error:.1e}")
    torch.save({"model": module.state_dict()}, path)
    shutil.copy(source.with_suffix(".json"), path.with_suffix(".json"))
    return path


def digits(_folder: Path) -> Path:
    """The network inside the package."""
    return find_model("digits").weights


def v2_atto(_folder: Path) -> Path:
    """An Atto with GRN, fine-tuned on first use (about 17 minutes on one core)."""
    if not V2_OUTPUT.is_file():
        print(f"training {V2_OUTPUT.stem}; progress in {V2_OUTPUT.with_suffix('.log').name}", flush=True)
        make_v2(WEIGHTS, V2_OUTPUT, Recipe())
    return V2_OUTPUT


MODELS: tuple[BenchmarkModel, ...] = (
    BenchmarkModel("atto", atto, "imagenette", "imagenette_val"),
    BenchmarkModel("atto_outliers", atto_with_outliers, "imagenette", "imagenette_val", folded=False),
    BenchmarkModel("digits", digits, "digits", "digits_test"),
    BenchmarkModel("v2_atto", v2_atto, "imagenette", "imagenette_val"),
)


def _followed_norms(module: ConvNeXt) -> Iterator[tuple[nn.LayerNorm, nn.Linear | nn.Conv2d]]:
    """Yield each LayerNorm with the layer that reads it and nothing else; the stem's feeds a residual connection."""
    for block in module.modules():
        if isinstance(block, Block):
            yield block.norm, block.pwconv1
    for downsample in list(module.downsample_layers)[1:]:
        norm, conv = downsample  # type: ignore[misc]
        yield norm, conv
    yield module.norm, module.head  # type: ignore[misc]
