"""Which channel goes and what makes up for it, against numpy on the rows themselves and against the network's own Jacobian."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu

from edgeconvnext.model.convnext.network import Block, ConvNeXt, ConvNeXtConfig
from edgeconvnext.rewrite import prune_channels
from edgeconvnext.rewrite.moments import Moments, MomentSums
from edgeconvnext.rewrite.prune_channels import (
    elimination_order,
    refit,
    removal_order,
    taylor_scores,
)


def rows(seed: int, count: int = 60, hidden: int = 7, dim: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Correlated channels (count, hidden) off zero, and targets (count, dim) that they explain in part; float64."""
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((count, hidden)) @ rng.standard_normal((hidden, hidden)) + rng.standard_normal(hidden) + 2
    return h, h @ rng.standard_normal((hidden, dim)) + 5 + rng.standard_normal((count, dim))


def moments_of(h: np.ndarray, t: np.ndarray, batches: int = 3) -> Moments:
    sums = MomentSums(h.shape[1], t.shape[1])
    for part, target in zip(*(np.array_split(array, batches) for array in (h, t)), strict=True):
        sums.add(torch.from_numpy(part), torch.from_numpy(target))
    return sums.result()


def block_with(up: np.ndarray, bias: np.ndarray, down: np.ndarray) -> Block:
    """A block with pwconv1 weight (hidden, dim) and bias, and pwconv2 weight (dim, hidden)."""
    hidden, dim = up.shape
    block = Block(dim, hidden, ConvNeXtConfig((1,), (dim,), num_classes=2))
    with torch.no_grad():
        for parameter, values in ((block.pwconv1.weight, up), (block.pwconv1.bias, bias), (block.pwconv2.weight, down)):
            parameter.copy_(torch.from_numpy(values))
    return block


def test_scores_of_single_channels_are_norms_and_variances() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        up, bias, down = rng.standard_normal((7, 3)), 3 * rng.standard_normal(7), rng.standard_normal((3, 7))
        block, moments = block_with(up, bias, down), moments_of(*rows(int(rng.integers(1000))))
        magnitude = np.linalg.norm(np.column_stack([up, bias]), axis=1) * np.linalg.norm(down, axis=0)
        assert removal_order(block, moments, "magnitude").tolist() == np.argsort(magnitude).tolist()
        # Without channel j and its mean, the block's output changes by column j times the channel's deviation.
        deviations = np.sqrt(moments.covariance.numpy().diagonal())
        energy = np.linalg.norm(down * deviations, axis=0)
        assert removal_order(block, moments, "energy").tolist() == np.argsort(energy).tolist()
        taylor = torch.from_numpy(rng.standard_normal(7))
        assert removal_order(block, moments, "taylor", taylor).tolist() == np.argsort(taylor.numpy()).tolist()


def test_equal_scores_go_by_their_index() -> None:
    hidden = 40  # an unstable sort keeps the order of a few
    block = block_with(np.ones((hidden, 2)), np.zeros(hidden), np.ones((2, hidden)))
    equal = torch.eye(hidden, dtype=torch.float64)
    moments = Moments(torch.zeros(hidden), equal, torch.zeros(2), torch.ones(2, hidden, dtype=torch.float64))
    taylor = torch.ones(hidden, dtype=torch.float64)
    for score in prune_channels.SINGLE_SCORES:
        assert removal_order(block, moments, score, taylor).tolist() == list(range(hidden)), score


def test_elimination_is_asked_for_by_its_name() -> None:
    moments = moments_of(*rows(4))
    block = block_with(np.ones((7, 3)), np.zeros(7), np.ones((3, 7)))
    expected = elimination_order(moments.covariance, moments.cross).tolist()
    assert removal_order(block, moments, "elimination").tolist() == expected
    assert expected != list(range(7))


def ridge_loss(h: np.ndarray, t: np.ndarray, channels: list[int], damping: float) -> float:
    """Least mean squared error of t on some channels, a weight's square costing `damping`; means are free."""
    if not channels:
        return float(t.var(0).sum())
    x, rest = h[:, channels] - h[:, channels].mean(0), t - t.mean(0)
    wide = np.concatenate([x, np.sqrt(len(h) * damping) * np.eye(len(channels))])
    long = np.concatenate([rest, np.zeros((len(channels), t.shape[1]))])
    weight = np.linalg.lstsq(wide, long, rcond=None)[0]
    return float(np.square(wide @ weight - long).sum()) / len(h)


