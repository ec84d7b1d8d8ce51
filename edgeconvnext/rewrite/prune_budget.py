"""Budgets of pruning: what a hidden channel costs in multiply-adds, bytes or measured time, and one allocation over all blocks."""

from __future__ import annotations

import math

import numpy as np

from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.macs import layer_macs
from edgeconvnext.rewrite.float_timer import FloatTimer
from edgeconvnext.rewrite.prune_costs import Budget, Costs
from edgeconvnext.rewrite.prune_segments import hidden_widths

SMALLEST_KL = 1e-9
"""Nats; losses below it are rounding."""


def costs_of(
    reference: ConvNeXt,
    budget: Budget,
    input_size: tuple[int, int],
    multiple: int,
    timer: FloatTimer | None = None,
) -> Costs:
    """Return the costs of a network. input_size: (height, width). multiple: widths in question, for the latency table.

    timer: measures that table; a latency budget cannot be met without one, and raises RewriteError.
    """
    widths = hidden_widths(reference.config)
    if budget.kind == "latency":
        from edgeconvnext.rewrite.prune_latency import latency_costs

        if timer is None:
            raise RewriteError("A latency budget needs a runtime on this machine to time blocks in.")
        return latency_costs(reference, input_size, multiple, timer)
    macs = layer_macs(reference, input_size)
    if budget.kind == "size":
        # One byte for each weight of a conv or linear; biases and scales, some per cent more, are left out.
        macs = {name: reference.get_parameter(f"{name}.weight").numel() for name in weighted_layers(reference)}
    linears = {path: macs[f"{path}.pwconv1"] + macs[f"{path}.pwconv2"] for path in widths}
    return Costs(
        budget.kind,
        float(sum(macs.values())),
        {path: {0: 0.0, width: float(linears[path])} for path, width in widths.items()},
        {path: float(macs[f"{path}.dwconv"]) for path in widths},
    )


def allocate(points: dict[str, dict[int, float]], costs: Costs, budget: Budget, multiple: int) -> dict[str, int]:
    """Return the width of each block: the least sum of measured losses within the budget, as far as a greedy search finds it.

    points: for each block the loss at some widths, the full one among them. Losses of different blocks are added up, which the
    curvature of the KL justifies while they are small.

    From the full widths, each step narrows one block, by as many multiples as make the loss per cost saved least (so that flat
    starts of a curve do not hide what lies behind them); the last step goes no further than the budget asks. What is left over
    afterwards widens blocks again, the best gain per cost first.
    """
    tables = {path: _Table(path, losses, costs, multiple) for path, losses in points.items()}
    limit = costs.limit(budget)
    spent = costs.of({path: table.width for path, table in tables.items()})
    while spent > limit:
        open_tables = [table for table in tables.values() if table.at > 0]
        if not open_tables:
            break
        table = min(open_tables, key=lambda each: each.narrowing()[0])
        spent -= table.narrow(table.narrowing()[1], spent - limit)
    while True:
        steps = [(table.gain(), table) for table in tables.values() if table.widening_cost() <= limit - spent]
        steps = [step for step in steps if step[0] > 0]
        if not steps:
            return {path: table.width for path, table in tables.items()}
        _, table = max(steps, key=lambda step: step[0])
        spent += table.widening_cost()
        table.at += 1


def interpolated(points: dict[int, float], width: int) -> float:
    """Return the loss at a width between measured ones, straight in the logarithms of both.

    A narrower block is never taken for the better one: a loss smaller than one at a greater width counts as that.
    """
    measured = np.array(sorted(points))
    losses = np.array([max(points[int(each)], SMALLEST_KL) for each in measured])
    losses = np.maximum.accumulate(losses[::-1])[::-1]
    return float(np.exp(np.interp(np.log(width), np.log(measured), np.log(losses))))


class _Table:
    """Losses and costs of one block at all widths it may have; `at` is the one it has."""

    def __init__(self, path: str, points: dict[int, float], costs: Costs, multiple: int) -> None:
        full = max(points)
        self.widths = np.unique(np.append(np.arange(multiple, full + 1, multiple), full))
        self.losses = np.array([interpolated(points, int(width)) for width in self.widths])
        self.costs = costs.block(path, self.widths)
        self.at = len(self.widths) - 1
        self._best: tuple[int, tuple[float, int]] | None = None

    @property
    def width(self) -> int:
        return int(self.widths[self.at])

    def narrowing(self) -> tuple[float, int]:
        """Return the least loss per cost saved over all narrower widths, and which it is."""
        if self._best is None or self._best[0] != self.at:
            saved = np.maximum(self.costs[self.at] - self.costs[: self.at], 1e-30)
            rates = (self.losses[: self.at] - self.losses[self.at]) / saved
            best = int(rates.argmin())
            self._best = (self.at, (float(rates[best]), best))
        return self._best[1]

    def narrow(self, to: int, needed: float) -> float:
        """Go to index `to`, or to the widest that saves `needed`; return what was saved."""
        enough = np.flatnonzero(self.costs[self.at] - self.costs[: self.at] >= needed)
        target = max(to, int(enough[-1])) if len(enough) else to
        saved = float(self.costs[self.at] - self.costs[target])
        self.at = target
        return saved

    def widening_cost(self) -> float:
        return float(self.costs[self.at + 1] - self.costs[self.at]) if self.at + 1 < len(self.widths) else math.inf

    def gain(self) -> float:
        """Loss that one step wider takes back, per cost."""
        return float(self.losses[self.at] - self.losses[self.at + 1]) / max(self.widening_cost(), 1e-30)
