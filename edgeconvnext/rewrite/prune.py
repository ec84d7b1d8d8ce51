"""Structured pruning of a block's hidden channels: rows of pwconv1 and columns of pwconv2 go, without training.

One streaming pass over calibration images gathers, for each block, mean and covariance of the GELU outputs. What a
channel contributes to its block follows from these; so does, in closed form, the pwconv2 that makes up for the channels
removed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext import Block, ConvNeXt
from edgeconvnext.model.macs import count_macs, layer_macs

RIDGE = 1e-3
"""Weight of the penalty on changes of pwconv2, as a share of the mean variance of the channels kept."""


@dataclass(frozen=True)
class PruneResult:
    """A network with narrower blocks.

    macs_before, macs_after: multiply-adds at the input size that was asked for, batch 1.
    widths: hidden channels of each block by its path, "stages.2.4".
    errors: for each block that lost channels, the RMS error of its branch (before layer scale) relative to the branch's
        RMS variation, on the calibration images and for unchanged inputs.
    """

    module: ConvNeXt
    macs_before: int
    macs_after: int
    widths: dict[str, int]
    errors: dict[str, float]


@dataclass(frozen=True)
class BranchStatistics:
    """Second-order statistics of one block, float64.

    mean, covariance: of the hidden channels over all images and positions, (hidden,) and (hidden, hidden).
    output_power: mean square of the block's output, residual included, summed over channels.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    output_power: float


