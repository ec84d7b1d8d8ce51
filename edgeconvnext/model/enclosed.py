"""A backbone inside a larger module: where it is, and the user's modules that stand for each of its parts.

The larger module stays as it is. Its stem, downsampling layers and blocks are replaced one by one, at their own places, so that
what the module does around them (norms of its own, which stages it takes, what it returns) needs not be known. Each part takes
and returns one tensor (N, C, H, W) in every library.

    part of ours            timm                      torchvision       transformers
    downsample_layers.0     stem                      features.0        embeddings
    downsample_layers.1     stages.1.downsample       features.2        encoder.stages.1.downsampling_layer
    stages.1.0              stages.1.blocks.0         features.3.0      encoder.stages.1.layers.0
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from edgeconvnext.errors import CheckpointError, EdgeConvNextError
from edgeconvnext.model.build import build_empty
from edgeconvnext.model.families import FAMILIES
from edgeconvnext.model.network import Network
from edgeconvnext.model.renamed import Renamed
from edgeconvnext.model.tensor_check import check_tensors

WHOLE = "whole_module"
"""Attribute of the wrapper that holds the larger module: in graphs, its paths begin behind that name."""
_ENDS = ("norm", "head")


@dataclass(frozen=True)
class Part:
    """A stem, downsampling layer or block. ours: its path in a `Network`; theirs: paths in the larger module, in forward order.

    Where it has several, the first one gets ours and the others become identities.
    """

    ours: str
    theirs: tuple[str, ...]

    @property
    def place(self) -> str:
        """Path that ours has in the larger module."""
        return self.theirs[0]


@dataclass(frozen=True)
class EnclosedBackbone:
    """A backbone of a larger module. path: of it, "" where it is the module itself.

    module: the same network under our names, ending with its stages; it shares no weights with the larger module.
    """

    path: str
    module: Network
    layout: str
    parts: tuple[Part, ...]

    def place_of(self, layer: str) -> str:
        """Return the path in the larger module of one of our layers, "stages.1.0.pwconv1"."""
        part = next(part for part in self.parts if layer == part.ours or layer.startswith(f"{part.ours}."))
        return f"{part.place}{layer[len(part.ours) :]}"

    def holds(self, path: str) -> bool:
        """Whether a path of the larger module is that of one of the parts, or of something in it."""
        return any(f"{path}.".startswith(f"{theirs}.") for part in self.parts for theirs in part.theirs)

    def within(self, whole: nn.Module, network: Network) -> nn.Module:
        """Return a copy of the larger module, in eval mode, that computes its backbone by the parts of `network`.

        network: `module`, or what was made of it by rewrites that keep its parts.
        """
        changed = copy.deepcopy(whole).eval()
        for part in self.parts:
            changed.set_submodule(part.place, copy.deepcopy(network.get_submodule(part.ours)))
            for path in part.theirs[1:]:
                changed.set_submodule(path, nn.Identity())
        return changed


def find_backbone(whole: nn.Module, path: str | None = None) -> EnclosedBackbone:
    """Return the ConvNeXt inside a module. path: where it is, "model.encoder"; None searches.

    Raises CheckpointError where there is none at `path`, or the search ends with none or several.
    """
    if path is not None:
        return _backbone_at(whole, _at(whole, path), path)
    candidates: list[EnclosedBackbone] = []
    for name, module in whole.named_modules():
        inside = any(name.startswith(f"{known.path}.") or not known.path for known in candidates)
        if inside or not _may_be_one(module):
            continue
        try:
            candidates.append(_backbone_at(whole, module, name))
        except EdgeConvNextError:
            continue
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise CheckpointError(
            f"{type(whole).__name__} holds no ConvNeXt that this package reads. Name its place, as in "
            'backbone="model.encoder", to see why that one is not read.'
        )
    raise CheckpointError(
        f"{type(whole).__name__} holds several backbones: {', '.join(known.path for known in candidates)}. Name one of them, as "
        f'in backbone="{candidates[0].path}".'
    )


def _at(whole: nn.Module, path: str) -> nn.Module:
    try:
        return whole.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in whole.named_children()]
        raise CheckpointError(
            f"{type(whole).__name__} has no module {path!r}. Its own modules are {', '.join(names) or 'none'}."
        ) from None


def _may_be_one(module: nn.Module) -> bool:
    """Whether a module has the convs that a backbone begins with: without that, its tensors need not be looked at."""
    return sum(isinstance(child, nn.Conv2d) for child in module.modules()) >= 2


def _backbone_at(whole: nn.Module, module: nn.Module, path: str) -> EnclosedBackbone:
    source = f"{type(whole).__name__}.{path}" if path else type(whole).__name__
    tensors = {name: tensor.detach().float() for name, tensor in module.state_dict().items()}
    for family in FAMILIES.values():
        renamed = family.rename(tensors, source)
        if renamed is None:
            continue
        stages = _stages_alone(renamed)
        config = family.canonical(family.infer(stages, source)).with_end("stages")
        network = build_empty(config)
        if len(network.inverted_bottlenecks) != sum(config.depths):
            raise CheckpointError(
                f"{source} is a {family.title}; only a ConvNeXt can be quantised inside a larger module. Export its features "
                "with --head features, and feed them to the rest."
            )
        check_tensors(stages, config, source)
        state = {name: stages.tensors[name].clone() for name in network.state_dict()}
        network.load_state_dict(state, assign=True)
        return EnclosedBackbone(path, network.eval(), renamed.layout, tuple(_parts(module, network, renamed, path)))
    first = ", ".join(list(tensors)[:4]) or "none"
    raise CheckpointError(
        f"{source} is not a backbone that this package reads; its tensors are {first}, and so on. Readable are "
        f"{', and '.join(family.readable for family in FAMILIES.values())}."
    )


def _stages_alone(renamed: Renamed) -> Renamed:
    """Return the tensors of stem and stages: what else a backbone has stays the larger module's."""
    tensors = {name: tensor for name, tensor in renamed.tensors.items() if name.split(".")[0] not in _ENDS}
    return Renamed(renamed.layout, tensors, renamed.theirs, ())


