"""What competes for a layer: scalings in front of it, ranges of its input, scales and codes of its weights.

One set of rules serves a whole network; a layer's own numbers come in as LayerStatistics. Weights are (G, R, K): groups, rows and
columns in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from edgeconvnext.choices import DEFAULT_ADAROUND_MINUTES, Calibrator, Effort, Rounding, Smoothing
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network
from edgeconvnext.model.two_of_four import zero_mask
from edgeconvnext.quantization.fake import round_activation
from edgeconvnext.quantization.histogram import Histogram, StreamingHistogram
from edgeconvnext.quantization.layer_statistics import LayerStatistics
from edgeconvnext.quantization.plan import QParams
from edgeconvnext.quantization.planning import SEARCH_STEPS, estimators_for, palette_of, weight_limit
from edgeconvnext.quantization.precision import Precision
from edgeconvnext.quantization.ranges import CodeRange, Estimator, estimate_range
from edgeconvnext.quantization.rounding import factor_hessian, gptq, nearest, refit
from edgeconvnext.quantization.smoothing import pixel_scaling, smoothing_candidates
from edgeconvnext.quantization.weights import palette_qparams, weight_qparams
from edgeconvnext.rewrite.channel_scaling import ChannelScaling, norm_before, takes_shift
from edgeconvnext.rewrite.moments import Moments
from edgeconvnext.targets import Target

FINALISTS = 2
RIDGES = (0.01, 0.1)
CodesOf = Callable[[torch.Tensor, torch.Tensor, QParams], torch.Tensor]
"""From weights, (G, R, K), their steps, broadcastable, and the layer's qparams to codes, (G, R, K)."""


@dataclass(frozen=True)
class ReconstructionOptions:
    """What competes. smoothing: "none" leaves inputs as they are, "force" takes the best change even where none is better.

    rounding: "auto" lets all methods compete (AdaRound with effort "best" only). adaround_minutes: time AdaRound may take in all.
    """

    calibrator: Calibrator = "auto"
    effort: Effort = "default"
    smoothing: Smoothing = "auto"
    rounding: Rounding = "auto"
    bias_correction: bool = True
    adaround_minutes: float = DEFAULT_ADAROUND_MINUTES

    @property
    def adaround(self) -> bool:
        return self.rounding == "adaround" or (self.rounding == "auto" and self.effort == "best")


@dataclass(frozen=True)
class Candidate:
    """One way to quantise a layer: everything that has to be put in place."""

    scaling: ChannelScaling
    input_qparams: QParams | None
    weight_qparams: QParams
    codes: torch.Tensor
    bias: torch.Tensor
    rounding: str
    estimator: Estimator | None


