"""What blocks of different widths take in onnxruntime on this machine: the table behind a latency budget."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from edgeconvnext.model.convnext import Block, ConvNeXt
from edgeconvnext.progress import progress_bar
from edgeconvnext.rewrite.prune_budget import Costs

if TYPE_CHECKING:
    import onnxruntime

SHARES = (0.25, 0.5, 0.75, 1.0)
OPSET = 20
SECONDS = 0.5
"""Measured time of each graph, at least, in turns with all others."""


def latency_costs(reference: ConvNeXt, input_size: tuple[int, int], multiple: int, threads: int = 1) -> Costs:
    """Measure the float network and, for each stage, one block at several widths, batch 1; return medians in milliseconds.

    Blocks of a stage have the same shapes and share their times. What the network takes beyond its blocks is the fixed part;
    where they alone take longer than the network, whose graph is optimised as a whole, their times are scaled down to it.
    """
    config = reference.config
    graphs: dict[tuple[int, int], bytes] = {}
    pictures: dict[tuple[int, int], np.ndarray] = {}
    images = _ramp(config.in_channels, *input_size)
    stem = config.stem_stride
    stages = range(len(config.depths))
    measured = {stage: _widths(max(config.hidden_widths[stage]), multiple) for stage in stages}
    with progress_bar("Writing graphs of blocks", sum(map(len, measured.values()))) as advance:
        for stage, widths in measured.items():
            sides = tuple(side // (stem * 2**stage) for side in input_size)
            x = _ramp(config.dims[stage], *sides)
            for width in widths:
                graphs[stage, width] = _graph(_resized(reference, stage, width), x)
                pictures[stage, width] = x
                advance(1)
    network = (-1, 0)
    graphs[network], pictures[network] = _graph(reference, images), images
    times = _medians_ms(graphs, pictures, threads)
    total = times[network]
    tables = {
        stage: dict(zip(widths, np.maximum.accumulate([times[stage, width] for width in widths]).tolist(), strict=True))
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


def measured_latency(networks: dict[str, ConvNeXt], input_size: tuple[int, int], threads: int = 1) -> dict[str, float]:
    """Return the median time of each network in milliseconds, batch 1, measured in turns."""
    names = {(index, 0): name for index, name in enumerate(networks)}
    pictures = {key: _ramp(networks[name].config.in_channels, *input_size) for key, name in names.items()}
    times = _medians_ms({key: _graph(networks[name], pictures[key]) for key, name in names.items()}, pictures, threads)
    return {name: times[key] for key, name in names.items()}


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


def _ramp(channels: int, height: int, width: int) -> np.ndarray:
    ramp = np.linspace(-2, 2, height * width, dtype=np.float32).reshape(1, 1, height, width)
    return np.ascontiguousarray(np.repeat(ramp, channels, axis=1))


def _graph(module: nn.Module, x: np.ndarray) -> bytes:
    import onnx_ir as ir

    from edgeconvnext.export.onnx import build_onnx
    from edgeconvnext.targets import LayoutSection

    program = torch.export.export(module, (torch.from_numpy(x),))
    return ir.to_proto(build_onnx(program, opset=OPSET, layout=LayoutSection())).SerializeToString()


def _medians_ms(
    graphs: dict[tuple[int, int], bytes], inputs: dict[tuple[int, int], np.ndarray], threads: int
) -> dict[tuple[int, int], float]:
    import onnxruntime

    from edgeconvnext.validate.interleaved import time_interleaved

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    calls = {
        str(key): _call(onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]), inputs[key])
        for key, graph in graphs.items()
    }
    samples = time_interleaved(calls, seconds=SECONDS, warm_up_s=0.05)
    return {key: float(np.median(samples[str(key)].times_ms)) for key in graphs}


def _call(session: onnxruntime.InferenceSession, x: np.ndarray) -> Callable[[], None]:
    name = session.get_inputs()[0].name

    def call() -> None:
        session.run(None, {name: x})

    return call
