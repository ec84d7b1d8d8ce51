"""Checkpoint layouts: how other libraries name the tensors of a ConvNeXt, written as tables against our names.

A layout gives its own name for each of ours; a checkpoint belongs to the layout that explains most of its tensors.
Shapes differ too: pointwise layers may be 1x1 convs (H, C, 1, 1), layer scale (C, 1, 1), GRN (1, 1, 1, C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from edgeconvnext.model.network import MOST_BLOCKS, MOST_STAGES
from edgeconvnext.model.renamed import Renamed

_AFFINE = ("weight", "bias")
_BLOCK_PARTS = ("dwconv", "norm", "pwconv1", "pwconv2")
_BLOCK_PARAMETERS = ("grn.gamma", "grn.beta", "gamma")


@dataclass(frozen=True)
class Layout:
    """Names of one library. Templates may use {s} stage, {b} block, {i} index, {even} = 2s and {odd} = 2s + 1.

    stem: conv(s) and norm in order. block: template of a block's prefix; parts: our names inside it to theirs.
    head_norm, head_norm_eps: what the library does there and no tensor shows.
    """

    name: str
    stem: tuple[str, ...]
    downsample: str
    block: str
    parts: Mapping[str, str]
    norm: str
    head: str
    head_norm: Literal["after_pool", "before_pool"] = "after_pool"
    head_norm_eps: float = 1e-6

    def names(self, stages: int, blocks: int) -> Iterator[tuple[str, str]]:
        """Yield (our tensor name, theirs) for every tensor a network of up to `stages` x `blocks` can have."""
        for index, stem in enumerate(self.stem):
            yield from _affine(f"downsample_layers.0.{index}", stem)
        for s in range(stages):
            for i in range(2 if s else 0):
                theirs = self.downsample.format(s=s, i=i, even=2 * s)
                yield from _affine(f"downsample_layers.{s}.{i}", theirs)
            for b in range(blocks):
                ours, theirs = f"stages.{s}.{b}.", self.block.format(s=s, b=b, odd=2 * s + 1)
                for part in _BLOCK_PARTS:
                    yield from _affine(ours + part, theirs + self.parts.get(part, part))
                for parameter in _BLOCK_PARAMETERS:
                    yield ours + parameter, theirs + self.parts.get(parameter, parameter)
        yield from _affine("norm", self.norm)
        yield from _affine("head", self.head)


def _affine(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for kind in _AFFINE:
        yield f"{ours}.{kind}", f"{theirs}.{kind}"


NATIVE = Layout(
    name="facebookresearch",
    stem=("downsample_layers.0.0", "downsample_layers.0.1", "downsample_layers.0.2"),
    downsample="downsample_layers.{s}.{i}",
    block="stages.{s}.{b}.",
    parts={},
    norm="norm",
    head="head",
)

_TIMM = Layout(
    name="timm",
    stem=("stem.0", "stem.1", "stem.2"),
    downsample="stages.{s}.downsample.{i}",
    block="stages.{s}.blocks.{b}.",
    parts={
        "dwconv": "conv_dw",
        "pwconv1": "mlp.fc1",
        "pwconv2": "mlp.fc2",
        "grn.gamma": "mlp.grn.weight",
        "grn.beta": "mlp.grn.bias",
    },
    norm="head.norm",
    head="head.fc",
)


def _torchvision(name: str, prefix: str) -> Layout:
    """torchvision's detectors take `features` alone, and number its parts as it does."""
    return Layout(
        name=name,
        stem=(f"{prefix}0.0", f"{prefix}0.1"),
        downsample=prefix + "{even}.{i}",
        block=prefix + "{odd}.{b}.",
        parts={
            "dwconv": "block.0",
            "norm": "block.2",
            "pwconv1": "block.3",
            "pwconv2": "block.5",
            "gamma": "layer_scale",
        },
        norm="classifier.0",
        head="classifier.2",
    )


_FEATURES_ONLY = replace(
    _TIMM,
    name="timm (features_only)",
    stem=("stem_0", "stem_1", "stem_2"),
    downsample="stages_{s}.downsample.{i}",
    block="stages_{s}.blocks.{b}.",
)

_SPELLED_OUT = {
    "dwconv": "depthwise_conv",
    "pwconv1": "pointwise_conv1",
    "pwconv2": "pointwise_conv2",
}


