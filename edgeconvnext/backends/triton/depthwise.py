"""Kernel: depthwise conv, LayerNorm, and the codes that go into pwconv1."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from edgeconvnext.backends.triton.device_functions import codes_of, layer_norm, tuned
from edgeconvnext.backends.triton.grids import DepthwiseWeights, Int8Grid
from edgeconvnext.backends.triton.norms import Norm

# A program computes a few positions of all channels, because LayerNorm needs them all. Its sums stay in registers: 4 positions of
# 768 channels, padded to 1024, are 32 float32 for each of 128 threads.
_CONFIGS = [
    triton.Config({"POSITIONS": positions}, num_warps=warps)
    for positions, warps in ((1, 1), (2, 2), (4, 4), (8, 4), (8, 8), (16, 8))
]


def depthwise_norm(x: torch.Tensor, weights: DepthwiseWeights, norm: Norm, grid: Int8Grid) -> torch.Tensor:
    """Return the codes of `grid`, (N, H, W, C), of the normalised conv of `x`.

    x: (N, H, W, C), int8 codes or floats, as the weights are.
    """
    n, height, width, channels = x.shape
    positions = n * height * width
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    _depthwise_norm_kernel[lambda meta: (triton.cdiv(positions, meta["POSITIONS"]),)](
        x,
        weights.taps,
        weights.scale,
        weights.bias,
        norm.weight,
        norm.bias,
        codes,
        grid.table,
        positions,
        height,
        width,
        float(weights.input_zero),
        norm.epsilon or 0.0,
        CHANNELS=channels,
        BLOCK=triton.next_power_of_2(channels),
        KERNEL=weights.kernel_size,
        HAS_ZERO=weights.input_zero != 0,
        HAS_NORM=norm.epsilon is not None,
    )
    return codes


@tuned(["positions", "CHANNELS"], _CONFIGS, interpreted=triton.Config({"POSITIONS": 512}))
@triton.jit
def _depthwise_norm_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    norm_weight_ptr: tl.tensor,
    norm_bias_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    grid_ptr: tl.tensor,
    positions: int,
    height: int,
    width: int,
    input_zero: float,
    epsilon: float,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    KERNEL: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_NORM: tl.constexpr,
    POSITIONS: tl.constexpr,
) -> None:
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, BLOCK)[None, :]
    inside = channel < CHANNELS
    column = position % width
    row = (position // width) % height
    start = position.to(tl.int64) * CHANNELS
    # Sums of codes are whole numbers of at most 121 * 255 * 127 = 3.9 million (an 11x11 kernel); float32 is exact to 16.7 million.
    total = tl.zeros((POSITIONS, BLOCK), tl.float32)
    for down in range(KERNEL):  # 49 taps written out would compile for eight seconds
        for right in tl.static_range(KERNEL):
            y = row + (down - KERNEL // 2)
            x = column + (right - KERNEL // 2)
            taken = (position < positions) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            mask = taken[:, None] & inside
            neighbour = start + ((down - KERNEL // 2) * width + (right - KERNEL // 2)) * CHANNELS
            value = tl.load(x_ptr + neighbour[:, None] + channel, mask=mask, other=0).to(tl.float32)
            if HAS_ZERO:
                value = tl.where(mask, value - input_zero, 0.0)
            weight = tl.load(weight_ptr + (down * KERNEL + right) * CHANNELS + channel, mask=inside, other=0)
            total += value * weight.to(tl.float32)
    result = total * tl.load(scale_ptr + channel, mask=inside, other=0)
    result += tl.load(bias_ptr + channel, mask=inside, other=0)
    if HAS_NORM:
        result = layer_norm(result, norm_weight_ptr, norm_bias_ptr, channel, inside, CHANNELS, epsilon)
    codes = codes_of(result, channel, inside, grid_ptr, CHANNELS)
    tl.store(codes_ptr + start[:, None] + channel, codes, mask=(position < positions)[:, None] & inside)
