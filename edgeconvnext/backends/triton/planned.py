"""A quantised network as the kernels take it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.quantization.plan import QuantPlan

if TYPE_CHECKING:
    from edgeconvnext.targets import Target


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


def planned_network(
    path: Path,
    name: str,
    target: Target,
    model: LoadedModel,
    plan_file: Path,
) -> PlannedNetwork:
    """Read the plan of a run's folded network, for the kernels. path: of the run; name: of model and target, for reports.

    Raises QuantizationError for a network that is no ConvNeXt, one that ends without a head, or one that takes raw pixels.
    """
    from edgeconvnext.quantization.plan_storage import load_plan
    from edgeconvnext.rewrite.residual_streams import scale_streams

    if target.input.value_range != "normalized":
        raise QuantizationError(
            f"{path} is a run for {target.name}, whose network takes raw pixels; the Triton kernels take normalised images. "
            f"Make a run for an NVIDIA GPU from it: edgeconvnext export --target rtx --from {path}."
        )
    plan, network = load_plan(plan_file, model.module)
    if not network.inverted_bottlenecks:
        raise QuantizationError(
            f"{path} is a run of a {type(network).__name__}; the Triton kernels are those of ConvNeXt's blocks."
        )
    if network.config.ends_with != "head":
        raise QuantizationError(
            f"{path} is a run of a network without a head; the Triton kernels give logits. Make a run without --head."
        )
    float_type = torch.float16 if target.float_type == "float16" else torch.float32
    folded = scale_streams(cast(ConvNeXt, model.module), plan.stream_exponents)
    network = cast(ConvNeXt, network)
    return PlannedNetwork(name, folded, network, plan, float_type, model.preprocess.input_size)