class Candidates:
    """What may be done to the layers of a network. reference: exactly folded, in float."""

    def __init__(
        self, reference: Network, target: Target, preprocess: Preprocess, options: ReconstructionOptions
    ) -> None:
        self.reference = reference
        self.target = target
        self.preprocess = preprocess
        self.options = options
        self.kinds = weighted_layers(reference)

    def scalings(
        self,
        layer: str,
        statistics: LayerStatistics,
        weight: torch.Tensor,
        code_range: CodeRange | None,
        precision: Precision,
    ) -> list[tuple[ChannelScaling, QParams | None, Estimator | None]]:
        """Return the best few scalings with the best range for each, judged by the layer's own output on held-out images."""
        identity = ChannelScaling.identity(len(statistics.channel_low))
        if code_range is None:
            return [(identity, None, None)]
        exact = self._exact_pixels(layer, code_range)
        if exact is not None:
            scale = torch.tensor(1.0)
            return [
                (
                    exact,
                    QParams(scale, torch.tensor(0, dtype=torch.int32), code_range.quant_min, code_range.quant_max),
                    "image",
                )
            ]
        candidates = self._scalings(layer, statistics, weight)
        searched: list[tuple[float, ChannelScaling]] = []
        if len(candidates) > FINALISTS:
            for scaling in candidates:
                qparams = self._range(statistics, weight, scaling, code_range, ("output",))[0]
                rounded = self._nearest(layer, statistics, weight, scaling, precision)
                searched.append((_layer_error(statistics, weight, scaling, qparams, rounded), scaling))
            searched.sort(key=lambda entry: entry[0])
            candidates = [scaling for _, scaling in searched[:FINALISTS]]
        estimators = estimators_for(self.options.calibrator, self.options.effort)
        if self.options.calibrator == "auto":
            estimators = (*estimators, "output")
        return [(scaling, *self._range(statistics, weight, scaling, code_range, estimators)) for scaling in candidates]

    def _exact_pixels(self, layer: str, code_range: CodeRange) -> ChannelScaling | None:
        """Return the scaling that makes images integers, where this layer takes them and the target allows it."""
        first = layer == "downsample_layers.0.0"
        allowed = self.target.quantize.smoothing.image and self.options.smoothing != "none"
        if not (first and allowed and takes_shift(self.reference, layer)) or code_range.levels != 255:
            return None
        return pixel_scaling(self.preprocess, self.target.input.value_range, code_range.quant_min < 0)

    def _scalings(self, layer: str, statistics: LayerStatistics, weight: torch.Tensor) -> list[ChannelScaling]:
        allowed = self.target.quantize.smoothing
        behind_norm = norm_before(self.reference, layer) is not None
        kind = self.kinds[layer]
        scales = (
            behind_norm
            or (kind == "pointwise2" and allowed.hidden == "channel")
            or (kind == "depthwise" and allowed.depthwise)
        )
        symmetric = self.target.quantize.activations.scheme == "symmetric"
        if self.options.smoothing == "none":
            return [ChannelScaling.identity(len(statistics.channel_low))]
        shifts = scales and takes_shift(self.reference, layer)
        one_shift = kind == "pointwise2" and allowed.hidden != "none" and symmetric
        candidates = smoothing_candidates(statistics, weight, scales=scales, shifts=shifts, one_shift=one_shift)
        return candidates[1:] if self.options.smoothing == "force" and len(candidates) > 1 else candidates

    def _range(
        self,
        statistics: LayerStatistics,
        weight: torch.Tensor,
        scaling: ChannelScaling,
        code_range: CodeRange,
        estimators: tuple[Estimator, ...],
    ) -> tuple[QParams, Estimator]:
        """Return the qparams of the scaled input whose error, at the layer's output on held-out images, is least."""
        rows, histogram = scaled_histogram(statistics, scaling, statistics.fit)
        best: tuple[float, QParams, Estimator] | None = None
        for estimator in estimators:
            source = histogram
            if estimator == "output":
                columns = _columns(statistics, scaling, weight)
                source = _weighted(histogram, rows, columns.square().sum(dim=1))
            low, high = estimate_range(
                source,
                "mse" if estimator == "output" else estimator,
                code_range,
                max(SEARCH_STEPS[self.options.effort], 40),
            )
            scale, zero_point = (
                torch.as_tensor(values[0]) for values in code_range.qparams(np.array([low]), np.array([high]))
            )
            qparams = QParams(scale.float(), zero_point.int(), code_range.quant_min, code_range.quant_max)
            error = 0.0 if len(estimators) == 1 else _layer_error(statistics, weight, scaling, qparams, None)
            if best is None or error < best[0]:
                best = (error, qparams, estimator)
        assert best is not None
        return best[1], best[2]

    def _weight_qparams(
        self,
        layer: str,
        statistics: LayerStatistics,
        weight: torch.Tensor,
        precision: Precision,
        scaling: ChannelScaling,
    ) -> QParams:
        """Return the weight's qparams, its scales searched for the least error weighted by the power of the inputs."""
        power = (
            statistics.moments.covariance.diagonal(dim1=1, dim2=2)
            * scaling.scale.double()[statistics.channels].square()
        )
        power = power.repeat_interleave(weight.shape[1], dim=0) if weight.shape[0] > 1 else power
        rows, float16 = weight.view(weight.shape[0] * weight.shape[1], -1), self.target.float_type == "float16"
        palette_bits = palette_of(self.target, precision)
        if palette_bits is not None:
            return palette_qparams(rows, palette_bits, float16_scale=float16, power=power)
        block = self.target.quantize.weights.block_size
        blocked = (
            block is not None and precision.weights == 4 and self.kinds[layer] in ("pointwise1", "pointwise2", "head")
        )
        if blocked and weight.shape[2] % cast(int, block):
            blocked = False
        return weight_qparams(
            rows,
            weight_limit(self.target, precision.weights),
            float16_scale=float16,
            search=True,
            power=power,
            block_size=block if blocked else None,
        )

    def _nearest(
        self,
        layer: str,
        statistics: LayerStatistics,
        weight: torch.Tensor,
        scaling: ChannelScaling,
        precision: Precision,
    ) -> torch.Tensor:
        scaled = _columns(statistics, scaling, weight)
        qparams = self._weight_qparams(layer, statistics, scaled, precision, scaling)
        step = step_of(qparams, scaled)
        return nearest(scaled, step, qparams) * step

    def plain(
        self,
        layer: str,
        statistics: LayerStatistics,
        weight: torch.Tensor,
        code_range: CodeRange | None,
        precision: Precision,
    ) -> Candidate:
        """Return what quantization would be without this engine: no smoothing, least-error range, nearest code, old bias."""
        scaling = ChannelScaling.identity(len(statistics.channel_low))
        calibrator = self.options.calibrator
        estimators: tuple[Estimator, ...] = ("mse",) if calibrator == "auto" else (calibrator,)
        input_qparams, estimator = (
            (None, None) if code_range is None else self._range(statistics, weight, scaling, code_range, estimators)
        )
        qparams = self._weight_qparams(layer, statistics, weight, precision, scaling)
        bias = cast(torch.Tensor, self.reference.get_submodule(layer).bias).detach().double()
        codes = nearest(weight, step_of(qparams, weight), qparams)
        return Candidate(scaling, input_qparams, qparams, codes, bias, "nearest", estimator)

    def rounded(
        self,
        layer: str,
        statistics: LayerStatistics,
        weight: torch.Tensor,
        scaling: ChannelScaling,
        input_qparams: QParams | None,
        estimator: Estimator | None,
        precision: Precision,
    ) -> Iterator[Candidate]:
        """Yield the competing roundings of a layer behind one scaling and one input range."""
        scaled = _columns(statistics, scaling, weight)
        moments = _quantized_moments(statistics, scaling, input_qparams)
        float_bias = cast(torch.Tensor, self.reference.get_submodule(layer).bias).detach().double()
        shift = scaling.shift.double()[statistics.channels]
        exact_bias = float_bias - (scaled * shift[:, None]).sum(dim=2).flatten()
        factor = factor_hessian(moments.covariance)
        mask = zero_mask(layer_weight(self.reference, layer))
        mask = None if mask is None else mask[None]

        def by_gptq(weights: torch.Tensor, step: torch.Tensor, qparams: QParams) -> torch.Tensor:
            return gptq(weights, step, qparams, factor, mask)

        def finish(weights: torch.Tensor, method: str, codes_of: CodesOf) -> Candidate:
            qparams = self._weight_qparams(layer, statistics, weights, precision, scaling)
            step = step_of(qparams, weights)
            codes = codes_of(weights, step, qparams)
            corrected = (moments.target_mean - (codes * step * moments.mean[:, None]).sum(dim=2)).flatten()
            bias = corrected if self.options.bias_correction else exact_bias
            return Candidate(scaling, input_qparams, qparams, codes, bias, method, estimator)

        rounding = self.options.rounding
        if rounding in ("auto", "nearest"):
            yield finish(scaled, "nearest", nearest)
        if rounding in ("auto", "gptq", "adaround"):
            yield finish(scaled, "gptq", by_gptq)
            for ridge in RIDGES if rounding != "gptq" else ():
                fitted = refit(scaled, moments.covariance, moments.cross, ridge, mask)
                yield finish(fitted, f"gptq, re-fitted {ridge:g}", by_gptq)


