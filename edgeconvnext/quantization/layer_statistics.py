"""What is known about one layer while it is quantised: what comes in from the quantised layers before it, what should come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.network import Network
from edgeconvnext.model.units import Unit
from edgeconvnext.rewrite.moments import Moments, MomentSums
from edgeconvnext.rewrite.patches import windows

# Positions that second-order statistics come from, over all fit images; wide layers take more, so that each of their weights is
# still determined by several.
GRAM_POSITIONS = 32_768
POSITIONS_PER_COLUMN = 8
# Elements of the inputs kept for choosing grids, on each side of the split.
SAMPLE_ELEMENTS = 1_000_000
SAMPLE_POSITIONS = 2048


@dataclass(frozen=True)
class LayerStatistics:
    """Calibration statistics of one layer: of its input x, before smoothing and quantization, and of the float network's output t.

    Groups G, rows R and columns K are as in `quantization.rounding`. moments: of x and t, with an axis of groups. fit, held_out:
    sampled inputs, (positions, G, K). channel_low, channel_high: extremes of every input channel over all fit images, (C,).
    channels: the input channel of each column, (G, K), long.
    """

    moments: Moments
    fit: torch.Tensor
    held_out: torch.Tensor
    channel_low: torch.Tensor
    channel_high: torch.Tensor
    channels: torch.Tensor


class _Reached(Exception):
    """The layer that is looked at has run; what comes behind it is not needed."""


def gather(
    reference: Network,
    working: Network,
    unit: Unit,
    layer: str,
    fit: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]],
    held_out: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]],
    images: tuple[int, int],
) -> LayerStatistics:
    """Pass over the unit's inputs once and return the layer's statistics.

    reference: the float network; working: the same network, quantised up to this layer. fit, held_out: batches of the unit's
    input in both networks (reference's, working's), (N, C, H, W). images: number of fit and of held-out images.

    Raises QuantizationError where the layer's input is NaN or infinite.
    """
    sampler = _PatchSampler(working.get_submodule(layer))
    fit_images, held_out_images = images
    positions = -(-sampler.moment_positions // fit_images)
    generator = torch.Generator().manual_seed(0)
    sums = MomentSums(sampler.columns, sampler.rows, sampler.groups)
    extremes = _ChannelExtremes(layer, sampler.is_conv)
    fit_sample: list[torch.Tensor] = []
    for reference_input, working_input in fit():
        x = _input_of(working, unit, layer, working_input)
        t = _output_of(reference, unit, layer, reference_input)
        extremes.add(x)
        rows, targets = sampler.sample(x, t, positions, generator)
        sums.add(rows.permute(1, 0, 2), targets.permute(1, 0, 2))
        wanted = -(-sampler.sample_positions * len(working_input) // fit_images)
        fit_sample.append(rows[_thinned(len(rows), wanted)].clone())
    held_out_sample: list[torch.Tensor] = []
    for _, working_input in held_out():
        x = _input_of(working, unit, layer, working_input)
        rows, _ = sampler.sample(x, None, -(-sampler.sample_positions // held_out_images), generator)
        held_out_sample.append(rows)
    low, high = extremes.result()
    return LayerStatistics(
        sums.result(), torch.cat(fit_sample), torch.cat(held_out_sample), low, high, sampler.channels
    )


def weight_rows(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as (G, R, K)."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return weight.reshape(groups, len(weight) // groups, -1)


class _ChannelExtremes:
    """Least and largest value of every input channel over all batches."""

    def __init__(self, layer: str, is_conv: bool) -> None:
        self.layer = layer
        self.is_conv = is_conv
        self.low: torch.Tensor | None = None
        self.high: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        """x: (N, C, H, W) of a conv, (..., C) of a linear. Raises QuantizationError where it is not finite."""
        channel_first = x if self.is_conv else x.movedim(-1, 1)
        axes = [axis for axis in range(channel_first.dim()) if axis != 1]
        low, high = channel_first.amin(axes), channel_first.amax(axes)
        if not bool(low.isfinite().all() & high.isfinite().all()):
            raise QuantizationError(
                f"The input of {self.layer} contains NaN or infinity on the calibration images. Check the checkpoint and that "
                "the preprocessing (mean, std, resolution) is the one it was trained with."
            )
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both, (C,) each."""
        assert self.low is not None and self.high is not None
        return self.low, self.high


