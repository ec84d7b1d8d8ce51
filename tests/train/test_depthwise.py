"""Weight gradients of depthwise convs: another way to compute them, the same numbers, and no trace of it afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeconvnext.train.depthwise import fast_weight_gradients, weight_gradient
from edgeconvnext.train.loop import LoopSettings, Trainer
from edgeconvnext.train.world import ALONE


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def depthwise(channels: int, kernel: int | tuple[int, int]) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(
        channels, channels, kernel, padding="same" if isinstance(kernel, tuple) else kernel // 2, groups=channels
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (4, 16), (9, 9), (20, 6)])
@pytest.mark.parametrize("kernel", [(7, 7), (3, 3), (5, 1), (11, 11)])
def test_weight_gradients_are_those_of_autograd(size: tuple[int, int], kernel: tuple[int, int]) -> None:
    x, owed = images(5, 6, *size), images(5, 6, *size) + 1
    conv = depthwise(6, kernel)
    conv.double()(x.double()).backward(owed.double())
    expected = conv.weight.grad
    assert expected is not None
    found = weight_gradient(x, owed, conv.weight.detach().float())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [6, 12])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_has_the_gradients_it_had_before(size: int, autocast: bool) -> None:
    x, owed = images(4, 8, size, size).contiguous(memory_format=torch.channels_last), images(4, 8, size, size)
    gradients = []
    for fast in (False, True):
        conv = depthwise(8, 7)
        network = nn.Sequential(conv)
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if fast:
                with fast_weight_gradients(network):
                    output = network(given)
            else:
                output = conv(given)
        assert output.dtype is (torch.bfloat16 if autocast else torch.float32)
        output.backward(owed.to(output.dtype))
        assert conv.weight.grad is not None and conv.bias is not None
        gradients.append((output.float(), given.grad, conv.weight.grad, conv.bias.grad))
    tolerance = 2e-2 if autocast else 1e-5
    for before, after in zip(*gradients, strict=True):
        assert before is not None and after is not None and after.dtype is torch.float32
        before, after = before.detach(), after.detach()
        assert float((after - before).norm() / before.norm()) < tolerance


def test_only_depthwise_convs_that_keep_the_size_are_touched_and_only_inside() -> None:
    network = nn.Sequential(depthwise(4, 7), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8))
    modules, names = list(network), list(network.state_dict())
    with pytest.raises(ZeroDivisionError), fast_weight_gradients(network):
        assert [type(module) is nn.Conv2d for module in network] == [False, True, True]
        assert list(network.state_dict()) == names
        raise ZeroDivisionError
    assert all(after is before for after, before in zip(network, modules, strict=True))


def test_a_training_step_uses_it_and_leaves_the_network_as_it_was() -> None:
    conv = depthwise(4, 7)
    network = nn.Sequential(conv, nn.Conv2d(4, 2, 1))
    seen: list[type[nn.Module]] = []

    def loss(x: torch.Tensor, _step: int, _part: int) -> torch.Tensor:
        seen.append(type(network[0]))
        return network(x).square().mean()

    settings = LoopSettings("A test", 1, 1, lambda progress: 1.0)
    before = conv.weight.detach().clone()
    trainer = Trainer(network, [torch.optim.SGD(network.parameters(), 0.1)], loss, settings, ALONE)  # type: ignore[arg-type]
    for group in trainer.optimizers[0].param_groups:
        group["rate"] = 0.1
    trainer.step([images(2, 4, 6, 6)])
    assert seen[0] is not nn.Conv2d and network[0] is conv
    assert not torch.equal(conv.weight, before)
