"""Rewrites that change the arithmetic of a network but not its answer, each proven on the model at hand.

Every `fold_*` function returns a new network and leaves its argument untouched. Products are formed in float64 and
rounded once, to the type of the weights. `fold_exact` applies them in order and measures what each did to the logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from edgeconvnext.data.loader import images_at_once
from edgeconvnext.data.preprocess import Preprocess, ValueRange, to_value_range
from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import Block
from edgeconvnext.model.network import ExactFold, Network
from edgeconvnext.rewrite.batch_norm import fold_batch_norm

NetworkType = TypeVar("NetworkType", bound=Network)
Rewrite = Callable[[Any], Network]

PROOF_IMAGES = 16
"""So many real images are what a command proves exact rewrites on."""

EXACT_LIMIT = 1e-4
"""Largest error of the logits, relative to the largest logit, that still counts as rounding of float32."""


@dataclass(frozen=True)
class FoldResult:
    """A rewritten network and, for each rewrite in order, the largest relative error of the logits so far.

    errors: max |a - b| / max |a| over all images and classes; a are the logits of the network handed in, b those after
        this rewrite and all before it.
    """

    module: Network
    errors: dict[str, float]


def fold_exact(
    module: Network,
    inputs: torch.Tensor | Iterable[torch.Tensor],
    *,
    preprocess: Preprocess | None = None,
    value_range: ValueRange = "normalized",
) -> FoldResult:
    """Fold layer scale, LayerNorm affines, GRN shifts and BatchNorms, and the input normalisation where `value_range` asks for it.

    inputs: preprocessed real images, (N, C, H, W), or batches of them; they are kept in memory, so a few dozen will do.
    preprocess: the model's own; needed only for a `value_range` other than "normalized".

    Raises RewriteError where a rewrite moves the logits by more than EXACT_LIMIT, or none can be compared.
    """
    known: dict[ExactFold, Rewrite] = {
        "layer_scale": fold_layer_scale,
        "norm_affine": fold_norm_affine,
        "grn_shift": fold_grn_shift,
        "batch_norm": fold_batch_norm,
    }
    rewrites: dict[str, Rewrite] = {name: known[name] for name in module.exact_folds}
    images = _batches(inputs)
    result = apply_rewrites(module, rewrites, images)
    if value_range == "normalized":
        return result
    if preprocess is None:
        raise RewriteError(f"Folding the input range {value_range} needs the model's preprocessing (mean and std).")
    folded = fold_input_normalization(result.module, preprocess, value_range)
    pixels = [torch.from_numpy(to_value_range(batch.numpy(), preprocess, value_range)) for batch in images]
    error = _checked_error("input_normalization", _outputs(module, images), _outputs(folded, pixels))
    return FoldResult(folded, {**result.errors, "input_normalization": error})


def apply_rewrites(
    module: Network, rewrites: Mapping[str, Rewrite], inputs: torch.Tensor | Iterable[torch.Tensor]
) -> FoldResult:
    """Apply `rewrites` in order; raise RewriteError at the first one that is not exact on `inputs`, (N, C, H, W)."""
    images = _batches(inputs)
    reference = _outputs(module, images)
    errors: dict[str, float] = {}
    current = module
    for name, rewrite in rewrites.items():
        current = rewrite(current)
        errors[name] = _checked_error(name, reference, _outputs(current, images))
    return FoldResult(copy.deepcopy(current) if current is module else current, errors)


def fold_layer_scale(module: NetworkType) -> NetworkType:
    """Multiply `gamma` into pwconv2: gamma * (W x + b) = (gamma W) x + gamma b; copy networks without layer scale."""
    folded = copy.deepcopy(module)
    for block in _blocks(folded):
        if block.gamma is not None:
            gamma = block.gamma.detach().double()
            _assign(block.pwconv2.weight, gamma[:, None] * block.pwconv2.weight.detach().double())
            _assign(block.pwconv2.bias, gamma * block.pwconv2.bias.detach().double())
            block.gamma = None
    folded.config = folded.config.replace(layer_scale=False)
    return folded


def fold_norm_affine(module: NetworkType) -> NetworkType:
    """Move the scale and shift of each LayerNorm into the layer behind it: W (g n + s) + b = (W diag(g)) n + (b + W s).

    In a ConvNeXt, blocks fold into pwconv1, downsampling norms into their unpadded 2x2 conv, the head norm into the classifier
    (one before pooling as well: a mean over positions is linear). The norms stay, with weight 1 and bias 0. Two keep their affine:
    the stem's, which feeds a residual connection and a zero-padded conv, and the head's where no classifier follows.
    """
    folded = copy.deepcopy(module)
    for norm, layer in folded.norms_in_front():
        _fold_affine(folded.get_submodule(norm), cast(nn.Linear | nn.Conv2d, folded.get_submodule(layer)))
    return folded


def fold_grn_shift(module: NetworkType) -> NetworkType:
    """Move GRN's additive `beta` into pwconv2's bias: W (y + beta) + b = W y + (b + W beta). V1 networks are copied."""
    folded = copy.deepcopy(module)
    for block in _blocks(folded):
        if block.grn is not None:
            beta = block.grn.beta.detach().double()
            shift = block.pwconv2.weight.detach().double() @ beta
            _assign(block.pwconv2.bias, block.pwconv2.bias.detach().double() + shift)
            _assign(block.grn.beta, torch.zeros_like(beta))
    return folded


def fold_input_normalization(module: Network, preprocess: Preprocess, value_range: ValueRange) -> Network:
    """Return a network that takes pixel values 0..1 or 0..255 in place of (x - mean) / std.

    Division by std (and by 255) always goes into the stem conv's weights. The mean goes into its bias where the stem is
    a patch conv, which has no padding; a network with an overlapping stem subtracts the mean first (`input_shift`).
    Example: ImageNet's red channel in 0..255 is (v - 123.675) / 58.395; its weights are divided by 58.395.
    Raises RewriteError where mean and std do not fit the channels, or the network takes pixel values already.
    """
    if value_range == "normalized":
        return copy.deepcopy(module)
    if module.input_shift is not None:
        raise RewriteError("This network takes pixel values already; fold the input of the original one instead.")
    config = module.config
    if len(preprocess.mean) != config.in_channels or len(preprocess.std) != config.in_channels:
        raise RewriteError(
            f"The input normalisation has {len(preprocess.mean)} means and {len(preprocess.std)} stds, but the network "
            f"takes {config.in_channels} channels; give one of each per channel (--mean, --std)."
        )
    if config.input_fold == "none":
        raise RewriteError(
            "The padded stem of a ResNet cannot take raw pixel values: the zeros around the image stand for the mean colour. "
            'Use a target whose input.value_range is "normalized", such as onnx.'
        )
    mean, std = _pixel_statistics(preprocess, value_range)
    folded = copy.deepcopy(module)
    conv = cast(nn.Conv2d, cast(nn.Sequential, folded.downsample_layers[0])[0])
    weight = conv.weight.detach().double() / std.to(conv.weight.device)[:, None, None]
    _assign(conv.weight, weight)
    if config.input_fold == "stem":
        assert conv.bias is not None
        _assign(conv.bias, conv.bias.detach().double() - weight.sum(dim=(2, 3)) @ mean.to(conv.weight.device))
    else:
        folded.input_shift = -mean.view(1, -1, 1, 1).to(conv.weight)
    return folded


def _pixel_statistics(preprocess: Preprocess, value_range: ValueRange) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and std per channel in the units of `value_range`, float64."""
    unit = 255.0 if value_range == "0..255" else 1.0
    mean = torch.tensor(preprocess.mean, dtype=torch.float64) * unit
    return mean, torch.tensor(preprocess.std, dtype=torch.float64) * unit