@pytest.mark.parametrize("seed", range(6))
def test_elimination_takes_the_channel_whose_loss_a_new_fit_makes_up_for_best(seed: int) -> None:
    h, t = rows(seed, hidden=9)
    moments = moments_of(h, t)
    damping = 1e-3 * h.var(0).mean()
    left, expected = list(range(9)), []
    while left:
        losses = {j: ridge_loss(h, t, [other for other in left if other != j], damping) for j in left}
        expected.append(min(losses, key=lambda j: losses[j]))
        left.remove(expected[-1])
    assert elimination_order(moments.covariance, moments.cross).tolist() == expected


@pytest.mark.parametrize("every", [1, 2, 3, 64])
def test_compaction_changes_no_choice(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = moments_of(*rows(7, count=200, hidden=20))
    expected = elimination_order(moments.covariance, moments.cross).tolist()
    monkeypatch.setattr(prune_channels, "COMPACTED_EVERY", every)
    assert sorted(expected) == list(range(20))
    assert elimination_order(moments.covariance, moments.cross).tolist() == expected


@pytest.mark.parametrize(("damping", "first"), [(0.98, 1), (1.02, 0)])
def test_elimination_is_damped_by_a_thousandth_of_the_mean_variance(damping: float, first: int) -> None:
    """Of channels with variance v and covariance c with the target, removal costs c^2 / (v + damping): 2 / (1 + d), 4 / (3 + d).

    Both cost 1 at a damping of 1. The third channel, with a variance of some 3000 and all the rest, sets the damping.
    """
    variances = torch.tensor([1.0, 3.0, 3000 * damping - 4], dtype=torch.float64)
    cross = torch.tensor([[2**0.5, 2.0, 1e4]], dtype=torch.float64)
    assert elimination_order(variances.diag(), cross).tolist() == [first, 1 - first, 2]


def test_channels_that_never_change_go_by_their_index() -> None:
    covariance, cross = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    assert elimination_order(covariance, cross).tolist() == [0, 1, 2]


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5, 6], [5, 1, 2], [4]])
@pytest.mark.parametrize("ridge", [None, 0.25])
def test_refit_is_ridge_regression_from_the_old_weight(
    kept: list[int], ridge: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change D minimises |t - (W0 + D) h|^2 / n + p |D|^2, p = 0.001 of the kept channels' mean variance: rows sqrt(n p) I."""
    if ridge is not None:
        monkeypatch.setattr(prune_channels, "RIDGE", ridge)
    h, t = rows(8)
    own = np.random.default_rng(8).standard_normal((3, 7)).astype(np.float32)
    weight, bias = refit(torch.from_numpy(own), moments_of(h, t), torch.tensor(kept))
    x, start = h[:, kept] - h[:, kept].mean(0), own[:, kept].astype(np.float64)
    penalty = np.sqrt(len(h) * (ridge or 0.001) * x.var(0).mean()) * np.eye(len(kept))
    rest = np.concatenate([t - t.mean(0) - x @ start.T, np.zeros((len(kept), 3))])
    expected = start + np.linalg.lstsq(np.concatenate([x, penalty]), rest, rcond=None)[0].T
    # Sums of squares and rows agree to float64 rounding times the condition number, at most 1e4 with this ridge.
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(bias.numpy(), t.mean(0) - expected @ h[:, kept].mean(0), rtol=1e-9, atol=1e-9)


def test_channels_that_never_change_keep_their_weight() -> None:
    h, t = np.full((20, 2), 3.0), np.random.default_rng(9).standard_normal((20, 1))
    weight, bias = refit(torch.tensor([[2.0, -1.0]]), moments_of(h, t), torch.tensor([0, 1]))
    np.testing.assert_allclose(weight.numpy(), [[2.0, -1.0]], atol=1e-12)
    np.testing.assert_allclose(bias.numpy(), t.mean(0) - 3.0, atol=1e-12)


def network(seed: int = 0) -> ConvNeXt:
    """Two stages, three classes, weights large enough that every channel matters; float64."""
    generator = torch.Generator().manual_seed(seed)
    module = ConvNeXt(ConvNeXtConfig((1, 1), (4, 6), num_classes=3, hidden=((5,), (7,)))).eval().double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            scale = 1.0 if name.endswith(("gamma", "norm.weight")) else 0.0
            parameter.copy_(
                scale + fan_in**-0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            )
        module.head.weight.mul_(3)
    return module


def stored(*batches: torch.Tensor) -> Any:
    """What `taylor_scores` uses of StoredImages."""

    def fit() -> Iterator[torch.Tensor]:
        return iter([batch.clone() for batch in batches])

    return SimpleNamespace(fit=fit, fit_images=sum(map(len, batches)))


def hidden_and_rest(module: ConvNeXt, path: str, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """The input of a block's pwconv2, (N, H, W, hidden), and the function from it to the logits, written out."""
    stage = int(path.split(".")[1])
    for earlier in range(stage):
        x = module.stages[earlier](module.downsample_layers[earlier](x))
    x = module.downsample_layers[stage](x)
    block = module.stages[stage][0]
    h = gelu(block.pwconv1(block.norm(block.dwconv(x).permute(0, 2, 3, 1))))

    def rest(values: torch.Tensor) -> torch.Tensor:
        y = x + (block.gamma * block.pwconv2(values)).permute(0, 3, 1, 2)
        for later in range(stage + 1, 2):
            y = module.stages[later](module.downsample_layers[later](y))
        return module.head(module.norm(y.mean(dim=(2, 3))))

    return h, rest


@pytest.mark.parametrize("path", ["stages.0.0", "stages.1.0"])
def test_taylor_scores_are_the_quadratic_form_of_the_logits_curvature(path: str) -> None:
    """Of images seen many times: the mean of (u' J d)^2 / 2 over draws of u is d' J' F J d / 2, from the full Jacobian."""
    module, draws = network(), 4000
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = taylor_scores(module, stored(*[images.repeat(500, 1, 1, 1)] * (draws // 500)))[path]
    mean = hidden_and_rest(module, path, images)[0].mean(dim=(0, 1, 2))
    expected = torch.zeros(len(mean), dtype=torch.float64)
    for image in images:
        h, rest = hidden_and_rest(module, path, image[None])
        jacobian = torch.autograd.functional.jacobian(rest, h)[0, :, 0]  # (classes, H, W, hidden)
        change = (jacobian * (h - mean)).sum(dim=(1, 2))  # of the logits, for each channel alone: (classes, hidden)
        p = rest(h).softmax(dim=1)[0]
        curvature = p.diag() - torch.outer(p, p)
        expected += 0.5 * (change * (curvature @ change)).sum(dim=0).detach() / len(images)
    # (u' J d)^2 is chi-square with one degree of freedom: its mean over 4000 draws is off by sqrt(2 / 4000) = 2.2 % at one sigma.
    np.testing.assert_allclose(scores.numpy(), expected.numpy(), rtol=4.5 * (2 / draws) ** 0.5)


def test_taylor_scores_average_squares_of_each_images_own_slope() -> None:
    """Two batches, image by image, with the deviation from the mean over all images and positions."""
    module = network(2)
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(count, 3, 16, 16, generator=generator, dtype=torch.float64) for count in (4, 3)]
    scores = taylor_scores(module, stored(*batches))
    assert list(scores) == ["stages.0.0", "stages.1.0"]
    draws = torch.Generator().manual_seed(0)
    normal = [torch.randn(len(batch), 3, generator=draws).double() for batch in batches]
    for path, score in scores.items():
        mean = hidden_and_rest(module, path, torch.cat(batches))[0].mean(dim=(0, 1, 2)).detach()
        total = torch.zeros(len(mean), dtype=torch.float64)
        for image, z in zip(itertools.chain(*batches), itertools.chain(*normal), strict=True):
            h, rest = hidden_and_rest(module, path, image[None])
            h = h.detach().requires_grad_()
            logits = rest(h)[0]
            p = logits.detach().softmax(0)
            root = p.sqrt()
            u = root * (z - root * (root @ z))  # covariance diag(p) - p p': the projection of z off sqrt(p), scaled
            (slope,) = torch.autograd.grad(u @ logits, h)
            total += (slope * (h.detach() - mean)).sum(dim=(0, 1, 2)).square()
        np.testing.assert_allclose(score.numpy(), (total / (2 * 7)).numpy(), rtol=1e-9)


def test_a_constant_channel_scores_nothing_and_no_hook_stays() -> None:
    module = network(4)
    with torch.no_grad():
        block = module.stages[1][0]
        block.pwconv1.weight[1:] = 0
        block.pwconv1.bias[1:] = torch.linspace(0.3, 2, 6, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    images = [torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(3)]
    scores = taylor_scores(module, stored(*images))["stages.1.0"]
    # Its deviation is zero but for the rounding of h^2 against its mean, 1e-16 of the channel's size.
    assert bool((scores >= 0).all()) and float(scores[1:].max()) < 1e-12 * float(scores[0])
    assert all(not layer._forward_pre_hooks for layer in module.modules())


def test_hooks_go_where_the_network_fails() -> None:
    module = network(6)
    with pytest.raises(RuntimeError):
        taylor_scores(module, stored(torch.zeros(1, 5, 16, 16, dtype=torch.float64)))
    assert all(not layer._forward_pre_hooks for layer in module.modules())
