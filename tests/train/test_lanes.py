"""Lanes compute what the network computes, on several cores: the same gradients but for the order of sums, the same each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from edgeconvnext.model.build import build
from edgeconvnext.model.convnext.network import ConvNeXtConfig
from edgeconvnext.model.families import architectures
from edgeconvnext.model.network import Network
from edgeconvnext.train.lanes import Lanes, lanes_for, threads
from edgeconvnext.train.networks import set_drop_path
from edgeconvnext.train.world import ALONE, World

CONFIG = ConvNeXtConfig(depths=(1, 2), dims=(8, 16), num_classes=5, patch_size=4)


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    with threads(4):
        yield


def network(drop_path: float = 0.0) -> Network:
    torch.manual_seed(0)
    module = build(CONFIG).train()
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(parameter, 0.5)
    set_drop_path(module, drop_path)
    return module


def batch(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(images, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    return pixels, torch.randint(5, (images,), generator=generator)


def gradients(module: Network, lanes: int, images: int, autocast: bool = False) -> dict[str, torch.Tensor]:
    pixels, labels = batch(images)
    module.zero_grad()
    forward = Lanes(module, lanes) if lanes > 1 else module
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(forward(pixels).float(), labels)
    loss.backward()
    return {"loss": loss.detach()} | {
        name: value.grad for name, value in module.named_parameters() if value.grad is not None
    }


@pytest.mark.parametrize(("lanes", "images"), [(2, 8), (3, 8), (4, 3)])
def test_gradients_are_those_of_the_whole_batch(lanes: int, images: int) -> None:
    """Also where the images do not part evenly, or are fewer than the lanes."""
    module = network()
    whole, parted = gradients(module, 1, images), gradients(module, lanes, images)
    assert whole.keys() == parted.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parted[name], gradient, rtol=1e-4, atol=1e-6)


def test_lanes_multiply_in_the_precision_around_them() -> None:
    module = network()
    whole, parted, plain = gradients(module, 1, 8, True), gradients(module, 2, 8, True), gradients(module, 2, 8)
    for name, gradient in whole.items():
        scale = float(gradient.norm())
        assert float((parted[name] - gradient).norm()) <= 0.02 * scale, name  # bfloat16 has 8 bits
    assert any(not torch.equal(parted[name], plain[name]) for name in plain)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_same_seed_gives_the_same_bits(autocast: bool) -> None:
    module = network(drop_path=0.5)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(gradients(module, 4, 32, autocast))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["loss"], runs[2]["loss"])  # other blocks were skipped


def test_lanes_share_the_weights_and_draw_for_themselves() -> None:
    module = network(drop_path=0.9)
    lanes = Lanes(module, 2)
    pixels = batch(1)[0].repeat(64, 1, 1, 1)
    torch.manual_seed(0)
    first, second = lanes(pixels).detach().chunk(2)
    assert not torch.allclose(first, second)  # equal images, skipped differently
    with torch.no_grad():
        module.head.bias.fill_(100.0)
    assert float(lanes(pixels).detach().min()) > 50


def test_lanes_are_for_processors_and_networks_that_see_each_image_alone() -> None:
    assert lanes_for(network(), 64, ALONE) == 4
    assert lanes_for(network(), 40, ALONE) == 2
    assert lanes_for(network(), 8, ALONE) == 1
    assert lanes_for(network(), 64, World(0, 2, torch.device("cpu"))) == 1
    assert lanes_for(network(), 64, World(0, 1, torch.device("cuda"))) == 1
    assert lanes_for(build(architectures()["resnet_atto"].config), 64, ALONE) == 1  # its BatchNorms see whole batches
