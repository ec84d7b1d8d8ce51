"""Residual streams scaled by a power of two, so that float16 holds them: the norms that read a stream undo it.

The stream of stage s is what its blocks add to: x = x + f(norm(dwconv(x))). Let c = 2^-k and write x' = c x. Then

  what starts the stream   the downsampling conv, or the affine of the stem's norm: weight and bias times c
  dwconv                   w x' + c b = c (w x + b): the bias times c
  norm                     (c y - c m) / sqrt(c^2 v + c^2 eps) = (y - m) / sqrt(v + eps): eps times c^2
  pwconv2                  its output joins the stream: weight and bias times c
  what reads the stream    the norm of the next stage or of the head: eps times c^2

Every changed number is multiplied by a power of two, and so is every sum and product made from it. In float32 the rewrite is
exact to the last bit. Example: k = 4 takes a stream of 276,357 to 17,272, and eps = 1e-6 becomes 3.9e-9.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import nn

from edgeconvnext.model.convnext.network import MOST_EXPONENT, Block, ConvNeXt
from edgeconvnext.model.network import Network

NetworkType = TypeVar("NetworkType", bound=Network)


def exponents_for(module: Network, peaks: Mapping[str, float], largest: float) -> tuple[int, ...]:
    """Return for each stage the k whose factor 2^-k takes its stream to `largest` or below; () where none needs one.

    peaks: largest magnitude of each module's output, by path. Streams that no norm reads, or that are outputs, get zero.
    """
    exponents = [
        max(
            (math.ceil(math.log2(peaks[path] / largest)) for path in stream_paths(module, stage) if peaks.get(path)),
            default=0,
        )
        if scales_exactly(module, stage)
        else 0
        for stage in range(len(module.stages))
    ]
    exponents = [min(max(0, exponent), MOST_EXPONENT) for exponent in exponents]
    return tuple(exponents) if any(exponents) else ()


def scales_exactly(module: Network, stage: int) -> bool:
    """Say whether the stream of a stage can be scaled: each of its readers is a LayerNorm, behind a depthwise conv or not."""
    if not module.inverted_bottlenecks:
        return False
    is_last = stage == len(module.stages) - 1
    if module.config.ends_with == "stages" or (is_last and module.config.ends_with != "head"):
        return False
    norms = [*_norms_of(cast(ConvNeXt, module), stage), *([] if stage else [module.downsample_layers[0][-1]])]  # type: ignore[index]
    return all(isinstance(norm, nn.LayerNorm) for norm in norms)


def stream_paths(module: Network, stage: int) -> list[str]:
    """Return the modules whose outputs scale with a stage's stream: its start, the depthwise convs, what is added, the sums."""
    start = f"downsample_layers.{stage}"
    paths = [start, f"{start}.{len(cast(nn.Sequential, module.get_submodule(start))) - 1}"]
    for block in range(len(module.blocks(stage))):
        path = f"stages.{stage}.{block}"
        paths += [f"{path}.dwconv", f"{path}.pwconv2", path]
    return paths


def scale_streams(module: NetworkType, exponents: Sequence[int]) -> NetworkType:
    """Return a copy whose stream of stage s is 2^-exponents[s] times the original's; () stands for zeros.

    What `module.config.stream_exponents` says is there already counts, so that doing it twice changes nothing.
    Raises ValueError where a stream does not scale exactly.
    """
    copied = copy.deepcopy(module)
    if not copied.inverted_bottlenecks:
        if any(exponents):
            raise ValueError(f"the streams of a {type(module).__name__} do not scale exactly")
        return copied
    scaled = cast(ConvNeXt, copied)
    before = scaled.config.stream_exponents or (0,) * len(scaled.stages)
    after = tuple(exponents) or (0,) * len(scaled.stages)
    for stage, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            if not scales_exactly(scaled, stage):
                raise ValueError(f"the stream of stage {stage} does not scale exactly")
            _scale(scaled, stage, 2.0 ** (old - new))
    scaled.config = scaled.config.replace(stream_exponents=after if any(after) else ())
    return cast(NetworkType, scaled)


def _scale(module: ConvNeXt, stage: int, factor: float) -> None:
    """Multiply the stream of one stage by a power of two, in place."""
    start = cast(nn.Sequential, module.downsample_layers[stage])[-1]
    grown: list[object] = [start.weight, start.bias]
    for block in cast(list[Block], module.blocks(stage)):
        grown += [block.dwconv.bias, block.pwconv2.weight, block.pwconv2.bias]
    for parameter in grown:
        cast(torch.Tensor, parameter).data.mul_(factor)
    for norm in _norms_of(module, stage):
        cast(nn.LayerNorm, norm).eps *= factor**2


def _norms_of(module: ConvNeXt, stage: int) -> Iterator[nn.Module]:
    """Yield the norms that read the stream of a stage: of its blocks, and of what comes after the last one."""
    yield from (cast(Block, block).norm for block in module.blocks(stage))
    is_last = stage == len(module.stages) - 1
    yield module.norm if is_last else cast(nn.Sequential, module.downsample_layers[stage + 1])[0]
