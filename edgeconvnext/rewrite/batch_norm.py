"""Fold BatchNorms into the convs and linears in front of them."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from edgeconvnext.model.build import build
from edgeconvnext.model.network import Network


def fold_batch_norm(module: Network) -> Network:
    """Return the network without BatchNorms: g (W x + b - m) / s + t = (g / s W) x + (t + g / s (b - m)), s = sqrt(var + eps).

    Exact for the running mean m and variance of inference, up to the rounding of weights to float32; products are formed in
    float64. The names of the layers stay. Networks without BatchNorms are copied.
    """
    folded = build(module.config.without_batch_norms())
    tensors = dict(module.state_dict())
    for layer, norm in module.norms_behind():
        batch_norm = cast(nn.BatchNorm2d, module.get_submodule(norm))
        assert batch_norm.running_mean is not None and batch_norm.running_var is not None
        gain = batch_norm.weight.detach().double() / (batch_norm.running_var.double() + batch_norm.eps).sqrt()
        weight = tensors[f"{layer}.weight"].double()
        bias = tensors.get(f"{layer}.bias", torch.zeros_like(batch_norm.bias)).double()
        tensors[f"{layer}.weight"] = weight * gain.view(-1, *[1] * (weight.dim() - 1))
        tensors[f"{layer}.bias"] = batch_norm.bias.detach().double() + gain * (bias - batch_norm.running_mean.double())
    own_tensors = {name: tensors[name] for name in folded.state_dict()}
    folded.to(next(module.parameters())).load_state_dict(own_tensors)
    return folded.train(module.training)
