"""A planned ConvNeXt that runs as int8 kernels wherever its plan says int8; what the kernels do not know runs in torch."""

from __future__ import annotations

import copy
from typing import cast

import torch

from edgeconvnext.backends.triton.block import block_unit, is_int8_block
from edgeconvnext.backends.triton.grids import Int8Grid, planned_grid
from edgeconvnext.backends.triton.stem_and_head import downsample_unit, head_unit, stem_unit
from edgeconvnext.backends.triton.stream import Codes, Stream, TorchUnit, Unit, exact_convs
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.input_size import check_input_size
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.quantization.biases import round_biases
from edgeconvnext.quantization.fake import quantize_activations
from edgeconvnext.quantization.plan import QuantPlan


class TritonNetwork:
    """Logits (N, num_classes), float32, from normalised images (N, in_channels, H, W).

    network, plan: as `load_plan` returns them: the folded network with its affines in place and its weights on their grids.
    float_type: of what lies in memory between the blocks. Inside the kernels everything is float32 and int32.
    units: what stem, downsamplings and blocks became, by path, in forward order. int8_layers: those that multiply integers.
    """

    def __init__(self, network: ConvNeXt, plan: QuantPlan, float_type: torch.dtype, device: torch.device) -> None:
        self.config = network.config
        self.float_type = float_type
        self.device = device
        self._plan = plan
        self._network = copy.deepcopy(network).eval()
        round_biases(self._network, plan)
        self._in_torch = copy.deepcopy(self._network).to(device)
        quantize_activations(self._in_torch, plan)
        self.units: dict[str, Unit] = {}
        for stage in range(len(network.config.depths)):
            self.units |= self._stage_units(stage)
        self._head = head_unit(self._network, plan, device)
        self.int8_layers = tuple(layer for layer in weighted_layers(network) if self._is_int8(layer))

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, seen: Codes | None = None) -> torch.Tensor:
        """seen: where to note the codes that each int8 layer reads; None to note nothing."""
        check_input_size(self.config, (images.shape[2], images.shape[3]))
        x = Stream(images.permute(0, 2, 3, 1).contiguous(), None)
        for unit in self.units.values():
            x = unit(x, seen)
        return self.classify(x, seen)

    def classify(self, x: Stream, seen: Codes | None) -> torch.Tensor:
        """Return the logits for the last stage's output."""
        if self._head is not None:
            return self._head(x, seen)
        with exact_convs():
            return cast(torch.Tensor, self._in_torch.forward_head(x.floats.float().permute(0, 3, 1, 2)))

    def _stage_units(self, stage: int) -> dict[str, Unit]:
        """Return what leads into a stage, and its blocks, by path."""
        paths = [f"stages.{stage}.{block}" for block in range(self.config.depths[stage])]
        # What a unit rounds its output to is the input of the block behind it. The last block's output goes into a norm.
        entry_grid, *grids = [*(self._block_input(path) for path in paths), None]
        planned = (self._network, self._plan)
        entry: Unit | None
        if stage == 0:
            entry = stem_unit(*planned, self.float_type, self.device, entry_grid)
        else:
            entry = downsample_unit(*planned, stage, self.float_type, self.device, entry_grid)
        entry_path = f"downsample_layers.{stage}"
        units: dict[str, Unit] = {entry_path: entry or self._torch_unit(entry_path, entry_grid)}
        for path, grid in zip(paths, grids, strict=True):
            if is_int8_block(*planned, path):
                units[path] = block_unit(*planned, path, self.float_type, self.device, grid)
            else:
                units[path] = self._torch_unit(path, grid)
        return units

    def _block_input(self, path: str) -> Int8Grid | None:
        """Return the grid of the codes that a block's kernel reads; None where it reads floats."""
        if not is_int8_block(self._network, self._plan, path):
            return None
        grid = planned_grid(self._network, self._plan, f"{path}.dwconv")
        return None if grid is None else grid.to(self.device)

    def _torch_unit(self, path: str, grid: Int8Grid | None) -> TorchUnit:
        return TorchUnit(self._in_torch.get_submodule(path), self.float_type, grid)

    def _is_int8(self, layer: str) -> bool:
        owner = layer.rpartition(".")[0]
        if layer == "head":
            return self._head is not None
        if owner.startswith("downsample_layers.0") and self.config.stem != "patch":
            return False
        if owner.startswith("stages.") and not is_int8_block(self._network, self._plan, owner):
            return False
        return planned_grid(self._network, self._plan, layer) is not None
