"""What is quantised and how: the data that travels from calibration to the PT2E quantizer, to simulation and to the report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from edgeconvnext.rewrite.channel_scaling import ChannelScaling
from edgeconvnext.sqnr import power_ratio_db


@dataclass(frozen=True)
class QParams:
    """Uniform quantization x ~ (q - zero_point) * scale with quant_min <= q <= quant_max.

    scale, zero_point: shape () per tensor, (C,) per channel along `axis`, or (out, blocks) for a weight (out, in) with one scale
    for each in / blocks of its input channels; float32 and int32.
    levels: the codes that a palettised weight may take, ascending, (2^bits,) float32; None: every whole number of the range.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    quant_min: int
    quant_max: int
    axis: int | None = None
    levels: torch.Tensor | None = None

    @property
    def signed(self) -> bool:
        return self.quant_min < 0

    def range(self) -> tuple[float, float]:
        """Lowest and highest value the grid holds (per tensor)."""
        low = (self.quant_min - self.zero_point) * self.scale
        high = (self.quant_max - self.zero_point) * self.scale
        return float(low.min()), float(high.max())

    def fake_quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Round `x` to the grid and back."""
        scale, zero_point = self.broadcast(self.scale, x), self.broadcast(self.zero_point, x)
        q = self.nearest_code(x / scale, zero_point)
        return (q - zero_point) * scale

    def nearest_code(self, steps: torch.Tensor, zero_point: torch.Tensor | None = None) -> torch.Tensor:
        """Return the code nearest to each value, which is given in steps of the grid. zero_point: None where it is 0."""
        if self.levels is not None:
            levels = self.levels.to(steps.dtype)
            return levels[torch.bucketize(steps, (levels[1:] + levels[:-1]) / 2)]
        codes = steps.round() if zero_point is None else steps.round() + zero_point
        return codes.clamp_(self.quant_min, self.quant_max)

    def broadcast(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return scales or zero points in a shape that multiplies a tensor like `x`."""
        if self.axis is None:
            return values
        if values.dim() == 2:
            return values.repeat_interleave(x.shape[1] // values.shape[1], dim=1)
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return values.view(shape)

    @property
    def bits(self) -> int:
        """Bits of a code: 4, 8 or 16; a range of 7 bits in a byte is 8. Of a palettised weight: bits of an index."""
        if self.levels is not None:
            return (len(self.levels) - 1).bit_length()
        codes = self.quant_max - self.quant_min + 1
        return 4 if codes <= 16 else 8 if codes <= 256 else 16

    @property
    def has_eight_bit_form(self) -> bool:
        """Whether the same layer could have 8-bit weights instead: it has 4 bits, and no palette."""
        return self.bits == 4 and self.levels is None

    @property
    def blocked(self) -> bool:
        """Whether each row of the weight has several scales."""
        return self.scale.dim() == 2


@dataclass(frozen=True)
class ActivationPlan:
    """The chosen grid of one activation tensor.

    name: the layer and its side, "stages.2.4.pwconv2:input" or "stages.2.4.dwconv:output".
    estimator: range estimator that gave the grid; mse: its mean squared quantization error on held-out calibration images.
    candidates: the same error for every estimator tried.
    """

    name: str
    qparams: QParams
    estimator: str
    mse: float
    signal: float
    candidates: dict[str, float] = field(default_factory=dict)

    @property
    def sqnr_db(self) -> float:
        """Of the tensor on held-out calibration images."""
        return power_ratio_db(self.signal, self.mse)


@dataclass(frozen=True)
class LayerDecision:
    """What won for one layer, and against what.

    scaling: in front of its quantizer. rounding: of its weights. block_sqnr_db: SQNR of its block's output on held-out images
    with what won; plain_sqnr_db: with no smoothing, nearest codes and the old bias. candidates: the same for all that competed.
    """

    scaling: ChannelScaling
    rounding: str
    block_sqnr_db: float
    plain_sqnr_db: float
    candidates: dict[str, float] = field(default_factory=dict)

    def refined(self, method: str, block_sqnr_db: float) -> LayerDecision:
        """Return the decision with its codes moved by a further method."""
        return replace(self, rounding=f"{self.rounding}, {method}", block_sqnr_db=block_sqnr_db)


@dataclass(frozen=True)
class QuantPlan:
    """Everything the quantizer needs: a grid for each quantised activation and weight, by name.

    weights: by layer name, "stages.2.4.pwconv2", per output channel (axis 0). A layer that is absent stays float.
    decisions: by layer name, where the layers were reconstructed.
    stream_exponents: by stage, of the residual streams that were scaled before planning; () scales none.
    """

    activations: dict[str, ActivationPlan]
    weights: dict[str, QParams]
    decisions: dict[str, LayerDecision] = field(default_factory=dict)
    stream_exponents: tuple[int, ...] = ()
