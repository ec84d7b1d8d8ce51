"""One network on all cores of a processor: each core computes the gradients of its share of a batch.

Threads that share each operator wait for each other at its end, and its memory goes through both caches. A lane is one thread that
computes all operators for its share of the images, and waits once, at the end of the pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeconvnext.model.network import Network
from edgeconvnext.train.depthwise import fast_weight_gradients
from edgeconvnext.train.world import World

# Below this, operators have too little to do for what calling them costs.
_FEWEST_IMAGES = 16


def lanes_for(module: Network, images: int, world: World) -> int:
    """Return how many lanes compute a part of `images` images: one for each of torch's threads that gets enough of them.

    One for a network with BatchNorms, which see whole parts, for one of several processes, and on a GPU.
    """
    if world.size > 1 or world.device.type != "cpu" or any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        return 1
    return max(1, min(torch.get_num_threads(), images // _FEWEST_IMAGES))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let each operator compute with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Lanes(nn.Module):
    """The network `module`, which computes a batch in `count` shares side by side; for training alone.

    Each share has its own gradients, which are added in the order of the lanes: the same batch gives the same sums. Skipped
    blocks are drawn by a generator of each lane, seeded by torch's own in each batch.
    """

    def __init__(self, module: Network, count: int) -> None:
        super().__init__()
        self.module = module
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # Each lane has the blocks for itself, with their generators, and the weights in common.
        shared = {id(parameter): parameter for parameter in module.parameters()}
        self._lanes = [copy.deepcopy(module, dict(shared)).train() for _ in range(count)]
        each = max(1, torch.get_num_threads() // count)
        self._pool = ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(each,))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, classes). images: (N, C, H, W)."""
        for lane in self._lanes:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            for stage in range(len(lane.stages)):
                for block in lane.blocks(stage):
                    block.skip_generator = generator
        return _SideBySide.apply(images, self, *self._trained)

    def logits(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return each lane's logits, with their graphs."""
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

        def compute(lane: Network, share: torch.Tensor) -> torch.Tensor:
            # Autocast and recording are a thread's own. Casts are not cached: lanes share weights, not graphs.
            autocast = torch.autocast("cpu", precision, enabled=precision is not None, cache_enabled=False)
            with autocast, torch.enable_grad(), fast_weight_gradients(lane):
                return lane(share)

        return list(self._pool.map(compute, self._lanes, images.chunk(len(self._lanes))))

    def gradients(self, logits: Sequence[torch.Tensor], owed: torch.Tensor) -> list[torch.Tensor | None]:
        """Return the gradient of each parameter, summed over the lanes. owed: the gradient of the logits, (N, classes)."""

        def compute(answer: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            return torch.autograd.grad(answer, self._trained, share, allow_unused=True)

        shares = owed.split([len(answer) for answer in logits])
        first, *others = self._pool.map(compute, logits, shares)
        for other in others:
            # A parameter is used in all lanes or in none.
            pairs = [
                (one, more) for one, more in zip(first, other, strict=True) if one is not None and more is not None
            ]
            torch._foreach_add_([one for one, _ in pairs], [more for _, more in pairs])
        return list(first)


class _SideBySide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, lanes: Lanes, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.lanes, ctx.logits = lanes, lanes.logits(images)
        return torch.cat([answer.detach() for answer in ctx.logits])

    @staticmethod
    def backward(ctx: Any, owed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return None, None, *ctx.lanes.gradients(ctx.logits, owed)