def _fold_affine(norm: nn.Module, layer: nn.Linear | nn.Conv2d) -> None:
    """Move the affine of `norm`, where it is a LayerNorm, into `layer`: weight (out, in) or (out, in, kH, kW), with a bias."""
    if not isinstance(norm, nn.LayerNorm):
        return
    weight = layer.weight.detach().double()
    scale, shift = norm.weight.detach().double(), norm.bias.detach().double()
    assert layer.bias is not None
    # Each position of a 2x2 conv's kernel sees the same shift, so its weights are summed first.
    per_channel = weight.sum(dim=(2, 3)) if weight.dim() == 4 else weight
    _assign(layer.bias, layer.bias.detach().double() + per_channel @ shift)
    _assign(layer.weight, weight * scale.view(1, -1, *[1] * (weight.dim() - 2)))
    _assign(norm.weight, torch.ones_like(scale))
    _assign(norm.bias, torch.zeros_like(shift))


def _assign(parameter: torch.Tensor, value: torch.Tensor) -> None:
    parameter.data.copy_(value)


def _blocks(module: Network) -> Iterator[Block]:
    """Yield the blocks with ConvNeXt's parts."""
    yield from (cast(Block, module.get_submodule(path)) for path in module.inverted_bottlenecks)


def _batches(inputs: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return the images as a list of small batches, read once; raise RewriteError where there are none."""
    given = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    images = [part for batch in given for part in batch.split(images_at_once((batch.shape[2], batch.shape[3])))]
    if not any(len(batch) for batch in images):
        raise RewriteError("The exact rewrites are proven on real images, and there are none; name a set with --calib.")
    return images


@torch.no_grad()
def _outputs(module: Network, images: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the network's outputs over all images by name, (N, ...) each."""
    parts = zip(*(module.outputs(batch) for batch in images), strict=True)
    return {name: torch.cat(part) for name, part in zip(module.output_names, parts, strict=True)}


def _checked_error(name: str, reference: dict[str, torch.Tensor], rewritten: dict[str, torch.Tensor]) -> float:
    """Return the largest max |a - b| / max |a| of all outputs; RewriteError where one exceeds EXACT_LIMIT or is not finite."""
    return max(_output_error(name, output, reference[output], rewritten[output]) for output in reference)


def _output_error(name: str, output: str, reference: torch.Tensor, rewritten: torch.Tensor) -> float:
    if not (reference.isfinite().all() and rewritten.isfinite().all()):
        raise RewriteError(
            f"The rewrite {name} cannot be proven: the network's {output} hold NaN or Inf on the calibration images. "
            f"Check the weights and the preprocessing of the checkpoint."
        )
    largest = reference.double().abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    error = float((reference.double() - rewritten).abs().max() / largest)
    if error > EXACT_LIMIT:
        raise RewriteError(
            f"The rewrite {name} is not exact on this model: it moves {output} by {error:.1e} of the largest value on "
            f"{len(reference)} images, more than the {EXACT_LIMIT:.0e} that float32 rounding explains. "
            f"The model was left as it is; run without this rewrite, or check that the checkpoint is a plain ConvNeXt."
        )
    return error
