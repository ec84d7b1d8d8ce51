"""Which hidden channels of a block go first, and the pwconv2 that makes up for them.

All of it follows from second-order statistics of one streaming pass: mean and covariance of the hidden channels h, and their
covariance with the target t, what the block should add to its input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from edgeconvnext.choices import Score
from edgeconvnext.decisions import two_logits
from edgeconvnext.model.convnext.network import Block, ConvNeXt
from edgeconvnext.rewrite.moments import Moments
from edgeconvnext.rewrite.paired_networks import StoredImages
from edgeconvnext.rewrite.prune_segments import hidden_widths
from edgeconvnext.rewrite.ridge import by_lu, damped, ridge_fit

SINGLE_SCORES: tuple[Score, ...] = ("elimination", "magnitude", "energy", "taylor")

RIDGE = 1e-3
"""Weight of the penalty on changes of pwconv2, as a share of the mean variance of the channels that stay."""

COMPACTED_EVERY = 64
TAYLOR_SEED = 0


def removal_order(block: Block, moments: Moments, score: Score, taylor: torch.Tensor | None = None) -> torch.Tensor:
    """Return all hidden channels, the first to go first, (hidden,). Equal scores go by their index.

    magnitude: norm of the pwconv1 row (with bias) times norm of the pwconv2 column. energy: variance of the channel times the
    squared norm of its column, the squared error that its removal alone brings once its mean is in the bias. taylor: see
    `taylor_scores`, handed in. elimination: see `elimination_order`.
    """
    if score == "elimination":
        return elimination_order(moments.covariance, moments.cross)
    up, down = block.pwconv1.weight.detach().double(), block.pwconv2.weight.detach().double()
    columns = down.square().sum(dim=0)
    if score == "magnitude":
        rows = up.square().sum(dim=1) + block.pwconv1.bias.detach().double().square()
        return (rows * columns).argsort(stable=True)
    if score == "energy":
        return (moments.covariance.diagonal() * columns).argsort(stable=True)
    assert taylor is not None
    return taylor.argsort(stable=True)


def elimination_order(covariance: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    """Return the order of greedy backward elimination in least squares of t on h.

    With P the inverse covariance of the channels left and W their best weights, taking out channel j and fitting the rest anew
    raises the squared error by |W_j|^2 / P_jj; the one with the least goes, W loses W_j P_j / P_jj, and P loses
    P_j P_j^T / P_jj (optimal brain surgeon, Hassibi and Stork, 1993). Example: of two equal channels either goes first, at no
    cost, and the other, now needed, late; a score by channel would drop both or none.
    """
    hidden = len(covariance)
    inverse = torch.linalg.inv(damped(covariance, RIDGE))
    weight = cross @ inverse
    names = torch.arange(hidden)
    alive = torch.ones(hidden, dtype=torch.bool)
    order = []
    for step in range(hidden):
        cost = weight.square().sum(dim=0) / inverse.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
        cost[~alive] = torch.inf
        at = int(cost.argmin())
        order.append(int(names[at]))
        alive[at] = False
        row, pivot = inverse[at].clone(), float(inverse[at, at])
        weight -= torch.outer(weight[:, at].clone(), row / pivot)
        inverse.addr_(row, row, alpha=-1 / pivot)
        if step % COMPACTED_EVERY == COMPACTED_EVERY - 1:
            inverse, weight, names = inverse[alive][:, alive].clone(), weight[:, alive].clone(), names[alive]
            alive = torch.ones(len(names), dtype=torch.bool)
    return torch.tensor(order)


def refit(weight: torch.Tensor, moments: Moments, channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pwconv2's weight (dim, width) and bias for these channels, closest to the targets.

    weight: pwconv2's own, (dim, hidden). channels: their indices. The fit is `ridge_fit`'s, from the weight that these channels
    have; the bias takes up the means.
    """
    own = weight.detach().double()[:, channels]
    fitted = ridge_fit(own, moments.covariance[channels][:, channels], moments.cross[:, channels], RIDGE, by_lu)
    return fitted, moments.target_mean - fitted @ moments.mean[channels]


@torch.enable_grad()
def taylor_scores(reference: ConvNeXt, images: StoredImages) -> dict[str, torch.Tensor]:
    """Return for each hidden channel the KL in nats that replacing it by its mean brings, to lowest order, by block.

    The KL of a network to itself has no first-order term. With F = diag(p) - p p^T its curvature in the logits z, a change
    of z by J d costs d^T J^T F J d / 2. A random vector u with covariance F gives E (u^T J d)^2, where u^T J is one backward
    pass: for each image, the gradient of u^T z times the channel's deviation from its mean, summed over positions, squared
    (the squared first-order term of Molchanov et al., arXiv 1906.10771, on answers drawn from the network itself).
    """
    generator = torch.Generator().manual_seed(TAYLOR_SEED)
    widths = hidden_widths(reference.config)
    sums = {path: torch.zeros(4, width, dtype=torch.float64) for path, width in widths.items()}
    positions = dict.fromkeys(widths, 0)
    seen: dict[str, torch.Tensor] = {}

    def watch(path: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[path] = inputs[0]

        return hook

    hooks = [reference.get_submodule(f"{path}.pwconv2").register_forward_pre_hook(watch(path)) for path in widths]
    try:
        for batch in images.fit():
            logits = two_logits(reference(batch.requires_grad_()))
            p = logits.detach().softmax(dim=1)
            drawn = p.sqrt() * torch.randn(p.shape, generator=generator)
            drawn = drawn - p * drawn.sum(dim=1, keepdim=True)
            gradients = torch.autograd.grad((logits * drawn).sum(), [seen[path] for path in widths])
            for (path, width), gradient in zip(widths.items(), gradients, strict=True):
                hidden = seen[path].detach().flatten(1, 2)
                slope = gradient.flatten(1, 2)
                first, base = (slope * hidden).sum(dim=1).double(), slope.sum(dim=1).double()
                positions[path] += hidden.shape[0] * hidden.shape[1]
                added = (first.square(), first * base, base.square(), hidden.double().sum(dim=1))
                sums[path] += torch.stack([part.sum(dim=0) for part in added]).view(4, width)
            seen.clear()
    finally:
        for handle in hooks:
            handle.remove()
    scores = {}
    for path, (square, product, base, total) in sums.items():
        mean = total / positions[path]
        scores[path] = ((square - 2 * mean * product + mean.square() * base) / (2 * images.fit_images)).clamp_min(0)
    return scores
