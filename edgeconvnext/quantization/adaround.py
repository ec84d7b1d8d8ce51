"""AdaRound over a whole block: choose for each weight the code below or above it by gradient descent on the block's output.

Nagel et al., arXiv 2004.10568 (the rectified sigmoid and its regulariser), with the block-wise loss of BRECQ, arXiv 2102.05426.
"""

from __future__ import annotations

import time
from typing import cast

import torch

from edgeconvnext.model.network import Network
from edgeconvnext.model.two_of_four import zero_mask
from edgeconvnext.model.units import Unit
from edgeconvnext.quantization.plan import QParams
from edgeconvnext.rewrite.tensor_file import TensorFile

BATCH = 16
MOST_STEPS = 2000
FEWEST_STEPS = 20
LEARNING_RATE = 3e-2
REGULARIZATION = 5.0
"""Weight of the push towards 0 and 1, mean over weights, relative to the first loss; it sets in after a fifth of the steps."""

STRETCH = (-0.1, 1.1)
START = 0.05
"""How far each weight starts from its code towards the one offered: near it, because the codes at hand are good ones."""


def refine(
    unit: Unit,
    reference: Network,
    working: Network,
    qparams: dict[str, QParams],
    inputs: tuple[TensorFile, TensorFile, int],
    *,
    seconds: float,
) -> None:
    """Move the codes of a unit's layers by at most one each, for the least error of the unit's output; in place.

    working: the quantised network, its weights on the codes of `qparams`, its activations rounded by hooks. inputs: the unit's
    inputs in the reference and in the working network, and how many images to fit on. seconds: time it may take; the number of
    steps is set by the first few.
    """
    reference_file, working_file, images = inputs
    directions = _directions(unit, reference, working, list(qparams), inputs)
    roundings = {
        layer: _SoftRounding(working, layer, layer_qparams, directions[layer], zero_mask(_weight(reference, layer)))
        for layer, layer_qparams in qparams.items()
    }
    parameters = [rounding.logit for rounding in roundings.values()]
    biases = [rounding.bias for rounding in roundings.values()]
    optimizer = torch.optim.Adam(
        [{"params": parameters, "lr": LEARNING_RATE}, {"params": biases, "lr": LEARNING_RATE / 10}]
    )
    generator = torch.Generator().manual_seed(0)
    begin, steps, step, start_loss = time.perf_counter(), MOST_STEPS, 0, 0.0
    count = sum(parameter.numel() for parameter in parameters)
    with torch.enable_grad():
        while step < steps:
            rows = torch.randperm(images, generator=generator)[:BATCH].tolist()
            with torch.no_grad():
                target = unit.branch(reference, reference_file.pick(rows))
            replaced = {name: value for rounding in roundings.values() for name, value in rounding.tensors().items()}
            output = _branch(unit, working, replaced, working_file.pick(rows))
            loss = (output - target).square().mean() / target.square().mean().clamp_min(1e-12)
            start_loss = start_loss or float(loss.detach())
            progress = step / steps
            if progress > 0.2:
                beta = 20 - 18 * (progress - 0.2) / 0.8
                pushed = sum((1 - (2 * rounding.soft() - 1).abs().pow(beta)).sum() for rounding in roundings.values())
                loss = loss + REGULARIZATION * start_loss * pushed / count
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == FEWEST_STEPS:
                step_seconds = (time.perf_counter() - begin) / step
                steps = max(FEWEST_STEPS + 1, min(MOST_STEPS, int(seconds / step_seconds)))
            elif step > FEWEST_STEPS and time.perf_counter() - begin > 1.2 * seconds:
                break
    for rounding in roundings.values():
        rounding.harden()


def _directions(
    unit: Unit, reference: Network, working: Network, layers: list[str], inputs: tuple[TensorFile, TensorFile, int]
) -> dict[str, torch.Tensor]:
    """Return where each weight would have to rise for a smaller error: the sign of the gradient over some batches, bool."""
    reference_file, working_file, images = inputs
    weights = {f"{layer}.weight": cast(torch.Tensor, working.get_submodule(layer).weight).detach() for layer in layers}
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        for start in range(0, min(images, FEWEST_STEPS * BATCH), BATCH):
            stop = min(start + BATCH, images)
            target = unit.branch(reference, reference_file.read(start, stop)).detach()
            output = _branch(unit, working, dict(leaves), working_file.read(start, stop))
            (output - target).square().sum().backward()  # type: ignore[no-untyped-call]
    return {layer: cast(torch.Tensor, leaves[f"{layer}.weight"].grad) < 0 for layer in layers}


def _weight(module: Network, layer: str) -> torch.Tensor:
    return cast(torch.Tensor, module.get_submodule(layer).weight).detach()


class _SoftRounding:
    """One layer's weights as (floor + soft) * scale with soft in 0..1, learnt."""

    def __init__(
        self, working: Network, layer: str, qparams: QParams, up: torch.Tensor, mask: torch.Tensor | None
    ) -> None:
        self.layer, self.qparams = layer, qparams
        # Zeros of a 2:4 sparse layer stay where they are: their steps are zero.
        self.module = working.get_submodule(layer)
        weight = cast(torch.Tensor, self.module.weight).detach()
        self.scale = qparams.broadcast(qparams.scale, weight)
        codes = (weight / self.scale).round()
        if mask is not None:
            self.scale = self.scale * mask
        # Of the two codes beside the one at hand, the one in the direction of a smaller error is offered.
        self.floor = torch.where(up, codes, codes - 1)
        start = torch.where(up, torch.full_like(codes, START), torch.full_like(codes, 1 - START))
        low, high = STRETCH
        self.logit = torch.nn.Parameter(torch.logit((start - low) / (high - low)))
        self.bias = torch.nn.Parameter(cast(torch.Tensor, self.module.bias).detach().clone())

    def soft(self) -> torch.Tensor:
        low, high = STRETCH
        return (self.logit.sigmoid() * (high - low) + low).clamp(0, 1)

    def tensors(self) -> dict[str, torch.Tensor]:
        codes = (self.floor + self.soft()).clamp(self.qparams.quant_min, self.qparams.quant_max)
        return {f"{self.layer}.weight": codes * self.scale, f"{self.layer}.bias": self.bias}

    @torch.no_grad()
    def harden(self) -> None:
        codes = (self.floor + (self.soft() >= 0.5)).clamp(self.qparams.quant_min, self.qparams.quant_max)
        cast(torch.Tensor, self.module.weight).data.copy_(codes * self.scale)
        cast(torch.Tensor, self.module.bias).data.copy_(self.bias)


class _Branch(torch.nn.Module):
    """A unit of a network as a module whose forward is the unit's branch."""

    def __init__(self, unit: Unit, network: Network) -> None:
        super().__init__()
        self.network = network
        self.unit = unit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit.branch(self.network, x)


def _branch(unit: Unit, network: Network, replaced: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Run a unit with some of the network's parameters replaced; rounding of activations passes gradients straight through."""
    tensors = {f"network.{name}": value for name, value in replaced.items()}
    return torch.func.functional_call(_Branch(unit, network), tensors, (x,))