class _PatchSampler:
    """Takes what some output positions of a layer see out of its input.

    groups, rows, columns: G, R and K of the layer's weight. moment_positions, sample_positions: how many the moments and the
    sample of one side of the split come from, over all images.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.is_conv = isinstance(layer, nn.Conv2d)
        weight = cast(torch.Tensor, layer.weight)
        taps = weight[0, 0].numel() if weight.dim() == 4 else 1
        self.groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        self.rows = len(weight) // self.groups
        self.columns = weight.shape[1] * taps
        # Column k of group g meets channel g * (in / groups) + k // taps.
        self.channels = torch.arange(self.groups * weight.shape[1]).repeat_interleave(taps).view(self.groups, -1)
        self.moment_positions = (
            max(GRAM_POSITIONS, POSITIONS_PER_COLUMN * self.columns) if self.groups == 1 else GRAM_POSITIONS // 4
        )
        self.sample_positions = max(256, min(SAMPLE_POSITIONS, SAMPLE_ELEMENTS // (self.groups * self.columns)))

    def sample(
        self, x: torch.Tensor, t: torch.Tensor | None, per_image: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs (positions, G, K) and outputs (positions, G, R) at `per_image` random positions of each image."""
        if not isinstance(self.layer, nn.Conv2d):
            flat = x.reshape(len(x), -1, x.shape[-1])
            image, position = _positions(len(x), flat.shape[1], per_image, generator)
            rows = flat[image, position][:, None]
            return rows, rows if t is None else t.reshape(len(x), -1, t.shape[-1])[image, position][:, None]
        patches = windows(self.layer, x)
        height, width = patches.shape[2:4]
        image, position = _positions(len(x), height * width, per_image, generator)
        row, column = position // width, position % width
        patches = patches.permute(0, 2, 3, 1, 4, 5)[image, row, column]  # (positions, C, kH, kW)
        rows = patches.reshape(len(patches), self.groups, self.columns)
        if t is None:
            return rows, rows
        outputs = t.permute(0, 2, 3, 1)[image, row, column]
        return rows, outputs.view(len(rows), self.groups, -1)


def _positions(
    images: int, available: int, wanted: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and position of a random sample, without putting back, the same positions for every image of the batch."""
    chosen = torch.randperm(available, generator=generator)[:wanted]
    return torch.arange(images).repeat_interleave(len(chosen)), chosen.repeat(images)


def _thinned(count: int, wanted: int) -> torch.Tensor:
    """Return at most `wanted` of `count` indices, evenly spread."""
    return torch.linspace(0, count - 1, min(wanted, count)).round().long()


def _input_of(module: Network, unit: Unit, layer: str, x: torch.Tensor) -> torch.Tensor:
    """Run the unit up to `layer` and return what reaches it, before a scale and shift of its own."""
    return _watch(module, unit, layer, x, lambda args, _output: args[0], before=True)


def _output_of(module: Network, unit: Unit, layer: str, x: torch.Tensor) -> torch.Tensor:
    return _watch(module, unit, layer, x, lambda _args, output: output, before=False)


def _watch(
    module: Network, unit: Unit, layer: str, x: torch.Tensor, pick: Callable[[Any, Any], torch.Tensor], before: bool
) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        seen.append(pick(args, output))
        raise _Reached

    watched = module.get_submodule(layer)
    handle = watched.register_forward_pre_hook(stop) if before else watched.register_forward_hook(stop)
    try:
        unit.run(module, x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]