def _quantized_moments(statistics: LayerStatistics, scaling: ChannelScaling, input_qparams: QParams | None) -> Moments:
    """Return the moments of the layer's input behind a scaling and its quantizer; input_qparams: None where it has none."""
    moments = statistics.moments
    scale, shift = (values.double()[statistics.channels] for values in (scaling.scale, scaling.shift))
    # Rounding the input to steps of d adds a variance of d^2 / 12 to every column.
    noise = 0.0 if input_qparams is None else float(input_qparams.scale) ** 2 / 12
    eye = torch.eye(moments.covariance.shape[1], dtype=torch.float64)
    covariance = moments.covariance * scale[:, :, None] * scale[:, None] + noise * eye
    mean = moments.mean * scale + shift
    if input_qparams is not None:
        sample = scaled_rows(statistics, scaling, statistics.fit)
        mean = mean + (round_activation(sample, input_qparams) - sample).double().mean(dim=0)
    return Moments(mean, covariance, moments.target_mean, moments.cross * scale[:, None])


def scaled_rows(statistics: LayerStatistics, scaling: ChannelScaling, rows: torch.Tensor) -> torch.Tensor:
    """Return sampled inputs (positions, G, K) behind a scaling."""
    if scaling.is_identity:
        return rows
    return rows * scaling.scale[statistics.channels] + scaling.shift[statistics.channels]


