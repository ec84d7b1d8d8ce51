"""Biases as integer kernels hold them: whole numbers of product steps."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from edgeconvnext.quantization.plan import QuantPlan

LARGEST_CODE = 2**31 - 256
"""Of an int32, less what a float32 bias of this size may be rounded up by: 2^31 * 2^-24 = 128 codes, and as many again."""


def round_biases(module: nn.Module, plan: QuantPlan) -> None:
    """Round, in place, the bias of each layer with two 8-bit factors to the steps of their products.

    Kernels that add the bias to their int32 sums hold it as such a code. Half a step is far below the quantization error, but a
    bias rounded in the artifact alone would push values over rounding borders that the simulation leaves where they are. A bias
    beyond int32 gets the largest code.
    """
    for layer, qparams in plan.weights.items():
        source = plan.activations.get(f"{layer}:input")
        owner = module.get_submodule(layer)
        if source is None or qparams.blocked or {qparams.bits, source.qparams.bits} != {8} or owner.bias is None:
            continue
        step = (source.qparams.scale.double() * qparams.scale.double()).float()
        bias = cast(torch.Tensor, owner.bias).detach()
        codes = (bias.double() / step).round().clamp(-LARGEST_CODE, LARGEST_CODE)
        owner.register_parameter("bias", nn.Parameter(codes.mul(step).to(bias.dtype)))