class _Accumulator:
    """Running sums of one block; their size does not depend on the number of images."""

    def __init__(self, hidden: int, device: torch.device) -> None:
        self.count = 0
        self.sum = torch.zeros(hidden, dtype=torch.float64, device=device)
        self.products = torch.zeros(hidden, hidden, dtype=torch.float64, device=device)
        self.power = 0.0

    def add_hidden(self, pwconv2: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Forward pre-hook of pwconv2; its input is (N, H, W, hidden)."""
        hidden = inputs[0].flatten(0, -2)
        self.count += len(hidden)
        self.sum += hidden.sum(dim=0, dtype=torch.float64)
        # The products of one batch are summed in float32; only the sum over batches has to be wider.
        self.products += hidden.T @ hidden

    def add_output(self, block: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Forward hook of the block; its output is (N, C, H, W)."""
        self.power += float(output.square().sum(dtype=torch.float64))

    def statistics(self) -> BranchStatistics:
        mean = self.sum / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        return BranchStatistics(mean, covariance, self.power / self.count)


def prune_hidden(
    module: ConvNeXt,
    images_batches: Iterable[torch.Tensor],
    macs_ratio: float,
    input_size: tuple[int, int],
    multiple: int = 8,
) -> PruneResult:
    """Remove the hidden channels that matter least until at most `macs_ratio` of the multiply-adds are left.

    images_batches: preprocessed calibration images, (N, C, H, W), read once.
    input_size: (height, width) for counting MACs.
    multiple: widths that change become multiples of it, and no block gets narrower than it.

    A channel's score is the variance of its activation times the squared norm of its pwconv2 column: the squared error
    its removal brings once its mean has moved into the bias. Scores are taken relative to the power of the block's
    output and per multiply-add saved, so that one ranking serves all blocks.

    Raises RewriteError for V2 networks, a ratio outside 0..1 or below what is reachable, and when there are no images.
    """
    widths = _check(module, macs_ratio, input_size, multiple)
    statistics = gather_statistics(module, images_batches)
    scores = {path: channel_scores(_block(module, path), statistics[path]) for path in widths}
    kept = _allocate(module, scores, macs_ratio, input_size, multiple)
    return _rebuild(module, kept, statistics, input_size)


@torch.no_grad()
def gather_statistics(module: ConvNeXt, images_batches: Iterable[torch.Tensor]) -> dict[str, BranchStatistics]:
    """Run the images through the network once; return the statistics of each block by its path."""
    accumulators, hooks = {}, []
    for path in _hidden_widths(module):
        block = _block(module, path)
        accumulator = _Accumulator(block.pwconv2.in_features, block.pwconv2.weight.device)
        hooks.append(block.pwconv2.register_forward_pre_hook(accumulator.add_hidden))
        hooks.append(block.register_forward_hook(accumulator.add_output))
        accumulators[path] = accumulator
    try:
        for images in images_batches:
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(accumulator.count for accumulator in accumulators.values()):
        raise RewriteError(
            "Pruning chooses channels on calibration images, and there are none; name a set with --calib."
        )
    statistics = {path: accumulator.statistics() for path, accumulator in accumulators.items()}
    broken = [path for path, values in statistics.items() if not values.covariance.isfinite().all()]
    if broken:
        raise RewriteError(
            f"The activations of {broken[0]} hold NaN or Inf on the calibration images, so its channels cannot be "
            f"ranked. Check the weights and the preprocessing of the checkpoint."
        )
    return statistics


def channel_scores(block: Block, statistics: BranchStatistics) -> torch.Tensor:
    """Return the share of the block's output power that each channel's variation contributes alone, (hidden,)."""
    columns = _output_weight(block).square().sum(dim=0)
    return statistics.covariance.diagonal() * columns / max(statistics.output_power, torch.finfo(torch.float64).tiny)


def refit(block: Block, statistics: BranchStatistics, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return pwconv2's weight and bias on the channels `kept`, and the relative RMS error of the branch they leave.

    kept: (hidden,), bool. With K kept and R removed channels, the change D of the kept weights minimises
    |W_R h_R - D h_K|^2 + ridge |D|^2 over the calibration positions, h centred: D = W_R C_RK (C_KK + ridge I)^-1. Few
    images thus leave the weights near what they were. The bias takes up the means.
    """
    weight = block.pwconv2.weight.detach().double()
    bias = block.pwconv2.bias.detach().double()
    covariance, mean = statistics.covariance, statistics.mean
    c_kk, c_rk, c_rr = covariance[kept][:, kept], covariance[~kept][:, kept], covariance[~kept][:, ~kept]
    ridge = RIDGE * float(c_kk.diagonal().mean()) + torch.finfo(torch.float64).tiny
    lost = weight[:, ~kept]
    cross = lost @ c_rk
    regularised = c_kk + ridge * torch.eye(len(c_kk), dtype=c_kk.dtype, device=c_kk.device)
    change = torch.linalg.solve(regularised, cross.T).T
    new_weight = weight[:, kept] + change
    new_bias = bias + weight @ mean - new_weight @ mean[kept]
    residual = _power(lost, c_rr) - 2 * float((change * cross).sum()) + _power(change, c_kk)
    total = _power(weight, covariance)
    return new_weight, new_bias, (max(residual, 0.0) / total) ** 0.5 if total > 0 else 0.0


def _check(module: ConvNeXt, macs_ratio: float, input_size: tuple[int, int], multiple: int) -> dict[str, int]:
    """Return the widths of all blocks, or raise RewriteError where the request cannot be met."""
    if module.config.version == 2:
        raise RewriteError(
            "Hidden channels of a ConvNeXt V2 cannot be pruned one by one: Global Response Normalization (GRN) divides "
            "each by the mean over all of them, so that removing one changes the rest. Prune a V1 network, or quantise "
            "this one unpruned."
        )
    if not 0 < macs_ratio <= 1:
        raise RewriteError(f"The share of multiply-adds to keep must lie above 0 and at most at 1; it is {macs_ratio}.")
    if multiple < 1:
        raise RewriteError(f"Widths are rounded to a multiple of at least 1; it is {multiple}.")
    widths = _hidden_widths(module)
    cost = _cost_per_channel(module, input_size)
    total = count_macs(module, input_size)
    lowest = total - sum((width - min(width, multiple)) * cost[path] for path, width in widths.items())
    if lowest > macs_ratio * total:
        # Rounded up, so that the ratio printed can be reached.
        reachable = -(-lowest * 1000 // total) / 1000
        raise RewriteError(
            f"Pruning hidden channels cannot reach {macs_ratio:g} of the multiply-adds: with {multiple} channels left "
            f"in every block, {reachable:.3f} remain (stem, depthwise and downsampling convs and head are not pruned). "
            f"Ask for {reachable:.3f} or more, or start from a smaller network."
        )
    return widths


def _allocate(
    module: ConvNeXt, scores: dict[str, torch.Tensor], macs_ratio: float, input_size: tuple[int, int], multiple: int
) -> dict[str, torch.Tensor]:
    """Choose the channels to keep, (hidden,) bool for each block.

    Each block's channels are put into groups by ascending score, the first group sized so that the rest is a multiple
    (a width of 20 in eights: 4, 8, and 8 that stay). Groups go, worst first over all blocks, until the budget is met.
    Means of ascending groups ascend, so each block loses its groups in order.
    """
    cost = _cost_per_channel(module, input_size)
    groups: list[tuple[float, str, torch.Tensor]] = []
    for path, score in scores.items():
        order = score.argsort(stable=True)
        removable = order[: len(order) - min(multiple, len(order))]
        remainder = len(removable) % multiple
        parts = [removable[:remainder], *removable[remainder:].split(multiple)]
        groups += [(float(score[part].mean()) / cost[path], path, part) for part in parts if len(part)]
    groups.sort(key=lambda group: group[0])
    kept = {path: torch.ones(len(score), dtype=torch.bool, device=score.device) for path, score in scores.items()}
    macs = total = count_macs(module, input_size)
    for _, path, part in groups:
        if macs <= macs_ratio * total:
            break
        kept[path][part] = False
        macs -= len(part) * cost[path]
    return kept


def _rebuild(
    module: ConvNeXt,
    kept: dict[str, torch.Tensor],
    statistics: dict[str, BranchStatistics],
    input_size: tuple[int, int],
) -> PruneResult:
    """Build the narrower network and fill it; `module` is left as it is."""
    widths = {path: int(mask.sum()) for path, mask in kept.items()}
    per_stage = iter(widths.values())
    hidden = tuple(tuple(next(per_stage) for _ in range(depth)) for depth in module.config.depths)
    tensors = module.state_dict()
    errors = {}
    for path, mask in kept.items():
        if mask.all():
            continue
        block = _block(module, path)
        tensors[f"{path}.pwconv1.weight"] = block.pwconv1.weight.detach()[mask]
        tensors[f"{path}.pwconv1.bias"] = block.pwconv1.bias.detach()[mask]
        weight, bias, errors[path] = refit(block, statistics[path], mask)
        tensors[f"{path}.pwconv2.weight"], tensors[f"{path}.pwconv2.bias"] = weight, bias
    pruned = ConvNeXt(dataclasses.replace(module.config, hidden=hidden)).to(next(module.parameters()))
    pruned.load_state_dict(tensors)
    pruned.train(module.training)
    return PruneResult(pruned, count_macs(module, input_size), count_macs(pruned, input_size), widths, errors)


def _hidden_widths(module: ConvNeXt) -> dict[str, int]:
    return {
        f"stages.{stage}.{index}": width
        for stage, widths in enumerate(module.config.hidden_widths)
        for index, width in enumerate(widths)
    }


def _block(module: ConvNeXt, path: str) -> Block:
    return cast(Block, module.get_submodule(path))


def _output_weight(block: Block) -> torch.Tensor:
    """Return pwconv2's weight as the residual stream sees it, layer scale included, float64 (dim, hidden)."""
    weight = block.pwconv2.weight.detach().double()
    return weight if block.gamma is None else weight * block.gamma.detach().double()[:, None]


def _cost_per_channel(module: ConvNeXt, input_size: tuple[int, int]) -> dict[str, int]:
    """Return the multiply-adds of one hidden channel of each block: a row of pwconv1 and a column of pwconv2."""
    macs = layer_macs(module, input_size)
    return {
        path: (macs[f"{path}.pwconv1"] + macs[f"{path}.pwconv2"]) // width
        for path, width in _hidden_widths(module).items()
    }


def _power(weight: torch.Tensor, covariance: torch.Tensor) -> float:
    """Return the variance of weight @ h, summed over outputs, where h has `covariance`."""
    return float(((weight @ covariance) * weight).sum())
