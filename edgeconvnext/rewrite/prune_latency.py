"""What blocks of different widths take in a runtime of this machine: the table behind a latency budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from torch import nn

from edgeconvnext.model.convnext.network import Block, ConvNeXt
from edgeconvnext.progress import progress_bar
from edgeconvnext.rewrite.float_timer import FloatTimer
from edgeconvnext.rewrite.prune_costs import Costs

SHARES = (0.25, 0.5, 0.75, 1.0)
NETWORK = "network"
SECONDS = 0.5
"""Measured time of each graph, at least, in turns with all others."""


def latency_costs(
    reference: ConvNeXt,
    input_size: tuple[int, int],
    multiple: int,
    timer: FloatTimer,
    threads: int = 1,
) -> Costs:
    """Measure the float network and, for each stage, one block at several widths, batch 1; return medians in milliseconds.

    Blocks of a stage have the same shapes and share their times. What the network takes beyond its blocks is the fixed part;
    where they alone take longer than the network, whose graph is optimised as a whole, their times are scaled down to it.
    """
    config = reference.config
    stages = range(len(config.depths))
    measured = {stage: _widths(max(config.hidden_widths[stage]), multiple) for stage in stages}

    def graphs(advance: Callable[[int], None]) -> Iterator[tuple[str, bytes]]:
        for stage, widths in measured.items():
            height, width = (side // (config.stem_stride * 2**stage) for side in input_size)
            for hidden in widths:
                block = _resized(reference, stage, hidden)
                yield f"{stage} {hidden}", timer.float_graph(block, (config.dims[stage], height, width))
                advance(1)
        yield NETWORK, timer.float_graph(reference, (config.in_channels, *input_size))

    with progress_bar("Timing blocks of several widths", sum(map(len, measured.values()))) as advance:
        times = timer.medians_ms(graphs(advance), threads=threads, seconds=SECONDS, warm_up_s=0.05)
    total = times[NETWORK]
    tables = {
        stage: dict(
            zip(widths, np.maximum.accumulate([times[f"{stage} {width}"] for width in widths]).tolist(), strict=True)
        )
        for stage, widths in measured.items()
    }
    blocks = {
        f"stages.{stage}.{index}": _up_to(tables[stage], width)
        for stage in stages
        for index, width in enumerate(config.hidden_widths[stage])
    }
    alone = sum(max(table.values()) for table in blocks.values())
    scale = min(1.0, total / alone)
    blocks = {path: {width: scale * ms for width, ms in table.items()} for path, table in blocks.items()}
    return Costs("latency", total, blocks, dict.fromkeys(blocks, 0.0))


def _widths(full: int, multiple: int) -> list[int]:
    rounded = {max(multiple, round(full * share / multiple) * multiple) for share in SHARES}
    return sorted({min(full, width) for width in {multiple, *rounded}} | {full})


def _up_to(table: dict[int, float], width: int) -> dict[int, float]:
    """Return the part of a stage's table that a block of this width needs, its own width included."""
    own = float(np.interp(width, list(table), list(table.values())))
    return {each: ms for each, ms in table.items() if each < width} | {width: own}


def _resized(reference: ConvNeXt, stage: int, width: int) -> Block:
    """Return a block of the stage with another hidden width; its linears' weights do not matter for time."""
    block = copy.deepcopy(cast(Block, reference.get_submodule(f"stages.{stage}.0")))
    block.pwconv1 = nn.Linear(block.pwconv1.in_features, width)
    block.pwconv2 = nn.Linear(width, block.pwconv2.out_features)
    if block.grn is not None:
        block.grn = type(block.grn)(width)
    return block.eval()
