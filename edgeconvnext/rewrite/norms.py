"""LayerNorms replaced after training, without labels: each becomes a static scale and shift inside the layers around it.

A LayerNorm divides every position by its own standard deviation; what replaces it divides by a constant, so the answer changes.
How little it changes is up to the layers around it, which are re-fitted in closed form, in forward order, each to what the network
with its norms computes at the same place:

  block       pwconv1 from the depthwise conv's output to the original hidden channels, then pwconv2 to the block's output
  downsample  the 2x2 conv, from the residual stream itself
  stem        its last conv, to what the norm returned
  head        the classifier, from pooled features to the logits

Blocks behind a replaced norm keep theirs and have pwconv2 re-fitted, so that they take up part of what is wrong with their input.
Every fit is a ridge regression towards the weights that are there, its penalty chosen by fold-wise error (`least_squares`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import Block, ConvNeXt
from edgeconvnext.model.units import Unit, units_of
from edgeconvnext.rewrite.least_squares import RIDGES, FittedLinear, LinearFit
from edgeconvnext.rewrite.paired_networks import PairedNetworks, StoredImages
from edgeconvnext.rewrite.patches import patch_rows


@dataclass(frozen=True)
class NormsReplaced:
    """A network without some of its LayerNorms.

    errors: for each replaced norm, the squared error of what its unit adds to or makes of the residual stream, relative to that
        output's variance, on held-out images. reference_logits, logits: of the held-out images, (N, classes), of the network
        handed in and of `module`.
    """

    module: ConvNeXt
    errors: dict[str, float]
    reference_logits: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class NormAlone:
    """One LayerNorm replaced alone: error as in NormsReplaced, and the logits of the held-out images, (N, classes)."""

    error: float
    logits: torch.Tensor


def replaceable_norms(module: ConvNeXt) -> tuple[str, ...]:
    """Return the paths of the LayerNorms that are there and have a layer to be re-fitted, in forward order."""
    config = module.config
    there = [path for path in config.norm_paths if path not in config.identity_norms]
    # Without a classifier the head norm's result is the network's.
    return tuple(path for path in there if path != "norm" or config.num_classes)


@torch.no_grad()
def replace_norms(
    module: ConvNeXt,
    paths: Collection[str],
    images: StoredImages,
    folder: Path,
    *,
    reference: ConvNeXt | None = None,
) -> NormsReplaced:
    """Replace the LayerNorms named; `module` is left as it is.

    module: exactly folded. images: preprocessed, as the module takes them. folder: where block inputs are kept meanwhile.
    reference: what the layers are fitted to, of the same depths and dims; None: `module` itself.

    Raises RewriteError for a name that is no replaceable norm, and for a network with layer scale or affines left to fold.
    """
    unknown = sorted(set(paths) - set(replaceable_norms(module)))
    if unknown:
        raise RewriteError(f"{unknown[0]} is no LayerNorm of this network that can be replaced.")
    if module.config.layer_scale:
        raise RewriteError("LayerNorms are replaced in folded networks; fold this one first.")
    reference = reference or module
    working = copy.deepcopy(module).eval()
    errors: dict[str, float] = {}
    with PairedNetworks(reference, working, images, folder) as state:
        for unit in units_of(module):
            norm = norm_of(module, unit)
            replaced = norm in paths
            if replaced or not state.same or reference is not module:
                _REFITS[_kind(unit)](state, module, unit, replaced)
            if replaced:
                errors[norm] = _unit_error(state, unit)
            if unit.name == "head":
                reference_logits, logits = _both(state, unit)
            else:
                state.advance(unit, changed=replaced or reference is not module)
    working.config = dataclasses.replace(
        module.config, identity_norms=tuple(p for p in module.config.norm_paths if _is_identity(working, p))
    )
    return NormsReplaced(working, errors, reference_logits, logits)


@torch.no_grad()
def replace_each(module: ConvNeXt, images: StoredImages, folder: Path) -> tuple[torch.Tensor, dict[str, NormAlone]]:
    """Replace each LayerNorm alone; return the held-out logits of `module`, (N, classes), and what each replacement does.

    module: exactly folded; it is left as it is. Images pass the network once; behind a replaced norm only the held-out ones go on.
    """
    alone: dict[str, NormAlone] = {}
    units = units_of(module)
    with PairedNetworks(module, module, images, folder) as state:
        for number, unit in enumerate(units):
            norm = norm_of(module, unit)
            if norm in replaceable_norms(module):
                state.working = copy.deepcopy(module).eval()
                _REFITS[_kind(unit)](state, module, unit, True)
                logits = []
                for _, working_input in state.held_out():
                    x = unit.run(state.working, working_input)
                    for behind in units[number + 1 :]:
                        x = behind.run(module, x)
                    logits.append(x)
                alone[norm] = NormAlone(_unit_error(state, unit), torch.cat(logits))
            state.working = module
            if unit.name == "head":
                reference_logits, _ = _both(state, unit)
            else:
                state.advance(unit, changed=False)
    return reference_logits, alone


def norm_of(module: ConvNeXt, unit: Unit) -> str:
    """Return the path of the unit's one norm."""
    if unit.name == "head":
        return "norm"
    if unit.residual:
        return f"{unit.name}.norm"
    return module.config.norm_paths[0] if unit.name == "downsample_layers.0" else f"{unit.name}.0"


