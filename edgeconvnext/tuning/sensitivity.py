"""What quantising each layer costs the network's answer, alone and together with all layers before it; no labels needed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from edgeconvnext.decisions import two_logits
from edgeconvnext.model.network import Network
from edgeconvnext.model.units import Unit, units_of
from edgeconvnext.progress import progress_bar
from edgeconvnext.quantization.fake import quantize_input, quantize_output
from edgeconvnext.quantization.plan import QuantPlan
from edgeconvnext.rewrite.channel_scaling import absorbed, norm_before, place_scaling

SENSITIVITY_IMAGES = 64
"""Held-out images a layer's sensitivity is measured on: enough to rank layers, few enough for one pass per layer."""


@dataclass(frozen=True)
class Sensitivity:
    """Loss from one layer. kl_alone: mean KL(softmax FP32 || softmax quantised) in nats with only this layer quantised.

    kl_cumulative: with this layer and all before it quantised. agreement_alone, agreement_cumulative: per cent of images.
    """

    layer: str
    kl_alone: float
    kl_cumulative: float
    agreement_alone: float
    agreement_cumulative: float


@torch.no_grad()
def sensitivities(
    folded: Network, quantized: Network, plan: QuantPlan, batches: Sequence[torch.Tensor]
) -> list[Sensitivity]:
    """Measure every layer of `plan` alone and cumulatively, in forward order.

    folded: the float network. quantized: what `reconstruct` returned for it. batches: images (N, C, H, W); SENSITIVITY_IMAGES of
    them, evenly spread, are used. Units before the one looked at are not run again.
    """
    images = torch.cat(list(batches))
    images = images[torch.linspace(0, len(images) - 1, min(SENSITIVITY_IMAGES, len(images))).round().long()]
    units = units_of(folded)
    expected = _run(units, folded, images)
    alone_net, cumulative_net = copy.deepcopy(folded), copy.deepcopy(folded)
    alone_in = cumulative_in = images
    results: list[Sensitivity] = []
    with progress_bar("Measuring each layer", len(plan.weights)) as advance:
        for number, unit in enumerate(units):
            rest = units[number:]
            for layer in unit.layers:
                if layer not in plan.weights:
                    continue
                with quantized_layer(alone_net, quantized, plan, layer):
                    alone = _run(rest, alone_net, alone_in)
                _put(cumulative_net, quantized, plan, layer)
                cumulative = _run(rest, cumulative_net, cumulative_in)
                results.append(
                    Sensitivity(
                        layer,
                        kl_divergence(expected, alone),
                        kl_divergence(expected, cumulative),
                        _agreement(expected, alone),
                        _agreement(expected, cumulative),
                    )
                )
                advance(1)
            alone_in = _run([unit], folded, alone_in)
            cumulative_in = _run([unit], cumulative_net, cumulative_in)
    return results


def kl_divergence(expected: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the mean of KL(softmax(expected) || softmax(logits)) over images, in nats. (N, classes)."""
    expected, logits = two_logits(expected), two_logits(logits)
    return float(
        F.kl_div(
            logits.double().log_softmax(1), expected.double().log_softmax(1), reduction="batchmean", log_target=True
        )
    )


@contextmanager
def quantized_layer(network: Network, quantized: Network, plan: QuantPlan, layer: str) -> Iterator[None]:
    """Quantise one layer of a float network inside the block, in place, and put the float layer back afterwards.

    quantized: what `reconstruct` returned for the network.
    """
    float_module, norm = network.get_submodule(layer), norm_before(network, layer)
    float_weights = copy.deepcopy(float_module.state_dict())
    norm_weights = None if norm is None else copy.deepcopy(norm.state_dict())
    handles = _put(network, quantized, plan, layer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        network.set_submodule(layer, float_module)
        float_module.load_state_dict(float_weights)
        if norm is not None and norm_weights is not None:
            norm.load_state_dict(norm_weights)


def float_layer(quantized: Network, folded: Network, plan: QuantPlan, layer: str) -> None:
    """Give one layer of a reconstructed network its float weights back, behind the scaling it has; in place."""
    scaling = plan.decisions[layer].scaling
    weight, bias = absorbed(folded.get_submodule(layer), scaling)
    layer_module = quantized.get_submodule(layer)
    layer_module.get_parameter("weight").data.copy_(weight)
    layer_module.get_parameter("bias").data.copy_(bias)


def _put(network: Network, quantized: Network, plan: QuantPlan, layer: str) -> list[torch.utils.hooks.RemovableHandle]:
    """Quantise a layer of a float network: scaling, weights and bias from `quantized`, activations by hooks."""
    decision = plan.decisions.get(layer)
    if decision is not None and not decision.scaling.is_identity:
        place_scaling(network, layer, decision.scaling)
    for name in ("weight", "bias"):
        values = quantized.get_parameter(f"{layer}.{name}")
        network.get_parameter(f"{layer}.{name}").data.copy_(values)
    handles = []
    for side, attach in (("input", quantize_input), ("output", quantize_output)):
        activation = plan.activations.get(f"{layer}:{side}")
        if activation is not None:
            handles.append(attach(network, layer, activation.qparams))
    return handles


def _run(units: Sequence[Unit], network: Network, x: torch.Tensor, batch: int = 16) -> torch.Tensor:
    pieces = []
    for piece in x.split(batch):
        for unit in units:
            piece = unit.run(network, piece)
        pieces.append(piece)
    return torch.cat(pieces)


def _agreement(expected: torch.Tensor, logits: torch.Tensor) -> float:
    return 100 * float((two_logits(expected).argmax(1) == two_logits(logits).argmax(1)).double().mean())
