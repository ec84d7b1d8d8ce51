"""Whether float16 holds a network's activations: largest magnitudes on calibration images, and the streams that are scaled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from edgeconvnext.model.network import Network
from edgeconvnext.quantization.ranges import LARGEST_FLOAT16
from edgeconvnext.rewrite.residual_streams import exponents_for, scale_streams, scales_exactly, stream_paths

NetworkType = TypeVar("NetworkType", bound=Network)

HEADROOM = 2.0
"""Activations of other images, and of quantised layers, may be larger than those of the calibration images by this factor."""

LARGEST_FINITE = float(torch.finfo(torch.float32).max)


@dataclass(frozen=True)
class Float16Range:
    """Activations that float16 does not hold with HEADROOM.

    peaks: largest magnitude by path of the module that gives it, in forward order, before any scaling.
    stream_exponents: by stage, k of the streams that were scaled by 2^-k; () where none was. remaining: peaks that no scaling
    lowered far enough, as they are in the network that is exported.
    """

    peaks: dict[str, float]
    stream_exponents: tuple[int, ...]
    remaining: dict[str, float]


@contextmanager
def watched_peaks(module: nn.Module, *, inputs: bool = False) -> Iterator[dict[str, float]]:
    """Give a dict that fills, while `module` runs, with the largest magnitude of every submodule's output, by path.

    NaN and infinity count as float32's largest number. A Sequential gives what its last part gives, and is left out. inputs: also
    look at what submodules take, as "input of <path>": a sum that a forward makes goes into the next submodule.
    """
    peaks: dict[str, float] = {}

    def watch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, args: Any, output: Any) -> None:
            values = [(path, output), *((f"input of {path}", value) for value in (args if inputs else ()))]
            for name, value in values:
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                    peaks[name] = max(peaks.get(name, 0.0), _magnitude(value))

        return hook

    handles = [
        part.register_forward_hook(watch(path))
        for path, part in module.named_modules()
        if path and not isinstance(part, nn.Sequential | nn.ModuleList | nn.Identity)
    ]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def _magnitude(tensor: torch.Tensor) -> float:
    low, high = (float(value) for value in tensor.aminmax())
    return max(abs(low), abs(high)) if math.isfinite(low) and math.isfinite(high) else LARGEST_FINITE


def beyond_float16(peaks: Mapping[str, float]) -> dict[str, float]:
    """Return the peaks that float16 does not hold with HEADROOM."""
    return {path: peak for path, peak in peaks.items() if peak > LARGEST_FLOAT16 / HEADROOM}


def peaks_of(module: Network, batches: Iterable[torch.Tensor]) -> dict[str, float]:
    """Run `module` over images (N, C, H, W) and return the largest magnitude of every submodule's output, by path."""
    with torch.inference_mode(), watched_peaks(module) as peaks:
        for images in batches:
            module(images)
    return peaks


def fit_float16(module: NetworkType, peaks: Mapping[str, float]) -> tuple[NetworkType, Float16Range]:
    """Scale the residual streams that float16 does not hold, exactly; return the network, and what of it float16 does not hold.

    peaks: as `watched_peaks` fills them. The network itself is returned where nothing is scaled.
    """
    largest = LARGEST_FLOAT16 / HEADROOM
    above = beyond_float16(peaks)
    exponents = exponents_for(module, peaks, largest) if above else ()
    factors = {
        path: 2.0**-exponent
        for stage, exponent in enumerate(exponents)
        if scales_exactly(module, stage)
        for path in stream_paths(module, stage)
    }
    scaled = {path: peak * factors.get(path, 1.0) for path, peak in above.items()}
    remaining = {path: peak for path, peak in scaled.items() if peak > largest}
    return scale_streams(module, exponents) if exponents else module, Float16Range(above, exponents, remaining)