def _kind(unit: Unit) -> str:
    if unit.residual:
        return "block"
    return {"downsample_layers.0": "stem", "head": "head"}.get(unit.name, "downsample")


def _refit_block(state: PairedNetworks, module: ConvNeXt, unit: Unit, replaced: bool) -> None:
    """Re-fit pwconv2, and pwconv1 before it where the norm goes."""
    reference_block = cast(Block, state.reference.get_submodule(unit.name))
    block = cast(Block, state.working.get_submodule(unit.name))
    if replaced:
        own = cast(Block, module.get_submodule(unit.name))
        block.norm = nn.Identity()
        fit = LinearFit(block.pwconv1.in_features, block.pwconv1.out_features)
        for reference_input, working_input in state.fit():
            # The hidden channels the block itself has when its input is right: a pruned block has others than the reference.
            hidden = own.pwconv1(own.norm(_channels_last(own.dwconv(reference_input))))
            fit.add(_rows(_channels_last(block.dwconv(working_input))), _rows(hidden))
        _assign(block.pwconv1, fit.solve())
        _standardise(block, fit)
    fit = LinearFit(block.pwconv2.in_features, block.pwconv2.out_features)
    for reference_input, working_input in state.fit():
        fit.add(
            _rows(block.hidden(working_input)), _rows(_channels_last(reference_block(reference_input) - working_input))
        )
    _assign(block.pwconv2, fit.solve(block.pwconv2.weight))


def _standardise(block: Block, fit: LinearFit) -> None:
    """Give the depthwise conv's output mean 0 and standard deviation 1 per channel, taken back in pwconv1: exact, and what
    quantizers and half precision like best. (w x + b - m) / s has the weights w / s and the bias (b - m) / s."""
    mean, deviation = fit.input_spread()
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    weight, bias = block.pwconv1.weight.double(), block.pwconv1.bias.double()
    assert block.dwconv.bias is not None
    block.dwconv.weight.copy_(block.dwconv.weight.double() / deviation[:, None, None, None])
    block.dwconv.bias.copy_((block.dwconv.bias.double() - mean) / deviation)
    block.pwconv1.weight.copy_(weight * deviation)
    block.pwconv1.bias.copy_(bias + weight @ mean)


