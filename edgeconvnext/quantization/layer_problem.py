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

# Positions that second-order statistics come from, over all fit images; wide layers take more, so that each of their weights is
# still determined by several.
GRAM_POSITIONS = 32_768
POSITIONS_PER_COLUMN = 8
# Elements of the inputs kept for choosing grids, on each side of the split.
SAMPLE_ELEMENTS = 1_000_000
SAMPLE_POSITIONS = 2048


@dataclass
class LayerProblem:
    """Statistics of a layer's input x, before any affine or quantization, and of the output t that the float network has there.

    Groups G, rows R and columns K are as in `quantize.rounding`. mean: (G, K); covariance: (G, K, K); target_mean: (G, R); cross:
    covariance of t with x, (G, R, K). fit, held_out: sampled inputs, (positions, G, K). channel_low, channel_high: extremes of
    every input channel over all fit images, (C,). channels: the input channel of each column, (G, K), long.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    target_mean: torch.Tensor
    cross: torch.Tensor
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
) -> LayerProblem:
    """Pass over the unit's inputs once and return the layer's problem.

    reference: the float network; working: the same network, quantised up to this layer. fit, held_out: batches of the unit's
    input in both networks (reference's, working's), (N, C, H, W). images: number of fit and of held-out images.
    """
    found = working.get_submodule(layer)
    patches = _Patches(found)
    columns = patches.columns
    wanted = max(GRAM_POSITIONS, POSITIONS_PER_COLUMN * columns) if patches.groups == 1 else GRAM_POSITIONS // 4
    kept = max(256, min(SAMPLE_POSITIONS, SAMPLE_ELEMENTS // (patches.groups * columns)))
    generator = torch.Generator().manual_seed(0)
    moments = _Moments(patches.groups, columns)
    low = high = None
    sample: list[torch.Tensor] = []
    for expected, given in fit():
        x = _input_of(working, unit, layer, given)
        t = _output_of(reference, unit, layer, expected)
        channel_first = x if patches.is_conv else x.movedim(-1, 1)
        axes = [axis for axis in range(channel_first.dim()) if axis != 1]
        least, most = channel_first.amin(axes), channel_first.amax(axes)
        if not bool(least.isfinite().all() & most.isfinite().all()):
            raise QuantizationError(
                f"The input of {layer} contains NaN or infinity on the calibration images. Check the checkpoint and that the "
                "preprocessing (mean, std, resolution) is the one it was trained with."
            )
        low = least if low is None else torch.minimum(low, least)
        high = most if high is None else torch.maximum(high, most)
        rows, targets = patches.sample(x, t, -(-wanted // images[0]), generator)
        moments.add(rows, targets)
        sample.append(rows[_thinned(len(rows), -(-kept * len(given) // images[0]))].clone())
    held: list[torch.Tensor] = []
    for _, given in held_out():
        x = _input_of(working, unit, layer, given)
        rows, _ = patches.sample(x, None, -(-kept // images[1]), generator)
        held.append(rows)
    assert low is not None and high is not None
    mean, covariance, target_mean, cross = moments.result()
    return LayerProblem(
        mean, covariance, target_mean, cross, torch.cat(sample), torch.cat(held), low, high, patches.channels
    )


def weight_rows(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as (G, R, K)."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return weight.reshape(groups, len(weight) // groups, -1)


class _Patches:
    """Cuts what each output position of a layer sees out of its input."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.is_conv = isinstance(layer, nn.Conv2d)
        weight = cast(torch.Tensor, layer.weight)
        taps = weight[0, 0].numel() if weight.dim() == 4 else 1
        self.groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        self.columns = weight.shape[1] * taps
        # Column k of group g meets channel g * (in / groups) + k // taps.
        self.channels = torch.arange(self.groups * weight.shape[1]).repeat_interleave(taps).view(self.groups, -1)

    def sample(
        self, x: torch.Tensor, t: torch.Tensor | None, per_image: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs (positions, G, K) and outputs (positions, G, R) at `per_image` random positions of each image."""
        if not isinstance(self.layer, nn.Conv2d):
            flat = x.reshape(len(x), -1, x.shape[-1])
            image, position = _positions(len(x), flat.shape[1], per_image, generator)
            rows = flat[image, position][:, None]
            return rows, rows if t is None else t.reshape(len(x), -1, t.shape[-1])[image, position][:, None]
        conv = self.layer
        (kernel, _), (stride, _) = conv.kernel_size, conv.stride
        pad = cast(tuple[int, int], conv.padding)[0]
        windows = nn.functional.pad(x, (pad,) * 4).unfold(2, kernel, stride).unfold(3, kernel, stride)
        height, width = windows.shape[2:4]
        image, position = _positions(len(x), height * width, per_image, generator)
        row, column = position // width, position % width
        found = windows.permute(0, 2, 3, 1, 4, 5)[image, row, column]  # (positions, C, kH, kW)
        rows = found.reshape(len(found), self.groups, self.columns)
        if t is None:
            return rows, rows
        outputs = t.permute(0, 2, 3, 1)[image, row, column]
        return rows, outputs.view(len(found), self.groups, -1)


def _positions(
    images: int, available: int, wanted: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and position of a random sample, without putting back, the same positions for every image of the batch."""
    chosen = torch.randperm(available, generator=generator)[:wanted]
    return torch.arange(images).repeat_interleave(len(chosen)), chosen.repeat(images)


def _thinned(count: int, wanted: int) -> torch.Tensor:
    """Return at most `wanted` of `count` indices, evenly spread."""
    return torch.linspace(0, count - 1, min(wanted, count)).round().long()


class _Moments:
    """Sums over positions: products of a batch in float32, over batches in float64."""

    def __init__(self, groups: int, columns: int) -> None:
        self.count = 0
        self.sum = torch.zeros(groups, columns, dtype=torch.float64)
        self.products = torch.zeros(groups, columns, columns, dtype=torch.float64)
        self.target_sum: torch.Tensor | None = None
        self.cross: torch.Tensor | None = None
        self.origin: torch.Tensor | None = None

    def add(self, rows: torch.Tensor, targets: torch.Tensor) -> None:
        """rows: (positions, G, K); targets: (positions, G, R). The first batch's mean is taken off, so that float32 suffices."""
        if self.origin is None:
            self.origin = rows.mean(dim=0)
            self.target_sum = torch.zeros(targets.shape[1:], dtype=torch.float64)
            self.cross = torch.zeros(*targets.shape[1:], rows.shape[2], dtype=torch.float64)
        assert self.target_sum is not None and self.cross is not None
        x, t = (rows - self.origin).permute(1, 0, 2), targets.permute(1, 2, 0)
        self.count += len(rows)
        self.sum += x.sum(dim=1, dtype=torch.float64)
        self.products += x.transpose(1, 2) @ x
        self.target_sum += t.sum(dim=2, dtype=torch.float64)
        self.cross += t @ x

    def result(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return mean, covariance, target mean and cross covariance."""
        assert self.origin is not None and self.target_sum is not None and self.cross is not None
        mean, target_mean = self.sum / self.count, self.target_sum / self.count
        covariance = self.products / self.count - mean[:, :, None] * mean[:, None]
        cross = self.cross / self.count - target_mean[:, :, None] * mean[:, None]
        return mean + self.origin, covariance, target_mean, cross


def _input_of(module: Network, unit: Unit, layer: str, x: torch.Tensor) -> torch.Tensor:
    """Run the unit up to `layer` and return what reaches it, before an affine of its own."""
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

    found = module.get_submodule(layer)
    handle = found.register_forward_pre_hook(stop) if before else found.register_forward_hook(stop)
    try:
        unit.run(module, x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]
