"""Analyses of a small network, healthy or with a fault planted in its weights, its images or its plan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from networks import small_network

from edgeconvnext.backends import load_target
from edgeconvnext.choices import Calibrator
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.macs import layer_macs
from edgeconvnext.quantization.plan import QuantPlan
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.precision import BitPlan
from edgeconvnext.quantization.statistics import collect_statistics
from edgeconvnext.rewrite.exact import fold_exact
from edgeconvnext.schema.analysis import Analysis, Setting
from edgeconvnext.tuning.analysis import measure
from edgeconvnext.tuning.suspicions import with_suspicions

Images = tuple[torch.Tensor, torch.Tensor]


def images() -> Images:
    """Images to fit on and held-out ones, as a normalised photograph is spread."""
    generator = torch.Generator().manual_seed(1)
    fit, held_out = torch.randn(24, 3, 32, 32, generator=generator), torch.randn(12, 3, 32, 32, generator=generator)
    return fit, held_out


def folded_network() -> ConvNeXt:
    """The small network with norms as after training, near 1, and answers sure enough that errors change them."""
    module = small_network()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.weight.copy_(1 + 0.2 * part.weight)
                part.bias.mul_(0.2)
        module.head.weight.mul_(6)
    return fold_exact(module, [images()[0][:2]]).module


def analysed(
    module: ConvNeXt | None = None,
    *,
    given: Images | None = None,
    target: str = "onnx",
    calibrator: Calibrator = "auto",
    bits: BitPlan | None = None,
    tamper: Callable[[QuantPlan], QuantPlan] = lambda plan: plan,
) -> Analysis:
    """Plan `module` (default: the healthy one) with effort quick, let `tamper` change the plan, and analyse it."""
    module = module or folded_network()
    fit, held_out = given or images()
    resolved = load_target(target)
    statistics = collect_statistics(module, [fit], [held_out], resolved.quantize.outputs)
    plan = tamper(build_plan(module, statistics, resolved, calibrator=calibrator, effort="quick", bits=bits))
    prepared = copy.deepcopy(module)
    for layer, grid in plan.weights.items():
        weight = prepared.get_submodule(layer).get_parameter("weight")
        weight.data.copy_(grid.fake_quantize(weight.detach()))
    setting = Setting(
        model="small",
        target=resolved.name,
        exporter=resolved.exporter,
        wide_activations=target == "onnx",
        affine_activations=target == "onnx",
        prepares_hidden=resolved.quantize.smoothing.hidden,
        prepares_depthwise=resolved.quantize.smoothing.depthwise,
        effort="quick",
        calibrator=calibrator,
        smoothing="auto",
        calibration_set="noise",
        fit_images=len(fit),
        held_out_images=len(held_out),
        sensitivity_images=len(held_out),
    )
    macs = layer_macs(module.config, (32, 32))
    return with_suspicions(measure(module, prepared, plan, statistics, [held_out], macs=macs, setting=setting))


def with_input_scale(layer: str, factor: float) -> Callable[[QuantPlan], QuantPlan]:
    """Widen (or, below 1, narrow) the grid of one layer's input."""

    def tamper(plan: QuantPlan) -> QuantPlan:
        name = f"{layer}:input"
        activation = plan.activations[name]
        grid = replace(activation.qparams, scale=activation.qparams.scale * factor)
        return replace(plan, activations={**plan.activations, name: replace(activation, qparams=grid)})

    return tamper


def with_weight_scale(layer: str, factor: float) -> Callable[[QuantPlan], QuantPlan]:
    """Widen the grid of one layer's weights."""

    def tamper(plan: QuantPlan) -> QuantPlan:
        grid = plan.weights[layer]
        return replace(plan, weights={**plan.weights, layer: replace(grid, scale=grid.scale * factor)})

    return tamper


def found(analysis: Analysis) -> dict[str, set[str]]:
    """Layers by the kind of suspicion."""
    kinds: dict[str, set[str]] = {}
    for suspicion in analysis.suspicions:
        kinds.setdefault(suspicion.kind, set()).add(suspicion.layer)
    return kinds
