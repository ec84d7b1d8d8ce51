"""BatchNorms that stand in for LayerNorms while a network is trained fold away exactly."""

from __future__ import annotations

import pytest
import torch
from norm_networks import CONFIGS, folded_network

from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.rewrite.channel_norm import (
    ChannelNorm,
    fold_batch_norms,
    leave_inputs_as_they_are,
    with_batch_norms,
)
from edgeconvnext.rewrite.norms import replaceable_norms

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def without_norms(kind: str) -> tuple[ConvNeXt, tuple[str, ...]]:
    """A folded network whose replaceable LayerNorms are Identities, and their paths."""
    module = folded_network(CONFIGS[kind])
    norms = replaceable_norms(module)
    for norm in norms:
        module.set_submodule(norm, torch.nn.Identity())
    return module, norms


@pytest.mark.parametrize("kind", CONFIGS)
def test_fold_is_exact_after_training(kind: str) -> None:
    module, norms = without_norms(kind)
    changed = with_batch_norms(module, norms)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
        for _ in range(300):  # momentum 0.01: until the running statistics are those of the images
            changed.train()(IMAGES)
        expected = changed.eval()(IMAGES)
        folded = fold_batch_norms(changed)
        # Float32 rounding through the layers, relative to logits of order 1 to 10.
        torch.testing.assert_close(folded(IMAGES), expected, atol=1e-4, rtol=1e-4)
    assert folded.config.identity_norms == norms
    assert not any(isinstance(m, ChannelNorm) for m in folded.modules())


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_starts_as_nothing_in_training_too(kind: str) -> None:
    module, norms = without_norms(kind)
    changed = with_batch_norms(module, norms)
    leave_inputs_as_they_are(changed, IMAGES.split(2))
    with torch.no_grad():
        expected = module.eval()(IMAGES)
        torch.testing.assert_close(changed.eval()(IMAGES), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(changed.train()(IMAGES), expected, atol=1e-3, rtol=1e-3)
