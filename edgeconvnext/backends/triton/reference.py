"""The simulated graph's int8 codes, layer by layer, and how far the kernels' codes are from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeconvnext.backends.triton.grids import planned_grid
from edgeconvnext.backends.triton.network import TritonNetwork
from edgeconvnext.backends.triton.stream import Codes, Stream, exact_convs
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.quantization.biases import round_biases
from edgeconvnext.quantization.fake import quantize_activations
from edgeconvnext.quantization.plan import QuantPlan

HEAD = "head"
LARGEST_DIFFERENCE = 1
LARGEST_SHARE = 1e-3
"""A code may differ by one, in one of a thousand elements: where a float32 sum in another order is on the other side of a half."""


@dataclass(frozen=True)
class CodeDifference:
    """How a layer's codes differ from the simulation's. share: of the elements that differ at all."""

    layer: str
    elements: int
    share: float
    largest: int

    @property
    def is_allowed(self) -> bool:
        return self.largest <= LARGEST_DIFFERENCE and self.share <= LARGEST_SHARE


@dataclass(frozen=True)
class Simulation:
    """What the simulated graph computes for some images.

    codes: what each int8 layer reads. inputs: of stem, downsamplings, blocks and head, by path, (N, H, W, C).
    """

    logits: torch.Tensor
    codes: Codes
    inputs: dict[str, torch.Tensor]


def simulate(network: ConvNeXt, plan: QuantPlan, images: torch.Tensor, float_type: torch.dtype) -> Simulation:
    """Run the simulated graph of a plan on its float network.

    network, plan: as `load_plan` returns them, on the CPU. images: on the device to compute on. float_type: float32 is the
    simulated graph itself; with float16, the outputs of stem, downsampling and blocks are rounded to it, which is all that a
    float16 stream changes.
    """
    codes: Codes = {}
    inputs: dict[str, torch.Tensor] = {}
    network = copy.deepcopy(network)
    round_biases(network, plan)
    quantize_activations(network, plan)
    for layer in plan.weights:
        _note_codes(network, plan, layer, codes)
    _note_inputs(network, float_type, inputs)
    network.to(images.device)
    with torch.inference_mode(), exact_convs():
        logits = network(images)
    return Simulation(logits, codes, inputs)


@torch.inference_mode()
def unit_differences(ours: TritonNetwork, theirs: Simulation) -> list[CodeDifference]:
    """Run each unit on what the simulation has there; return how the codes it hands on differ.

    This judges kernels one by one: a code that fell otherwise in one block does not count again in those behind it.
    """
    seen: Codes = {}
    paths = list(ours.units)
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        result = ours.units[path](_stream(theirs, path), seen)
        if following is not None and result.codes is not None:
            seen[f"{following}.dwconv"] = result.codes.permute(0, 3, 1, 2)
    ours.classify(_stream(theirs, HEAD), seen)
    return network_differences(seen, theirs)


def network_differences(seen: Codes, theirs: Simulation) -> list[CodeDifference]:
    """Return how far the codes that a whole network noted are from the simulation's, layer by layer."""
    return [_difference(layer, codes, theirs.codes[layer]) for layer, codes in seen.items()]


def _stream(theirs: Simulation, path: str) -> Stream:
    codes = theirs.codes.get(f"{path}.dwconv")
    return Stream(theirs.inputs[path], None if codes is None else codes.permute(0, 2, 3, 1).contiguous())


def _difference(layer: str, ours: torch.Tensor, theirs: torch.Tensor) -> CodeDifference:
    distance = (ours.to(torch.int32) - theirs.to(torch.int32)).abs()
    return CodeDifference(
        layer, distance.numel(), float((distance > 0).float().mean()), int(distance.max()) if distance.numel() else 0
    )


def _note_codes(network: ConvNeXt, plan: QuantPlan, layer: str, codes: Codes) -> None:
    """Note what a layer reads, rounded to its grid already: the hooks of the quantizers were attached before."""
    grid = planned_grid(network, plan, layer)
    if grid is None:
        return
    found = network.get_submodule(layer)
    affine = getattr(found, "channel_scaling", None)

    def note(values: torch.Tensor) -> None:
        codes[layer] = ((values / grid.scale).round() + grid.zero).to(torch.int8)

    if affine is not None:
        affine.register_forward_hook(lambda _module, _args, output: note(output))
    else:
        found.register_forward_pre_hook(lambda _module, args: note(args[0]))


def _note_inputs(network: ConvNeXt, float_type: torch.dtype, inputs: dict[str, torch.Tensor]) -> None:
    """Note what each part reads, and round what it hands on to `float_type`."""

    def note(path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def before(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            kept = torch.float32 if path == "downsample_layers.0" else float_type
            inputs[path] = args[0].permute(0, 2, 3, 1).to(kept).contiguous()

        return before

    def rounded(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(float_type).float()

    for stage, entry in enumerate(network.downsample_layers):
        parts = {f"downsample_layers.{stage}": entry}
        parts |= {f"stages.{stage}.{index}": block for index, block in enumerate(network.blocks(stage))}
        for path, part in parts.items():
            part.register_forward_pre_hook(note(path))
            part.register_forward_hook(rounded)
    last = network.stages[-1]
    last.register_forward_hook(lambda module, _args, output: note(HEAD)(module, (output,)))
