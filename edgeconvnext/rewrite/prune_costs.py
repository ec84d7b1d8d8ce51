"""What hidden channels cost, and the budget that pruning keeps to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeconvnext.errors import RewriteError

BudgetKind = Literal["macs", "size", "latency"]

_WHAT: dict[BudgetKind, str] = {"macs": "multiply-adds", "size": "weight bytes", "latency": "measured latency"}


@dataclass(frozen=True)
class Budget:
    """The share of multiply-adds, of bytes of the weights at 8 bits, or of measured latency to keep, above 0 and at most 1.

    Raises RewriteError for another share.
    """

    kind: BudgetKind
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RewriteError(
                f"The share of {_WHAT[self.kind]} to keep must lie above 0 and at most at 1; it is {self.share:g}. "
                f"For 70 % give --{self.kind} 0.7."
            )


@dataclass(frozen=True)
class Costs:
    """What a network costs, in the unit of its budget.

    total: unpruned. blocks: for each block the cost at several widths, ascending; between these it is linear. block_fixed: what
    else the block costs, its depthwise conv and norm: it goes only with the whole block.
    """

    kind: BudgetKind
    total: float
    blocks: dict[str, dict[int, float]]
    block_fixed: dict[str, float]

    @property
    def fixed(self) -> float:
        """What no pruning changes: stem, downsampling layers, head."""
        full = sum(max(table.values()) for table in self.blocks.values())
        return self.total - full - sum(self.block_fixed.values())

    def block(self, path: str, widths: np.ndarray) -> np.ndarray:
        """Return the cost of a block's linears at `widths`."""
        table = self.blocks[path]
        return np.interp(widths, list(table), np.maximum.accumulate(list(table.values())))

    def of(self, widths: dict[str, int]) -> float:
        """Return the cost of a network with these blocks and widths; blocks that are not named are gone."""
        blocks = sum(float(self.block(path, np.array([width]))[0]) for path, width in widths.items())
        return self.fixed + blocks + sum(self.block_fixed[path] for path in widths)

    def limit(self, budget: Budget) -> float:
        """Return the most that a network within the budget may cost: sums of costs are right but for their last digits."""
        return budget.share * self.total * (1 + 1e-12)

    def check(self, paths: list[str], budget: Budget, multiple: int) -> None:
        """Raise RewriteError where not even the narrowest blocks are within the budget."""
        lowest = self.of({path: min(multiple, max(self.blocks[path])) for path in paths})
        if lowest > self.limit(budget):
            # Rounded up, so that the share printed can be reached.
            reachable = math.ceil(1000 * lowest / self.total) / 1000
            stages = [path.split(".")[1] for path in paths]
            several = any(stages.count(stage) > 1 for stage in stages)
            blocks = ", take whole blocks out first (edgeconvnext prune --blocks)" if several else ""
            raise RewriteError(
                f"Pruning hidden channels cannot reach {budget.share:g} of the {_WHAT[self.kind]}: with {multiple} channels "
                f"left in every block, {reachable:.3f} remain (stem, depthwise and downsampling convs and head are not "
                f"pruned). Ask for {reachable:.3f} or more{blocks}, or start from a smaller network."
            )
