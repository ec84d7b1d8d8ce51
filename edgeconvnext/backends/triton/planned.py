"""A quantised network as the kernels take it, out of a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.quantization.plan import QuantPlan


@dataclass(frozen=True)
class PlannedNetwork:
    """A plan and its networks.

    folded: the float network the plan is of. network: the same with its affines in place and weights on their grids, as
    `load_plan` returns it. float_type: of what lies in memory between blocks. input_size: (height, width).
    """

    name: str
    folded: ConvNeXt
    network: ConvNeXt
    plan: QuantPlan
    float_type: torch.dtype
    input_size: tuple[int, int]


def load_planned_run(path: Path) -> PlannedNetwork:
    """Read the network and plan of a finished run.

    Raises RunDirectoryError for a folder that is no finished run, QuantizationError for a network that is no ConvNeXt, one that
    ends without a head, or one that takes raw pixels.
    """
    from edgeconvnext.model.load import load_model
    from edgeconvnext.pipeline.stages.network import FOLDED
    from edgeconvnext.pipeline.stages.quantization import PLAN
    from edgeconvnext.pipeline.stored_config import stored_config
    from edgeconvnext.quantization.plan_storage import load_plan
    from edgeconvnext.run.manifest import load_run

    run = load_run(path)
    config = stored_config(run)
    target, name = config.target.definition, config.target.name
    if target.input.value_range != "normalized":
        raise QuantizationError(
            f"{path} is a run for {name}, whose network takes raw pixels; the Triton kernels take normalised images. "
            f"Make a run for an NVIDIA GPU from it: edgeconvnext export --target rtx --from {path}."
        )
    model = load_model(path / FOLDED)
    plan, network = load_plan(path / PLAN, model.module)
    if not isinstance(model.module, ConvNeXt) or not isinstance(network, ConvNeXt):
        raise QuantizationError(
            f"{path} is a run of a {type(network).__name__}; the Triton kernels are those of ConvNeXt's blocks."
        )
    if network.config.ends_with != "head":
        raise QuantizationError(
            f"{path} is a run of a network without a head; the Triton kernels give logits. Make a run without --head."
        )
    float_type = torch.float16 if target.float_type == "float16" else torch.float32
    return PlannedNetwork(
        f"{config.model.name} for {name}", model.module, network, plan, float_type, model.preprocess.input_size
    )
