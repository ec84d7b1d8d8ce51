"""The running average of a network's weights (EMA), which generalises better than the weights themselves."""

from __future__ import annotations

import copy
from typing import cast

import torch

from edgeconvnext.model.network import Network


class WeightAverage:
    """A copy of a network whose weights follow the original's: average = decay * average + (1 - decay) * weights.

    Over the first steps the decay is smaller, (1 + n) / (10 + n): otherwise the average would stay near the random start for
    1 / (1 - decay) steps. Statistics of BatchNorms are averaged as well.
    """

    def __init__(self, module: Network, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: Network, steps: int) -> None:
        """Follow `module` after `steps` steps of training."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        averages, values = list(self.module.state_dict().values()), list(module.state_dict().values())
        floating = [index for index, value in enumerate(values) if value.is_floating_point()]
        torch._foreach_lerp_([averages[i] for i in floating], [values[i] for i in floating], 1 - decay)
        for average, value in zip(averages, values, strict=True):
            if not value.is_floating_point():  # counts of batches
                cast(torch.Tensor, average).copy_(value)
