"""BatchNorm in a LayerNorm's place while a network is trained, and its exact fold into the layers around it afterwards."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from edgeconvnext.model.convnext.network import ConvNeXt


class ChannelNorm(nn.Module):
    """BatchNorm over all positions. x: (N, C, H, W) with channel_axis 1, else channels last."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int, channel_axis: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.channel_axis = channel_axis
        self.momentum = 0.01
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x if self.channel_axis == 1 else x.flatten(0, -2)
        return F.batch_norm(
            rows, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        ).view_as(x)


def with_batch_norms(module: ConvNeXt, paths: Collection[str]) -> ConvNeXt:
    """Return a copy with a ChannelNorm at each of `paths`, where a LayerNorm was replaced by an Identity."""
    trained = copy.deepcopy(module)
    for path in paths:
        axis = 1 if path.startswith("downsample_layers") or (path == "norm" and _pools_last(module)) else -1
        trained.set_submodule(path, ChannelNorm(_channels(module, path), axis))
    return trained


@torch.no_grad()
def leave_inputs_as_they_are(module: ConvNeXt, batches: Iterable[torch.Tensor]) -> None:
    """Give every ChannelNorm the statistics of its inputs, in place, and weights that undo them.

    batches: images, (N, C, H, W). In eval mode the norms are then the identity, and in training as nearly as a batch's statistics
    are all images'.
    """
    sums: dict[ChannelNorm, list[torch.Tensor]] = {}

    def note(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(norm, ChannelNorm)
        x = args[0].double()
        rows = x.transpose(0, 1).flatten(1) if norm.channel_axis == 1 else x.flatten(0, -2).T
        batch_sums = torch.tensor(rows.shape[1]), rows.sum(1), rows.square().sum(1)
        sums[norm] = [a + b for a, b in zip(sums[norm], batch_sums, strict=True)] if norm in sums else list(batch_sums)

    handles = [norm.register_forward_pre_hook(note) for norm in module.modules() if isinstance(norm, ChannelNorm)]
    try:
        module.eval()
        for batch in batches:
            module(batch)
    finally:
        for handle in handles:
            handle.remove()
    for norm, (count, total, squares) in sums.items():
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)


@torch.no_grad()
def fold_batch_norms(module: ConvNeXt) -> ConvNeXt:
    """Fold every ChannelNorm away, with its running statistics; exact in eval mode.

    A block's goes into its depthwise conv, the stem's into its last conv, a downsampling one into its 2x2 conv, the head's into
    the classifier. Where each stood is an Identity, named in the config's `identity_norms`.
    """
    folded = copy.deepcopy(module)
    gone = list(folded.config.identity_norms)
    for path in folded.config.norm_paths:
        norm = folded.get_submodule(path)
        if not isinstance(norm, ChannelNorm):
            continue
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        owner, _, name = path.rpartition(".")
        if owner.startswith("stages"):
            _fold_behind(cast(nn.Conv2d, folded.get_submodule(f"{owner}.dwconv")), scale, shift)
        elif owner == "downsample_layers.0":
            _fold_behind(cast(nn.Conv2d, folded.get_submodule(f"{owner}.{int(name) - 1}")), scale, shift)
        elif owner:
            _fold_before(cast(nn.Conv2d, folded.get_submodule(f"{owner}.1")), scale, shift)
        else:
            _fold_before(cast(nn.Linear, folded.head), scale, shift)
        folded.set_submodule(path, nn.Identity())
        gone.append(path)
    ordered = tuple(path for path in folded.config.norm_paths if path in gone)
    folded.config = dataclasses.replace(folded.config, identity_norms=ordered)
    return folded


def _fold_behind(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """scale * (W x + b) + shift."""
    assert conv.bias is not None
    conv.weight.copy_(conv.weight.double() * scale.view(-1, 1, 1, 1))
    conv.bias.copy_(conv.bias.double() * scale + shift)


def _fold_before(layer: nn.Conv2d | nn.Linear, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """W (scale * x + shift) + b, for a layer without padding."""
    assert layer.bias is not None
    weight = layer.weight.double()
    per_channel = weight.sum(dim=(2, 3)) if weight.dim() == 4 else weight
    layer.bias.copy_(layer.bias.double() + per_channel @ shift)
    layer.weight.copy_(weight * scale.view(1, -1, *[1] * (weight.dim() - 2)))


def _channels(module: ConvNeXt, path: str) -> int:
    parts = path.split(".")
    dims = module.config.dims
    if path == "norm":
        return dims[-1]
    stage = int(parts[1])
    return dims[stage - 1] if parts[0] == "downsample_layers" and stage else dims[stage]


def _pools_last(module: ConvNeXt) -> bool:
    return module.config.head_norm == "before_pool"
