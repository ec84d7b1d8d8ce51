"""What is quantised and how: the data that travels from calibration to the PT2E quantizer, to simulation and to the report."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class QParams:
    """Uniform quantization x ~ (q - zero_point) * scale with quant_min <= q <= quant_max.

    scale, zero_point: shape () per tensor, or (C,) per channel along `axis`; float32 and int32.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    quant_min: int
    quant_max: int
    axis: int | None = None

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
        scale, zero_point = self.scale, self.zero_point
        if self.axis is not None:
            shape = [1] * x.dim()
            shape[self.axis] = -1
            scale, zero_point = scale.view(shape), zero_point.view(shape)
        q = (x / scale).round().add(zero_point).clamp(self.quant_min, self.quant_max)
        return (q - zero_point) * scale


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
        """10 log10(signal power / quantization error) on held-out calibration images."""
        return float(10 * torch.log10(torch.tensor(max(self.signal, 1e-30) / max(self.mse, 1e-30))))


@dataclass(frozen=True)
class QuantPlan:
    """Everything the quantizer needs: a grid for each quantised activation and weight, by name.

    weights: by layer name, "stages.2.4.pwconv2", per output channel (axis 0). A layer that is absent stays float.
    """

    activations: dict[str, ActivationPlan]
    weights: dict[str, QParams]
