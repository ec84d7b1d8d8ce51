"""Bytes and operations of each kernel by formula, and the time that no implementation of them can beat.

A kernel reads what it needs once and writes what it hands on once; weights count at every call. P positions, C channels, D hidden
channels, f bytes of a float in the stream:

    depthwise + norm   PC read, PC written, 49C weights             2 * 49 * PC float operations
    pwconv1 + GELU     PC read, PD written, CD weights              2 * PCD int8 operations
    pwconv2 + residual PD + fPC read, fPC + PC written, CD weights  2 * PCD int8 operations
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeconvnext.backends.triton.gpu import Peaks
from edgeconvnext.model.convnext.network import ConvNeXtConfig


@dataclass(frozen=True)
class Work:
    """What one kernel moves and computes. int8_ops, float_ops: two for each multiply-add."""

    kernel: str
    bytes: int
    int8_ops: int = 0
    float_ops: int = 0

    def seconds(self, peaks: Peaks) -> float:
        """Return the time of the slowest of the three, the other two being done meanwhile."""
        return max(self.bytes / peaks.bytes_per_s, self.int8_ops / peaks.int8_ops, self.float_ops / peaks.float_ops)


def network_work(config: ConvNeXtConfig, input_size: tuple[int, int], batch: int, float_bytes: int) -> list[Work]:
    """Return the work of a network whose layers are all int8, in forward order. float_bytes: of the stream between blocks."""
    height, width = (side // config.stem_stride for side in input_size)
    positions = batch * height * width
    work = _stem(config, batch * input_size[0] * input_size[1], positions, float_bytes)
    for stage, (channels, widths) in enumerate(zip(config.dims, config.hidden_widths, strict=True)):
        if stage:
            before = config.dims[stage - 1]
            positions //= 4
            work += _downsample(positions, before, channels, float_bytes)
        for index, hidden in enumerate(widths):
            hands_on_codes = index < len(widths) - 1
            work += block_work(positions, channels, hidden, config.kernel_size, float_bytes, hands_on_codes)
    channels = config.dims[-1]
    work.append(Work("pool", positions * channels * float_bytes))
    head = config.num_classes * channels
    work.append(Work("head", batch * channels + head + 4 * batch * config.num_classes, int8_ops=2 * batch * head))
    return work


def block_work(
    positions: int, channels: int, hidden: int, kernel_size: int, float_bytes: int, hands_on_codes: bool
) -> list[Work]:
    """Return the work of one block's three kernels. hands_on_codes: whether a block follows, which reads codes."""
    values, wide, weights = positions * channels, positions * hidden, channels * hidden
    taps = kernel_size**2
    return [
        Work("depthwise", 2 * values + taps * channels, float_ops=2 * taps * values),
        Work("pwconv1", values + wide + weights, int8_ops=2 * positions * weights),
        Work("pwconv2", wide + (2 * float_bytes + hands_on_codes) * values + weights, int8_ops=2 * positions * weights),
    ]


def _stem(config: ConvNeXtConfig, pixels: int, positions: int, float_bytes: int) -> list[Work]:
    image, values = pixels * config.in_channels, positions * config.dims[0]
    weights = config.patch_size**2 * config.in_channels * config.dims[0]
    return [
        Work("image codes", (4 + 1) * image),
        Work("patches", 2 * image),
        Work("stem", image + 4 * values + weights, int8_ops=2 * positions * weights),
        Work("stem norm", (4 + float_bytes + 1) * values),
    ]


def _downsample(positions: int, before: int, channels: int, float_bytes: int) -> list[Work]:
    """positions: behind the conv, a quarter of those in front of it."""
    read, written, weights = 4 * positions * before, positions * channels, 4 * before * channels
    return [
        Work("downsample norm", (float_bytes + 1) * read),
        Work("patches", 2 * read),
        Work("downsample", read + (float_bytes + 1) * written + weights, int8_ops=2 * positions * weights),
    ]