def _refit_downsample(state: PairedNetworks, module: ConvNeXt, unit: Unit, replaced: bool) -> None:
    layers = cast(nn.Sequential, state.working.get_submodule(unit.name))
    conv = cast(nn.Conv2d, layers[1])
    prior = None if replaced else conv.weight.flatten(1)
    if replaced:
        layers[0] = nn.Identity()
    fit = LinearFit(conv.weight[0].numel(), conv.out_channels)
    for reference_input, working_input in state.fit():
        fit.add(
            patch_rows(conv, layers[0](working_input)),
            _rows(_channels_last(unit.run(state.reference, reference_input))),
        )
    _assign(conv, fit.solve(prior))


def _refit_stem(state: PairedNetworks, module: ConvNeXt, unit: Unit, replaced: bool) -> None:
    if not replaced:
        return
    layers = cast(nn.Sequential, state.working.downsample_layers[0])
    *before, conv, _norm = layers
    layers[len(layers) - 1] = nn.Identity()
    conv = cast(nn.Conv2d, conv)
    fit = LinearFit(conv.weight[0].numel(), conv.out_channels)
    for reference_input, working_input in state.fit():
        for layer in before:
            working_input = layer(working_input)
        fit.add(patch_rows(conv, working_input), _rows(_channels_last(unit.run(state.reference, reference_input))))
    _assign(conv, fit.solve())


def _refit_head(state: PairedNetworks, module: ConvNeXt, unit: Unit, replaced: bool) -> None:
    head = state.working.head
    if not isinstance(head, nn.Linear):
        return
    prior = None if replaced else head.weight
    if replaced:
        state.working.norm = nn.Identity()
    fit = LinearFit(head.in_features, head.out_features)
    for reference_input, working_input in state.fit():
        # forward_head up to the classifier, whichever way round it norms and pools.
        captured: list[torch.Tensor] = []
        with _input_of(head, captured):
            unit.run(state.working, working_input)
        fit.add(captured[0], unit.run(state.reference, reference_input))
    # As many rows as images only: ridges from far larger up.
    _assign(head, fit.solve(prior, (*RIDGES, 1.0)))


_REFITS: dict[str, Callable[[PairedNetworks, ConvNeXt, Unit, bool], None]] = {
    "stem": _refit_stem,
    "block": _refit_block,
    "downsample": _refit_downsample,
    "head": _refit_head,
}


class _input_of:
    """Appends the layer's inputs to a list inside the block."""

    def __init__(self, layer: nn.Module, into: list[torch.Tensor]) -> None:
        self._handle = layer.register_forward_pre_hook(lambda _, inputs: into.append(inputs[0]))

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def _assign(layer: nn.Linear | nn.Conv2d, fitted: FittedLinear) -> None:
    assert layer.bias is not None
    layer.weight.copy_(fitted.weight.view_as(layer.weight))
    layer.bias.copy_(fitted.bias)


def _unit_error(state: PairedNetworks, unit: Unit) -> float:
    """Return the relative squared error of what the unit computes, on held-out images; see NormsReplaced.errors."""
    lost = total = energy = 0.0
    for reference_input, working_input in state.held_out():
        target = unit.branch(state.reference, reference_input)
        lost += float((unit.branch(state.working, working_input) - target).square().sum(dtype=torch.float64))
        axes = (0, 2, 3) if target.dim() == 4 else (0,)
        total += float((target - target.mean(axes, keepdim=True)).square().sum(dtype=torch.float64))
        energy += float(target.square().sum(dtype=torch.float64))
    # Images that are all the same vary in nothing; rounding must not be divided by that.
    return lost / max(total, 1e-6 * energy, 1e-30)


def _both(state: PairedNetworks, unit: Unit) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the held-out logits of both networks."""
    pairs = [
        (unit.run(state.reference, reference_input), unit.run(state.working, working_input))
        for reference_input, working_input in state.held_out()
    ]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([logits for _, logits in pairs])


def _is_identity(module: ConvNeXt, path: str) -> bool:
    return isinstance(module.get_submodule(path), nn.Identity)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, -2)
