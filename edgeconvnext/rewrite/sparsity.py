"""2:4 sparsity of the blocks' linears after training, without labels: SparseGPT's choice of zeros, then least squares.

For runtimes with kernels that skip the zeros (TensorRT on Ampere and later); elsewhere it only costs accuracy. Layers are
treated in forward order, each on what the sparse layers before it hand over, and fitted to what the network had there.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import Block, ConvNeXt
from edgeconvnext.model.two_of_four import GROUP, KEPT
from edgeconvnext.model.units import Unit, units_of
from edgeconvnext.progress import progress_bar
from edgeconvnext.rewrite.exact import fold_layer_scale
from edgeconvnext.rewrite.moments import MomentSums, require_finite
from edgeconvnext.rewrite.paired_networks import PairedNetworks, StoredImages
from edgeconvnext.rewrite.prune_segments import check_images, logit_agreement, logit_kl, run_held_out
from edgeconvnext.rewrite.ridge import by_lu, damped, inverse_cholesky, towards
from edgeconvnext.rewrite.two_of_four import masked_fit

LINEARS = ("pwconv1", "pwconv2")
DAMPING = 1e-3
"""Weight of the penalty on changes, as a share of the inputs' mean variance."""


@dataclass(frozen=True)
class SparseLayer:
    """One layer made 2:4. relative_error: RMS error of its output on held-out images, relative to the output's RMS variation, with
    all layers before it sparse; of pwconv2 with the error of the block's input made good."""

    name: str
    relative_error: float


@dataclass(frozen=True)
class SparseResult:
    """A network with 2:4 linears. kl: of the logits in nats; agreement: per cent; both on held-out images."""

    module: ConvNeXt
    layers: tuple[SparseLayer, ...]
    kl: float
    agreement: float
    fit_images: int
    held_out_images: int


@torch.no_grad()
def sparsify(module: ConvNeXt, fit: Iterable[torch.Tensor], held_out: Iterable[torch.Tensor]) -> SparseResult:
    """Make pwconv1 and pwconv2 of every block 2:4 sparse; `module` is left as it is, layer scale is folded on the way.

    fit, held_out: batches of preprocessed images, (N, C, H, W), each read once.

    Raises RewriteError without images, and where a width is no multiple of four.
    """
    reference = fold_layer_scale(module).eval()
    _check_widths(reference)
    working = copy.deepcopy(reference)
    layers: list[SparseLayer] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeconvnext-sparsity-")))
        images = stack.enter_context(StoredImages(folder, fit, held_out))
        check_images(images)
        logits = run_held_out(reference, images)
        units = [unit for unit in units_of(reference) if unit.name != "head"]
        state = stack.enter_context(PairedNetworks(reference, working, images, folder))
        with progress_bar("Making the linears sparse", len(units)) as advance:
            for unit in units:
                if unit.residual:
                    layers += [_solve(state, unit, part) for part in LINEARS]
                state.advance(unit, changed=unit.residual)
                advance(1)
        sparse_logits = run_held_out(working, images)
    agreement = logit_agreement(logits, sparse_logits)
    counts = images.fit_images, images.held_out_images
    return SparseResult(working, tuple(layers), logit_kl(logits, sparse_logits), agreement, *counts)


def sparse_weight(weight: torch.Tensor, covariance: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    """Return the 2:4 weight (out, in) whose outputs come closest to the targets.

    weight: dense, float64. covariance: of the inputs, (in, in). cross: covariance of the targets with the inputs, (out, in).

    The dense weight is first fitted to the targets. Then, four columns at a time, each row drops the two whose removal costs
    least, w_j^2 / [H^-1]_jj, and what they answered for is spread over the columns still to come (SparseGPT, Frantar and Alistarh,
    arXiv 2301.00774). Last, what is kept is fitted with the zeros fixed.
    """
    inputs = covariance.shape[0]
    hessian, own = damped(covariance, DAMPING), towards(weight, covariance, cross, DAMPING)
    dense = by_lu(hessian, own)
    factor = inverse_cholesky(hessian)
    left, mask = dense.clone(), torch.zeros_like(dense, dtype=torch.bool)
    for start in range(0, inputs, GROUP):
        stop = start + GROUP
        cost = (left[:, start:stop] / factor.diagonal()[start:stop]).square()
        mask[:, start:stop].scatter_(1, cost.topk(KEPT, dim=1).indices, True)
        for column in range(start, stop):
            error = left[:, column] * ~mask[:, column] / factor[column, column]
            left[:, column:] -= error[:, None] * factor[column, column:]
    return masked_fit(left, mask, hessian, own)


def _solve(state: PairedNetworks, unit: Unit, part: str) -> SparseLayer:
    """Replace one linear of the working network's block; return how well it answers."""
    blocks = [cast(Block, network.get_submodule(unit.name)) for network in (state.reference, state.working)]
    layer = cast(nn.Linear, getattr(blocks[1], part))

    def rows(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What reaches the layer, and what it should answer, (positions, in) and (positions, out)."""
        inputs = _watched(blocks[1], part, y, output=False)
        added = _watched(blocks[0], part, x, output=True) if part == "pwconv1" else (blocks[0](x) - y).movedim(1, 3)
        return inputs.flatten(0, 2), added.flatten(0, 2)

    sums = MomentSums(layer.in_features, layer.out_features)
    for x, y in state.fit():
        sums.add(*rows(x, y))
    moments = require_finite(sums.result(), f"{unit.name}.{part}")
    weight = sparse_weight(layer.weight.detach().double(), moments.covariance, moments.cross)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(moments.target_mean - weight @ moments.mean)
    error, power = 0.0, 0.0
    for x, y in state.held_out():
        inputs, targets = rows(x, y)
        error += float((layer(inputs) - targets).square().sum(dtype=torch.float64))
        power += float((targets - moments.target_mean).square().sum(dtype=torch.float64))
    return SparseLayer(f"{unit.name}.{part}", (error / power) ** 0.5 if power > 0 else 0.0)


def _watched(block: Block, part: str, x: torch.Tensor, *, output: bool) -> torch.Tensor:
    """Return what one linear of a block takes or gives, (N, H, W, channels)."""
    seen: list[torch.Tensor] = []
    layer = getattr(block, part)
    hook: Callable[..., None] = lambda _module, inputs, result: seen.append(result if output else inputs[0])  # noqa: E731
    handle = layer.register_forward_hook(hook)
    try:
        block(x)
    finally:
        handle.remove()
    return seen[0]


def _check_widths(reference: ConvNeXt) -> None:
    for name, layer in reference.named_modules():
        if name.endswith(LINEARS) and isinstance(layer, nn.Linear) and layer.in_features % GROUP:
            raise RewriteError(
                f"2:4 sparsity takes layers whose inputs come in fours; {name} has {layer.in_features}. Prune hidden "
                "channels with --multiple 8 or another multiple of four, or leave --sparsity out."
            )
