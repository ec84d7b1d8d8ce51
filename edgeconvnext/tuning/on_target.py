"""`edgeconvnext inspect --target`: what a runtime makes of a network, in seconds and without images.

The network is quantised with ranges of noise and compiled by the runtime itself. Which operators run in INT8 depends on the graph,
and not on the values of scales, so that the answer is that of an artifact made with real images.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from edgeconvnext.backends import backend_for
from edgeconvnext.backends.base import Profile
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.errors import RuntimeMissingError
from edgeconvnext.evaluation.timing import grey_ramp
from edgeconvnext.model.blocks import LayerNorm2d
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.macs import layer_macs
from edgeconvnext.model.network import Network
from edgeconvnext.model.program import export_program
from edgeconvnext.progress import progress_bar
from edgeconvnext.quantization.plan import QuantPlan
from edgeconvnext.quantization.planning import build_plan
from edgeconvnext.quantization.program import quantize_program
from edgeconvnext.quantization.statistics import collect_statistics
from edgeconvnext.rewrite.exact import fold_exact
from edgeconvnext.rewrite.gelu import with_gelu
from edgeconvnext.schema.on_target import LayerShare, NodeShare, OnTarget
from edgeconvnext.targets import Target

NOISE_IMAGES = 2


def on_target(model: LoadedModel, target: Target) -> OnTarget:
    """Quantise with ranges of noise, compile for the target, and count what runs in INT8 and what in float.

    Raises RuntimeMissingError for a target whose runtime does not run on this machine or does not say what it runs.
    """
    backend = backend_for(target)
    backend.require(target)
    if backend.not_timed is not None:
        raise RuntimeMissingError(
            f"Target {target.name} is compiled on the device only: {backend.not_timed}. After an export, the device kit lists "
            "what ran in which precision."
        )
    with progress_bar(f"Compiling for {target.name}", None), TemporaryDirectory() as scratch:
        module, plan = _quantized(model, target)
        path = Path(scratch) / Path(backend.artifact).name
        height, width = model.preprocess.input_size
        example = torch.zeros(1, model.config.in_channels, height, width)
        program = quantize_program(export_program(module, example, max_batch=max(2, target.input.batch[2])), plan)
        metadata = ArtifactMetadata(model.name, None, model.preprocess, target.input.value_range, "")
        backend.write(target, program, path, metadata)
        profile = backend.profile(path, grey_ramp((height, width), model.config.in_channels), 1)
    if profile is None:
        raise RuntimeMissingError(f"{target.runtime.name} does not say which operators it runs.")
    return _counted(model, module, target, plan, profile)


def _quantized(model: LoadedModel, target: Target) -> tuple[Network, QuantPlan]:
    """Return the folded network in the target's form, and a plan with ranges of noise."""
    height, width = model.preprocess.input_size
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NOISE_IMAGES, model.config.in_channels, height, width, generator=generator)
    folded = fold_exact(model.module, iter([noise]), preprocess=model.preprocess, value_range=target.input.value_range)
    module = with_gelu(folded.module, target.layout.gelu)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.preprocess.mean, model.preprocess.std))
    scale = {"normalized": None, "0..1": 1.0, "0..255": 255.0}[target.input.value_range]
    images = noise if scale is None else (noise * std + mean) * scale
    kinds = sorted(set(weighted_layers(module).values()))
    statistics = collect_statistics(module, [images], [images], kinds)
    return module, build_plan(module, statistics, target, effort="quick")


def _counted(model: LoadedModel, module: Network, target: Target, plan: QuantPlan, profile: Profile) -> OnTarget:
    kinds = weighted_layers(module)
    planned = {layer for layer in plan.weights if f"{layer}:input" in plan.activations}
    fell_back = [layer for layer in profile.fell_back if layer in planned]
    integer = planned - set(fell_back)
    macs = layer_macs(module.config, model.preprocess.input_size)
    counts = Counter((kind, layer in integer) for layer, kind in kinds.items())
    nodes = Counter((node.operator, node.precision) for node in profile.nodes)
    return OnTarget(
        target=target.name,
        runtime=backend_for(target).installed(),
        layers=[
            LayerShare(kind=kind, int8=counts[kind, True], float=counts[kind, False])
            for kind in dict.fromkeys(kinds.values())
        ],
        int8_macs=sum(macs[layer] for layer in integer) / sum(macs.values()),
        fell_back=fell_back,
        nodes=[
            NodeShare(operator=operator, precision=precision, nodes=count)
            for (operator, precision), count in sorted(nodes.items(), key=lambda one: (one[0][1], -one[1], one[0][0]))
        ],
        partitions=profile.partitions,
        hints=_hints(module, target),
    )


def _hints(module: Network, target: Target) -> list[str]:
    """Say what would help on this target."""
    hints = []
    norms = sum(isinstance(part, torch.nn.LayerNorm | LayerNorm2d) for part in module.modules())
    if norms:
        hints.append(
            f"{norms} norms run in float: --replace-norm with export takes out those that may go, within --norm-drop points."
        )
    multiple = backend_for(target).limits.channel_multiple
    odd = sorted({width for width in _hidden_widths(module) if width % multiple})
    if odd:
        hints.append(
            f"Hidden widths {', '.join(map(str, odd))} are no multiples of {multiple}, which {target.runtime.name} pads: prune "
            f"with --multiple {multiple}."
        )
    return hints


def _hidden_widths(module: Network) -> list[int]:
    kinds = weighted_layers(module)
    layers = dict(module.named_modules())
    return [int(layers[name].weight.shape[0]) for name, kind in kinds.items() if kind == "pointwise1"]  # type: ignore[union-attr,operator]
