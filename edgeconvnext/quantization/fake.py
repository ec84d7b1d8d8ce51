"""Quantization of a float network's activations while it runs, without exporting it: hooks that round to planned grids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from edgeconvnext.model.network import Network
from edgeconvnext.quantization.plan import QParams, QuantPlan


def round_activation(x: torch.Tensor, qparams: QParams) -> torch.Tensor:
    """Return `x` rounded to a per-tensor grid and back, as the Q/DQ nodes of the graph do."""
    return torch.fake_quantize_per_tensor_affine(
        x, float(qparams.scale), int(qparams.zero_point), qparams.quant_min, qparams.quant_max
    )


def quantize_input(module: Network, layer: str, qparams: QParams) -> RemovableHandle:
    """Round the input of a layer, behind its scaling where it has one, until the handle is removed."""
    layer_module = module.get_submodule(layer)
    scaling = getattr(layer_module, "channel_scaling", None)
    if scaling is not None:
        return scaling.register_forward_hook(lambda _module, _args, output: round_activation(output, qparams))

    def before(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (round_activation(args[0], qparams),)

    return layer_module.register_forward_pre_hook(before)


def quantize_output(module: Network, layer: str, qparams: QParams) -> RemovableHandle:
    """Round the output of a layer until the handle is removed."""
    layer_module = module.get_submodule(layer)
    return layer_module.register_forward_hook(lambda _module, _args, output: round_activation(output, qparams))


def quantize_activations(module: Network, plan: QuantPlan) -> list[RemovableHandle]:
    """Round all activations that `plan` names until the handles are removed; weights are left as they are."""
    handles = []
    for name, activation in plan.activations.items():
        layer, _, side = name.partition(":")
        attach = quantize_input if side == "input" else quantize_output
        handles.append(attach(module, layer, activation.qparams))
    return handles


@contextmanager
def fake_quantized(module: Network, plan: QuantPlan) -> Iterator[None]:
    """Round all activations that `plan` names inside the block; the weights of `module` are left as they are."""
    handles = quantize_activations(module, plan)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
