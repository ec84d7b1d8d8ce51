"""Small ConvNeXts, quantised with torchao PT2E the way a target asks, for the export tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from edgeconvnext.model.convnext import ConvNeXt, ConvNeXtConfig

Kind = Literal["float", "symmetric", "affine"]


@dataclass(frozen=True)
class WeightedInputs(Quantizer):
    """Quantise input and weight of every conv and linear; symmetric int8 or affine uint8 activations."""

    kind: Kind

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        affine = self.kind == "affine"
        activation = QuantizationSpec(
            dtype=torch.uint8 if affine else torch.int8,
            observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12),
            quant_min=0 if affine else -128,
            quant_max=255 if affine else 127,
            qscheme=torch.per_tensor_affine if affine else torch.per_tensor_symmetric,
        )
        weight = QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
            quant_min=-64 if affine else -127,
            quant_max=64 if affine else 127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )
        for node in model.graph.nodes:
            if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map={node.args[0]: activation, node.args[1]: weight}, _annotated=True
                )
        return model

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Nothing to refuse: every annotation above is supported."""


def small_convnext(version: Literal[1, 2] = 1, stem: str = "patch", head_norm: str = "after_pool") -> ConvNeXt:
    """A two-stage ConvNeXt with weights far from their initial zeros and ones."""
    torch.manual_seed(version)
    config = ConvNeXtConfig(
        depths=(1, 2),
        dims=(16, 32),
        num_classes=7,
        version=version,
        stem=stem,  # type: ignore[arg-type]
        head_norm=head_norm,  # type: ignore[arg-type]
        layer_scale=False,
    )
    module = ConvNeXt(config).eval()
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=1.5 * fan_in**-0.5)
        elif "norm" in name or "downsample" in name:
            nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
        else:
            nn.init.normal_(parameter, std=0.2)
    return module


def images(count: int, seed: int = 0, side: int = 32) -> torch.Tensor:
    """Smooth random pictures, (count, 3, side, side), about mean 0 and variance 1."""
    coarse = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")


def export_program(module: nn.Module, side: int = 32) -> ExportedProgram:
    """Export with a dynamic batch axis, input "image"."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.inner(image)

    return torch.export.export(
        Named(), (images(2, side=side),), dynamic_shapes={"image": {0: Dim("batch", min=1, max=64)}}, strict=False
    )


@cache
def quantized_program(
    kind: Kind = "symmetric",
    version: Literal[1, 2] = 1,
    stem: str = "patch",
    head_norm: str = "after_pool",
) -> ExportedProgram:
    """Return the exported small ConvNeXt, float or calibrated on 64 pictures and converted to Q/DQ."""
    program = export_program(small_convnext(version, stem, head_norm))
    if kind == "float":
        return program
    prepared = prepare_pt2e(program.module(), WeightedInputs(kind))
    with torch.no_grad():
        prepared(images(64, seed=1))
    return export_program(convert_pt2e(prepared))
