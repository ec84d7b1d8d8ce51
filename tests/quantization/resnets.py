"""Narrow networks of every step from ResNet-50 to ConvNeXt, and of ResNeXt, that the tests of several packages share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from edgeconvnext.model.resnet.network import ResNet, ResNetConfig
from edgeconvnext.model.resnet.roadmap import RESNEXT50, STEPS, Step

CONFIGS = {name: step.config for name, step in STEPS.items()} | {"resnext50": RESNEXT50}


def narrow(config: ResNetConfig, divisor: int = 8) -> ResNetConfig:
    """Two short stages, `divisor` times narrower."""
    return replace(
        config,
        depths=(1, 2),
        dims=tuple(width // divisor for width in config.dims[:2]),
        hidden=tuple(width // divisor for width in config.hidden[:2]),
        stem_dim=config.stem_dim // divisor,
        groups=config.groups and max(1, config.groups // divisor),
        num_classes=7,
    )


def short_step(name: str) -> Step:
    """A step of the roadmap with two stages of one narrow block."""
    return replace(STEPS[name], config=replace(narrow(STEPS[name].config), depths=(1, 1)))


def trained_like(config: ResNetConfig, seed: int = 0) -> ResNet:
    """A network whose norms, biases and running statistics are as training leaves them: neither 0 nor 1."""
    torch.manual_seed(seed)
    module = ResNet(config)
    for parameter in module.parameters():
        scale = 0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
        parameter.data = torch.randn_like(parameter) * scale
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data.uniform_(0.5, 1.5)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
        elif isinstance(norm, nn.LayerNorm):
            norm.weight.data.uniform_(0.5, 1.5)
    return module.eval()