def _parts(module: nn.Module, network: Network, renamed: Renamed, path: str) -> Iterator[Part]:
    """Yield each part of the network with the user's modules that hold its tensors, in forward order."""
    owners = {ours: _owners(ours, network, renamed.theirs) for ours in _part_names(network)}
    for ours, modules in owners.items():
        shared = _common(modules)
        others = [owner for name, theirs in owners.items() if name != ours for owner in theirs]
        alone = bool(shared) and not any(f"{owner}.".startswith(f"{shared}.") for owner in others)
        # A list is no module that is called: its owner goes through it.
        if alone and not isinstance(module.get_submodule(shared), nn.ModuleList | nn.ModuleDict):
            modules = [shared]
        yield Part(ours, tuple(f"{path}.{owner}" if path else owner for owner in modules))


def _part_names(network: Network) -> list[str]:
    """Return the paths of stem, downsampling layers with tensors, and blocks."""
    names = []
    for stage in range(len(network.stages)):
        if any(True for _ in network.downsample_layers[stage].parameters()):
            names.append(f"downsample_layers.{stage}")
        names += [f"stages.{stage}.{block}" for block in range(len(network.blocks(stage)))]
    return names


def _owners(part: str, network: Network, theirs: Mapping[str, str]) -> list[str]:
    """Return the user's modules that hold the tensors of a part, each once, in the order of ours."""
    names = [f"{part}.{name}" for name in network.get_submodule(part).state_dict()]
    return list(dict.fromkeys(theirs[name].rpartition(".")[0] for name in names if name in theirs))


def _common(paths: list[str]) -> str:
    """Return the path that all of these lie at or below, "" where that is the root."""
    shared = []
    for names in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


@torch.no_grad()
def first_difference(
    whole: nn.Module, changed: nn.Module, backbone: EnclosedBackbone, images: torch.Tensor, limit: float
) -> str | None:
    """Return the place of the first part whose output differs by more than `limit` of its largest value; None where none does.

    images: (N, C, H, W), as the larger module takes them.
    """
    recorded: list[dict[str, torch.Tensor]] = []
    for module, last in ((whole, -1), (changed, 0)):
        outputs: dict[str, torch.Tensor] = {}
        hooks = [_record(module, part.theirs[last], part.place, outputs) for part in backbone.parts]
        try:
            module(images)
        finally:
            for hook in hooks:
                hook.remove()
        recorded.append(outputs)
    reference, other = recorded
    for part in backbone.parts:
        expected, actual = reference.get(part.place), other.get(part.place)
        if expected is None or actual is None or expected.shape != actual.shape:
            return part.place
        if float((expected - actual).abs().max()) > limit * float(expected.abs().max()):
            return part.place
    return None


def _record(
    module: nn.Module, path: str, name: str, outputs: dict[str, torch.Tensor]
) -> torch.utils.hooks.RemovableHandle:
    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            outputs.setdefault(name, output.detach())

    return module.get_submodule(path).register_forward_hook(keep)