def _dinov3(prefix: str) -> Layout:
    """transformers' modules hold the stages in `model` and the norm beside it; published files have no such prefix."""
    return Layout(
        name="transformers (DINOv3)",
        stem=(f"{prefix}stages.0.downsample_layers.0", f"{prefix}stages.0.downsample_layers.1"),
        downsample=prefix + "stages.{s}.downsample_layers.{i}",
        block=prefix + "stages.{s}.layers.{b}.",
        parts=_SPELLED_OUT | {"norm": "layer_norm"},
        norm="layer_norm",
        head="classifier",
    )


def _mmpretrain(prefix: str) -> Layout:
    """mmpretrain numbers the norms behind stages; classifiers have the last one, the fourth."""
    return Layout(
        name="mmpretrain",
        stem=(f"{prefix}downsample_layers.0.0", f"{prefix}downsample_layers.0.1"),
        downsample=prefix + "downsample_layers.{s}.{i}",
        block=prefix + "stages.{s}.{b}.",
        parts=_SPELLED_OUT,
        norm=f"{prefix}norm3",
        head="head.fc",
    )


def _transformers(prefix: str) -> Layout:
    return Layout(
        name="transformers",
        stem=(f"{prefix}embeddings.patch_embeddings", f"{prefix}embeddings.layernorm"),
        downsample=prefix + "encoder.stages.{s}.downsampling_layer.{i}",
        block=prefix + "encoder.stages.{s}.layers.{b}.",
        parts={
            "norm": "layernorm",
            "grn.gamma": "grn.weight",
            "grn.beta": "grn.bias",
            "gamma": "layer_scale_parameter",
        },
        norm=f"{prefix}layernorm",
        head="classifier",
        head_norm_eps=1e-12,
    )


LAYOUTS: tuple[Layout, ...] = (
    NATIVE,
    _TIMM,
    replace(_TIMM, name="timm (norm before pooling)", norm="norm_pre", head_norm="before_pool"),
    _torchvision("torchvision", "features."),
    _transformers("convnext."),
    _transformers("convnextv2."),
    _transformers(""),
    _FEATURES_ONLY,
    _dinov3(""),
    _mmpretrain("backbone."),
    _mmpretrain(""),
    _dinov3("model."),
    _torchvision("torchvision (features)", ""),
)


def rename(tensors: Mapping[str, torch.Tensor]) -> Renamed | None:
    """Rename `tensors` by the layout that explains most of them; None where none explains half, or any block."""
    stages, blocks = _largest_indices(tensors)
    best: Renamed | None = None
    for layout in LAYOUTS:
        theirs = dict(layout.names(stages, blocks))
        theirs |= _head_in_sequence(layout.head, tensors)
        ours = {their_name: our_name for our_name, their_name in theirs.items()}
        found = {ours[name]: _plain_shape(ours[name], tensor) for name, tensor in tensors.items() if name in ours}
        if best is None or len(found) > len(best.tensors):
            best = Renamed(layout.name, found, theirs, tuple(name for name in tensors if name not in ours))
    if best is None or 2 * len(best.tensors) < len(tensors):
        return None
    return best if any(name.startswith("stages.") for name in best.tensors) else None


def _head_in_sequence(head: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the names of a classifier that is the only layer with weights in a sequence, as in Sequential(Dropout, Linear)."""
    inside = [name for name in tensors if re.fullmatch(rf"{re.escape(head)}\.\d+\.(weight|bias)", name)]
    indices = {name.split(".")[-2] for name in inside}
    if len(indices) != 1 or f"{head}.weight" in tensors:
        return {}
    return {f"head.{name.rpartition('.')[2]}": name for name in inside}


def _largest_indices(names: Iterable[str]) -> tuple[int, int]:
    """Upper bounds for stages and blocks: no index that occurs in a name can be larger.

    Capped by the number of tensors, so that a name like "stages.999999999.0.x" costs nothing: n blocks need n tensors. And by what
    a network can have, or 20,000 tensors would be looked up among 20 million names.
    """
    names = list(names)
    indices = [int(index) for name in names for index in re.findall(r"(?<![^._])[0-9]{1,9}(?![^.])", name)]
    bound = min(max(indices, default=0) + 1, len(names))
    return min(bound, MOST_STAGES), min(bound, MOST_BLOCKS)


def _plain_shape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Drop the axes of length one that libraries add: linears (H, C, 1, 1) -> (H, C), vectors (C, 1, 1) -> (C)."""
    if name.endswith(("pwconv1.weight", "pwconv2.weight")) or name == "head.weight":
        return tensor.flatten(1) if tensor.dim() == 4 and tensor.shape[2:] == (1, 1) else tensor
    if name.endswith(("gamma", "grn.beta")) and tensor.dim() > 1 and tensor.numel() == max(tensor.shape):
        return tensor.flatten()
    return tensor
