"""What several kernels compute: the codes of a grid, LayerNorm over channels, GELU; in float32, as the simulated graph does."""

from __future__ import annotations

from functools import partial
from typing import Any

import triton
import triton.language as tl

# Interpreted, kernels run on a CPU, one program after the other, and there is nothing to tune.
INTERPRETED = bool(triton.knobs.runtime.interpret)


def tuned(key: list[str], configs: list[triton.Config], interpreted: triton.Config) -> Any:
    """Return Triton's autotuner for a kernel: the fastest of `configs` for each value of the arguments in `key`.

    Each is timed for 20 ms, some thousand runs of a kernel of these sizes. Under the interpreter the one configuration is taken.
    """
    timed = partial(triton.testing.do_bench, warmup=5, rep=20)
    return triton.autotune(configs=[interpreted] if INTERPRETED else configs, key=key, do_bench=timed)


@triton.jit
def codes_of(
    x: tl.tensor, channel: tl.tensor, inside: tl.tensor, grid_ptr: tl.tensor, channels: tl.tensor
) -> tl.tensor:
    """Return the int8 codes nearest to `x` on an `Int8Grid`, behind its multiply-add; halves to even.

    channel, inside: which channel each value is of, and whether there is one, in a shape that broadcasts to x's. grid_ptr: the
    grid's table. Adding 1.5 * 2^23 leaves no bit for a fraction: 2.5 + 12582912 gives 12582914, and 3.5 + 12582912 gives 12582916.
    That holds up to 2^22, so values are clamped first; the ends are whole numbers, so the codes stay the same.
    """
    x *= tl.load(grid_ptr + 4 + channel, mask=inside, other=0)
    x += tl.load(grid_ptr + 4 + channels + channel, mask=inside, other=0)
    steps = tl.minimum(tl.maximum(x * tl.load(grid_ptr), tl.load(grid_ptr + 1)), tl.load(grid_ptr + 2))
    return ((steps + 12582912.0) - 12582912.0 + tl.load(grid_ptr + 3)).to(tl.int8)


@triton.jit
def gelu(x: tl.tensor) -> tl.tensor:
    """Return x * Phi(x), with the error function itself, as torch.nn.GELU() has it."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def layer_norm(
    x: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    CHANNELS: tl.constexpr,
    epsilon: tl.tensor,
) -> tl.tensor:
    """Normalise each row over its channels. x: (rows, block); channel, inside: (1, block), as in `codes_of`."""
    mean = tl.sum(x, axis=1) / CHANNELS
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / CHANNELS
    weight = tl.load(weight_ptr + channel, mask=inside, other=0)
    return centred * tl.rsqrt(variance + epsilon)[:, None] * weight + tl.load(bias_ptr + channel, mask=inside, other=0)
