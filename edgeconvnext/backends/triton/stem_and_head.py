"""Stem, downsampling and head as kernels: convs that stride by their own size are matrix products over patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from edgeconvnext.backends.triton.grids import Int8Grid, LinearWeights, linear_weights, patches, planned_grid
from edgeconvnext.backends.triton.linear import int8_linear
from edgeconvnext.backends.triton.norms import Norm, norm_rows
from edgeconvnext.backends.triton.quantize import quantize
from edgeconvnext.backends.triton.stream import Codes, Stream
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.quantization.plan import QuantPlan


@dataclass(frozen=True)
class StemUnit:
    """The patchify stem and its norm. image_grid: of the pixels; grid: of the first block's input."""

    image_grid: Int8Grid
    weights: LinearWeights
    size: int
    norm: Norm
    float_type: torch.dtype
    grid: Int8Grid | None

    def __call__(self, x: Stream, seen: Codes | None) -> Stream:
        codes = quantize(x.floats, self.image_grid, channel_axis=3)
        if seen is not None:
            seen["downsample_layers.0.0"] = codes.permute(0, 3, 1, 2)
        # Float32 up to the norm: only what is kept is rounded to the stream's type.
        y, _ = int8_linear(patches(codes, self.size), self.weights, float_type=torch.float32)
        assert y is not None
        n, height, width, _ = codes.shape
        y = y.view(n, height // self.size, width // self.size, -1)
        floats, codes_out = norm_rows(y, self.norm, self.float_type, self.grid)
        assert floats is not None
        return Stream(floats, codes_out)


@dataclass(frozen=True)
class DownsampleUnit:
    """LayerNorm and a strided conv between two stages. input_grid: of the conv's input; grid: of the next block's."""

    path: str
    norm: Norm
    input_grid: Int8Grid
    weights: LinearWeights
    size: int
    float_type: torch.dtype
    grid: Int8Grid | None

    def __call__(self, x: Stream, seen: Codes | None) -> Stream:
        _, codes = norm_rows(x.floats, self.norm, None, self.input_grid)
        assert codes is not None
        if seen is not None:
            seen[self.path] = codes.permute(0, 3, 1, 2)
        n, height, width, _ = codes.shape
        cut = patches(codes, self.size).view(n, height // self.size, width // self.size, -1)
        floats, codes_out = int8_linear(cut, self.weights, float_type=self.float_type, grid=self.grid)
        assert floats is not None
        return Stream(floats, codes_out)


@dataclass(frozen=True)
class HeadUnit:
    """Pooling, norm and classifier: logits (N, num_classes), float32."""

    norm: Norm
    pool_first: bool
    input_grid: Int8Grid
    weights: LinearWeights

    def __call__(self, x: Stream, seen: Codes | None) -> torch.Tensor:
        floats = x.floats.float()
        if self.pool_first:
            _, codes = norm_rows(floats.mean(dim=(1, 2)), self.norm, None, self.input_grid)
        else:
            normalised, _ = norm_rows(floats, self.norm, torch.float32, None)
            assert normalised is not None
            codes = quantize(normalised.mean(dim=(1, 2)), self.input_grid, channel_axis=1)
        assert codes is not None
        if seen is not None:
            seen["head"] = codes
        logits, _ = int8_linear(codes, self.weights, float_type=torch.float32)
        assert logits is not None
        return logits


def stem_unit(
    network: ConvNeXt, plan: QuantPlan, float_type: torch.dtype, device: torch.device, grid: Int8Grid | None
) -> StemUnit | None:
    """Return the stem as kernels; None where it is not one conv in patches, or not planned in int8."""
    layer = "downsample_layers.0.0"
    image_grid = planned_grid(network, plan, layer)
    if network.config.stem != "patch" or image_grid is None:
        return None
    norm = Norm.of(network.get_submodule("downsample_layers.0.1"), network.config.dims[0])
    weights = linear_weights(network, plan, layer, image_grid)
    size = network.config.patch_size
    return StemUnit(image_grid.to(device), weights.to(device), size, norm.to(device), float_type, grid)


def downsample_unit(
    network: ConvNeXt, plan: QuantPlan, stage: int, float_type: torch.dtype, device: torch.device, grid: Int8Grid | None
) -> DownsampleUnit | None:
    """Return the downsampling in front of a stage as kernels; None where it is not planned in int8."""
    layer = f"downsample_layers.{stage}.1"
    input_grid = planned_grid(network, plan, layer)
    if input_grid is None:
        return None
    conv = network.get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    norm = Norm.of(network.get_submodule(f"downsample_layers.{stage}.0"), conv.in_channels)
    weights = linear_weights(network, plan, layer, input_grid)
    size = conv.kernel_size[0]
    return DownsampleUnit(layer, norm.to(device), input_grid.to(device), weights.to(device), size, float_type, grid)


def head_unit(network: ConvNeXt, plan: QuantPlan, device: torch.device) -> HeadUnit | None:
    """Return pooling, norm and classifier as kernels; None where the classifier is not planned in int8."""
    input_grid = planned_grid(network, plan, "head") if network.config.num_classes else None
    if input_grid is None:
        return None
    norm = Norm.of(network.norm, network.config.dims[-1])
    pool_first = network.config.head_norm == "after_pool"
    weights = linear_weights(network, plan, "head", input_grid)
    return HeadUnit(norm.to(device), pool_first, input_grid.to(device), weights.to(device))
