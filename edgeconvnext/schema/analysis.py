"""Records of an analysis: figures by layer, and the suspicions drawn from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgeconvnext.choices import Calibrator, Effort, Operator, Smoothing
from edgeconvnext.schema.report import Decibel, FileName, Record


class TensorAnalysis(Record):
    """One quantised activation. Shares are 0..1; ranges are in the tensor's units, behind the layer's smoothing.

    low, high: ends of the grid. fit_low, fit_high: extremes of the values that ranges were fitted on; observed_low,
    observed_high: of the held-out ones. range_used: share of the grid between the extremes of all values. rare_range: share
    of it that the rarest 0.1 % of values take for themselves. saturated: share of held-out values more than half a step outside of
    the grid; nearer ones lose no more than by rounding. unused_codes: share of the codes that no value uses. beyond_fit: how far
    held-out values exceed the fitted extremes, in multiples of their distance. histogram: shares of held-out values in 64 bins
    over observed_low..observed_high; codes: shares of the same values in 64 groups of codes over low..high.
    """

    name: str
    bits: int
    estimator: str
    low: float
    high: float
    scale: float
    zero_point: int
    sqnr_db: Decibel
    observed_low: float
    observed_high: float
    fit_low: float
    fit_high: float
    range_used: float
    rare_range: float
    saturated: float
    unused_codes: float | None
    beyond_fit: float
    channels: int
    outlier_channels: list[int]
    outlier_reach: float
    constant_channels: list[int]
    histogram: list[float]
    codes: list[float]


class WeightAnalysis(Record):
    """The weights of a layer, behind its smoothing, rows being output channels.

    coarse_rows: rows of which more than half of the weights other than 0 round to 0. spread: the largest weight of a row over its
    median weight other than 0, for the row where that is largest.
    """

    bits: int
    sqnr_db: Decibel
    rows: int
    coarse_rows: int
    spread: float


class LayerAnalysis(Record):
    """One layer that is quantised, or whose output is. KL in nats, agreement in per cent of images, against FP32."""

    layer: str
    operator: Operator
    macs_share: float
    kl_alone: float | None
    kl_cumulative: float | None
    agreement_alone: float | None
    agreement_cumulative: float | None
    smoothing: str | None
    rounding: str | None
    block_sqnr_db: Decibel | None
    plain_sqnr_db: Decibel | None
    weights: WeightAnalysis | None
    input: TensorAnalysis | None
    output: TensorAnalysis | None

    @property
    def tensors(self) -> list[TensorAnalysis]:
        """The quantised activations of the layer."""
        return [tensor for tensor in (self.input, self.output) if tensor is not None]


SuspicionKind = Literal[
    "few-images",
    "costly-layer",
    "error-adds-up",
    "rare-values",
    "outlier-channels",
    "saturation",
    "unused-codes",
    "coarse-weights",
    "constant-channels",
]


class Suspicion(Record):
    """One finding about one layer, as a sentence that ends with what to try."""

    kind: SuspicionKind
    layer: str
    sentence: str


class Setting(Record):
    """What was quantised how: what a finding's advice depends on. Images are calibration images.

    wide_activations: whether the target takes 16-bit activations. affine_activations: whether its grids have zero points.
    prepares_hidden, prepares_depthwise: where the target allows a multiply-add in front of a quantizer.
    """

    model: str
    target: str
    exporter: str
    wide_activations: bool
    affine_activations: bool
    prepares_hidden: Literal["none", "shift", "channel"]
    prepares_depthwise: bool
    effort: Effort
    calibrator: Calibrator
    smoothing: Smoothing
    calibration_set: FileName
    fit_images: int
    held_out_images: int
    sensitivity_images: int


class Analysis(Record):
    """Everything that analyze found. kl, agreement: of the whole quantised network; null where nothing is quantised."""

    format: Literal[2] = 2
    setting: Setting
    kl: float | None
    agreement: float | None
    layers: list[LayerAnalysis]
    suspicions: list[Suspicion] = Field(default=[])
