"""A block as three kernels: depthwise conv and LayerNorm, pwconv1 and GELU, pwconv2 and the residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from edgeconvnext.backends.triton.depthwise import depthwise_norm
from edgeconvnext.backends.triton.grids import (
    DepthwiseWeights,
    Int8Grid,
    LinearWeights,
    depthwise_weights,
    linear_weights,
    planned_grid,
)
from edgeconvnext.backends.triton.linear import int8_linear
from edgeconvnext.backends.triton.norms import Norm
from edgeconvnext.backends.triton.quantize import quantize
from edgeconvnext.backends.triton.stream import Codes, Stream
from edgeconvnext.model.convnext.network import Block, ConvNeXt
from edgeconvnext.quantization.plan import QuantPlan


@dataclass(frozen=True)
class BlockUnit:
    """A block of a ConvNeXt. hidden_grid: of pwconv1's input; wide_grid: of pwconv2's; grid: of the next block's input."""

    path: str
    depthwise: DepthwiseWeights
    norm: Norm
    hidden_grid: Int8Grid
    up: LinearWeights
    grn: nn.Module | None
    wide_grid: Int8Grid
    down: LinearWeights
    float_type: torch.dtype
    grid: Int8Grid | None

    def __call__(self, x: Stream, seen: Codes | None) -> Stream:
        is_int8 = self.depthwise.taps.dtype == torch.int8
        source = x.codes if is_int8 else x.floats
        assert source is not None
        hidden = depthwise_norm(source, self.depthwise, self.norm, self.hidden_grid)
        if self.grn is None:
            _, wide = int8_linear(hidden, self.up, activate=True, grid=self.wide_grid)
        else:  # its mean over all positions stands between GELU and the codes
            floats, _ = int8_linear(hidden, self.up, activate=True, float_type=torch.float32)
            wide = quantize(self.grn(floats), self.wide_grid, channel_axis=3)
        assert wide is not None
        floats, codes = int8_linear(wide, self.down, residual=x.floats, float_type=self.float_type, grid=self.grid)
        assert floats is not None
        if seen is not None:
            seen |= {f"{self.path}.pwconv1": hidden, f"{self.path}.pwconv2": wide}
            if is_int8:
                seen[f"{self.path}.dwconv"] = source.permute(0, 3, 1, 2)
        return Stream(floats, codes)


def is_int8_block(network: ConvNeXt, plan: QuantPlan, path: str) -> bool:
    """Return whether the kernels can compute a block as planned: linears in int8, the depthwise conv in int8 or float."""
    block = network.get_submodule(path)
    linears = all(planned_grid(network, plan, f"{path}.{name}") is not None for name in ("pwconv1", "pwconv2"))
    depthwise = f"{path}.dwconv"
    is_float = not any(f"{depthwise}:{side}" in plan.activations for side in ("input", "output"))
    return linears and block.gamma is None and (is_float or planned_grid(network, plan, depthwise) is not None)


def block_unit(
    network: ConvNeXt, plan: QuantPlan, path: str, float_type: torch.dtype, device: torch.device, grid: Int8Grid | None
) -> BlockUnit:
    """Build a block for which `is_int8_block` holds. grid: of the next block's input, where that reads codes."""
    block = cast(Block, network.get_submodule(path))
    hidden_grid, wide_grid = (planned_grid(network, plan, f"{path}.{name}") for name in ("pwconv1", "pwconv2"))
    assert hidden_grid is not None and wide_grid is not None
    depthwise = depthwise_weights(network, plan, f"{path}.dwconv", planned_grid(network, plan, f"{path}.dwconv"))
    return BlockUnit(
        path,
        depthwise.to(device),
        Norm.of(block.norm, block.pwconv1.in_features).to(device),
        hidden_grid.to(device),
        linear_weights(network, plan, f"{path}.pwconv1", hidden_grid).to(device),
        None if block.grn is None else block.grn.to(device),
        wide_grid.to(device),
        linear_weights(network, plan, f"{path}.pwconv2", wide_grid).to(device),
        float_type,
        grid,
    )
