"""BatchNorm in a LayerNorm's place while a network is trained, and its exact fold into the layers around it afterwards."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from edgeconvnext.model.convnext import ConvNeXt


class ChannelNorm(nn.Module):
    """BatchNorm over all positions, on the way from a LayerNorm: share * BatchNorm(x) + (1 - share) * LayerNorm(x).

    x: (N, C, H, W) with channel_axis 1, else channels last. share: 0 is the LayerNorm alone, 1 the BatchNorm alone.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, layer_norm: nn.Module | None, channels: int, channel_axis: int) -> None:
        """layer_norm: None where the BatchNorm starts alone; `leave_inputs_as_they_are` then makes it begin as nothing at all."""
        super().__init__()
        self.layer_norm = layer_norm
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.channel_axis = channel_axis
        self.share = 1.0 if layer_norm is None else 0.0
        self.momentum = 0.01
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.layer_norm is not None and self.share == 0 and not self.training:
            return self.layer_norm(x)
        rows = x if self.channel_axis == 1 else x.flatten(0, -2)
        normed = F.batch_norm(
            rows, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        ).view_as(x)
        if self.layer_norm is None or self.share == 1:
            return normed
        return self.share * normed + (1 - self.share) * self.layer_norm(x)


def with_batch_norms(module: ConvNeXt, paths: Collection[str], *, anneal: bool) -> ConvNeXt:
    """Return a copy with a ChannelNorm at each of `paths`.

    anneal: whether it starts as the LayerNorm that is there; else the norm there is gone already (an Identity).
    """
    trained = copy.deepcopy(module)
    for path in paths:
        norm = trained.get_submodule(path)
        axis = 1 if path.startswith("downsample_layers") or (path == "norm" and _pools_last(module)) else -1
        channels = _channels(module, path)
        trained.set_submodule(path, ChannelNorm(norm if anneal else None, channels, axis))
    return trained


@torch.no_grad()
def leave_inputs_as_they_are(module: ConvNeXt, batches: Iterable[torch.Tensor]) -> None:
    """Give every ChannelNorm without a LayerNorm the statistics of its inputs, in place, and weights that undo them.

    batches: images, (N, C, H, W). In eval mode the norms are then the identity, and in training as nearly as a batch's statistics
    are all images'.
    """
    sums: dict[ChannelNorm, list[torch.Tensor]] = {}

    def note(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(norm, ChannelNorm)
        x = args[0].double()
        rows = x.transpose(0, 1).flatten(1) if norm.channel_axis == 1 else x.flatten(0, -2).T
        found = torch.tensor(rows.shape[1]), rows.sum(1), rows.square().sum(1)
        sums[norm] = [a + b for a, b in zip(sums[norm], found, strict=True)] if norm in sums else list(found)

    alone = [norm for norm in module.modules() if isinstance(norm, ChannelNorm) and norm.layer_norm is None]
    handles = [norm.register_forward_pre_hook(note) for norm in alone]
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


def set_share(module: ConvNeXt, share: float) -> None:
    """Set how much of every ChannelNorm is BatchNorm, 0..1."""
    for norm in module.modules():
        if isinstance(norm, ChannelNorm) and norm.layer_norm is not None:
            norm.share = share


@torch.no_grad()
def fold_batch_norms(module: ConvNeXt) -> ConvNeXt:
    """Fold every ChannelNorm (as a BatchNorm alone, with its running statistics) away; exact in eval mode.

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