def _columns(statistics: LayerStatistics, scaling: ChannelScaling, weight: torch.Tensor) -> torch.Tensor:
    """Return the weight for inputs behind a scaling, (G, R, K) float64."""
    return weight / scaling.scale.double()[statistics.channels][:, None]


def scaled_histogram(
    statistics: LayerStatistics, scaling: ChannelScaling, sample: torch.Tensor, extremes: bool = True
) -> tuple[torch.Tensor, Histogram]:
    """Return the sampled inputs behind a scaling and their histogram. extremes: of all values, not of the sample's only."""
    rows = scaled_rows(statistics, scaling, sample)
    low, high = float(rows.min()), float(rows.max())
    if extremes:
        low = min(low, float(scaling.apply(statistics.channel_low).min()))
        high = max(high, float(scaling.apply(statistics.channel_high).max()))
    histogram = StreamingHistogram()
    histogram.update(rows, low, high)
    return rows, histogram.result()


def _weighted(histogram: Histogram, rows: torch.Tensor, importance: torch.Tensor) -> Histogram:
    """Return the histogram with each value counted by the importance of its column. rows: (P, G, K); importance: (G, K)."""
    index = ((rows / histogram.width).floor().long() - histogram.first).clamp_(0, len(histogram.counts) - 1)
    weights = (importance / importance.mean().clamp_min(1e-30)).float().expand_as(rows)
    counts = torch.bincount(index.flatten(), weights=weights.flatten(), minlength=len(histogram.counts))
    return Histogram(counts.double().numpy(), histogram.first, histogram.width, histogram.low, histogram.high)


def _layer_error(
    statistics: LayerStatistics,
    weight: torch.Tensor,
    scaling: ChannelScaling,
    qparams: QParams,
    rounded: torch.Tensor | None,
) -> float:
    """Mean squared error of the layer's output on held-out inputs, its mean taken off (the bias will).

    weight: (G, R, K), for inputs without scaling. rounded: (G, R, K), for inputs behind it; None: the unrounded weight.
    """
    scaled = _columns(statistics, scaling, weight).float()
    inputs = scaled_rows(statistics, scaling, statistics.held_out)
    quantized = round_activation(inputs, qparams)
    # Q(x) W' - x W = (Q(x) - x) W, one product, where the weight is the same.
    pairs = [(quantized - inputs, scaled)] if rounded is None else [(quantized, rounded.float()), (-inputs, scaled)]
    terms = [
        rows[:, 0] @ used[0].T if weight.shape[0] == 1 else torch.einsum("pgk,grk->pgr", rows, used)
        for rows, used in pairs
    ]
    error = sum(terms[1:], terms[0])
    return float((error - error.mean(dim=0)).square().mean(dtype=torch.float64))


def step_of(qparams: QParams, weight: torch.Tensor) -> torch.Tensor:
    """Return the step of every weight, in a shape that broadcasts to (G, R, K), float64."""
    groups, rows, columns = weight.shape
    scale = qparams.scale.double()
    if qparams.blocked:
        return scale.repeat_interleave(columns // scale.shape[1], dim=1).view(groups, rows, columns)
    return scale.view(groups, rows, 1)


def layer_weight(module: Network, layer: str) -> torch.Tensor:
    return cast(torch.Tensor, module.get_submodule(layer).weight).detach()
