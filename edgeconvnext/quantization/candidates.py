"""What competes for a layer: affines in front of it, ranges of its input, grids and codes of its weights.

One set of rules serves a whole network; a layer's own numbers come in as LayerStatistics. Weights are (G, R, K): groups, rows and
columns in each.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from edgeconvnext.quantization.ranges import Estimator, Grid, estimate_range
from edgeconvnext.quantization.rounding import factored, gptq, nearest, refit
from edgeconvnext.quantization.smoothing import affine_candidates, image_affine
from edgeconvnext.quantization.weights import palette_grid, weight_grid
from edgeconvnext.rewrite.channel_scaling import Affine, norm_before, takes_shift
from edgeconvnext.targets import Target

FINALISTS = 2
RIDGES = (0.01, 0.1)


@dataclass(frozen=True)
class ReconstructionOptions:
    """What competes. preparation: "none" leaves inputs as they are, "force" takes the best change even where none is better.

    rounding: "auto" lets all methods compete (AdaRound with effort "best" only). adaround_minutes: time AdaRound may take in all.
    """

    calibrator: Calibrator = "auto"
    effort: Effort = "default"
    preparation: Smoothing = "auto"
    rounding: Rounding = "auto"
    bias_correction: bool = True
    adaround_minutes: float = DEFAULT_ADAROUND_MINUTES

    @property
    def adaround(self) -> bool:
        return self.rounding == "adaround" or (self.rounding == "auto" and self.effort == "best")


@dataclass(frozen=True)
class Candidate:
    """One way to quantise a layer: everything that has to be put in place."""

    affine: Affine
    input: QParams | None
    grid: QParams
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

    def prepared(
        self, layer: str, statistics: LayerStatistics, weight: torch.Tensor, grid: Grid | None, precision: Precision
    ) -> list[tuple[Affine, QParams | None, Estimator | None]]:
        """Return the best few affines with the best range for each, judged by the layer's own output on held-out images."""
        identity = Affine.identity(len(statistics.channel_low))
        if grid is None:
            return [(identity, None, None)]
        exact = self._exact_pixels(layer, grid)
        if exact is not None:
            scale = torch.tensor(1.0)
            return [
                (exact, QParams(scale, torch.tensor(0, dtype=torch.int32), grid.quant_min, grid.quant_max), "image")
            ]
        candidates = self._affines(layer, statistics, weight)
        searched: list[tuple[float, Affine]] = []
        if len(candidates) > FINALISTS:
            for affine in candidates:
                qparams = self._range(statistics, weight, affine, grid, ("output",))[0]
                rounded = self._nearest(layer, statistics, weight, affine, precision)
                searched.append((_layer_error(statistics, weight, affine, qparams, rounded), affine))
            searched.sort(key=lambda entry: entry[0])
            candidates = [affine for _, affine in searched[:FINALISTS]]
        estimators = estimators_for(self.options.calibrator, self.options.effort)
        if self.options.calibrator == "auto":
            estimators = (*estimators, "output")
        return [(affine, *self._range(statistics, weight, affine, grid, estimators)) for affine in candidates]

    def _exact_pixels(self, layer: str, grid: Grid) -> Affine | None:
        """Return the affine that makes images integers, where this layer takes them and the target allows it."""
        first = layer == "downsample_layers.0.0"
        allowed = self.target.quantize.prepare.image and self.options.preparation != "none"
        if not (first and allowed and takes_shift(self.reference, layer)) or grid.levels != 255:
            return None
        return image_affine(self.preprocess, self.target.input.value_range, grid.quant_min < 0)

    def _affines(self, layer: str, statistics: LayerStatistics, weight: torch.Tensor) -> list[Affine]:
        allowed = self.target.quantize.prepare
        behind_norm = norm_before(self.reference, layer) is not None
        kind = self.kinds[layer]
        scales = (
            behind_norm
            or (kind == "pointwise2" and allowed.hidden == "channel")
            or (kind == "depthwise" and allowed.depthwise)
        )
        symmetric = self.target.quantize.activations.scheme == "symmetric"
        if self.options.preparation == "none":
            return [Affine.identity(len(statistics.channel_low))]
        shifts = scales and takes_shift(self.reference, layer)
        one_shift = kind == "pointwise2" and allowed.hidden != "none" and symmetric
        candidates = affine_candidates(statistics, weight, scales=scales, shifts=shifts, one_shift=one_shift)
        return candidates[1:] if self.options.preparation == "force" and len(candidates) > 1 else candidates

    def _range(
        self,
        statistics: LayerStatistics,
        weight: torch.Tensor,
        affine: Affine,
        grid: Grid,
        estimators: tuple[Estimator, ...],
    ) -> tuple[QParams, Estimator]:
        """Return the grid of the prepared input whose error, at the layer's output on held-out images, is least."""
        rows, histogram = prepared_histogram(statistics, affine, statistics.fit)
        best: tuple[float, QParams, Estimator] | None = None
        for estimator in estimators:
            source = histogram
            if estimator == "output":
                columns = _columns(statistics, affine, weight)
                source = _weighted(histogram, rows, columns.square().sum(dim=1))
            low, high = estimate_range(
                source, "mse" if estimator == "output" else estimator, grid, max(SEARCH_STEPS[self.options.effort], 40)
            )
            scale, zero_point = (torch.as_tensor(values[0]) for values in grid.fit(np.array([low]), np.array([high])))
            qparams = QParams(scale.float(), zero_point.int(), grid.quant_min, grid.quant_max)
            error = 0.0 if len(estimators) == 1 else _layer_error(statistics, weight, affine, qparams, None)
            if best is None or error < best[0]:
                best = (error, qparams, estimator)
        assert best is not None
        return best[1], best[2]

    def _grid_of(
        self, layer: str, statistics: LayerStatistics, weight: torch.Tensor, precision: Precision, affine: Affine
    ) -> QParams:
        """Return the weight grid, its scales searched for the least error weighted by the power of the inputs."""
        power = (
            statistics.moments.covariance.diagonal(dim1=1, dim2=2) * affine.scale.double()[statistics.channels].square()
        )
        power = power.repeat_interleave(weight.shape[1], dim=0) if weight.shape[0] > 1 else power
        rows, float16 = weight.view(weight.shape[0] * weight.shape[1], -1), self.target.float_type == "float16"
        palette_bits = palette_of(self.target, precision)
        if palette_bits is not None:
            return palette_grid(rows, palette_bits, float16_scale=float16, power=power)
        block = self.target.quantize.weights.block_size
        blocked = (
            block is not None and precision.weights == 4 and self.kinds[layer] in ("pointwise1", "pointwise2", "head")
        )
        if blocked and weight.shape[2] % cast(int, block):
            blocked = False
        return weight_grid(
            rows,
            weight_limit(self.target, precision.weights),
            float16_scale=float16,
            search=True,
            power=power,
            block_size=block if blocked else None,
        )

    def _nearest(
        self, layer: str, statistics: LayerStatistics, weight: torch.Tensor, affine: Affine, precision: Precision
    ) -> torch.Tensor:
        prepared = _columns(statistics, affine, weight)
        grid = self._grid_of(layer, statistics, prepared, precision, affine)
        step = step_of(grid, prepared)
        return nearest(prepared, step, grid) * step

    def plain(
        self, layer: str, statistics: LayerStatistics, weight: torch.Tensor, grid: Grid | None, precision: Precision
    ) -> Candidate:
        """Return what quantization would be without this engine: no preparation, least-error range, nearest code, old bias."""
        affine = Affine.identity(len(statistics.channel_low))
        calibrator = self.options.calibrator
        estimators: tuple[Estimator, ...] = ("mse",) if calibrator == "auto" else (calibrator,)
        qparams, estimator = (None, None) if grid is None else self._range(statistics, weight, affine, grid, estimators)
        codes = self._grid_of(layer, statistics, weight, precision, affine)
        bias = cast(torch.Tensor, self.reference.get_submodule(layer).bias).detach().double()
        rounded = nearest(weight, step_of(codes, weight), codes)
        return Candidate(affine, qparams, codes, rounded, bias, "nearest", estimator)

    def rounded(
        self,
        layer: str,
        statistics: LayerStatistics,
        weight: torch.Tensor,
        affine: Affine,
        qparams: QParams | None,
        estimator: Estimator | None,
        precision: Precision,
    ) -> Iterator[Candidate]:
        """Yield the competing roundings of a layer behind one affine and grid."""
        scale = affine.scale.double()[statistics.channels]
        shift = affine.shift.double()[statistics.channels]
        prepared = weight / scale[:, None]
        # Rounding the input to steps of d adds a variance of d^2 / 12 to every column.
        noise = 0.0 if qparams is None else float(qparams.scale) ** 2 / 12
        eye = torch.eye(statistics.moments.covariance.shape[1], dtype=torch.float64)
        hessian = statistics.moments.covariance * scale[:, :, None] * scale[:, None] + noise * eye
        mean = statistics.moments.mean * scale + shift
        if qparams is not None:
            sample = affine_rows(statistics, affine, statistics.fit)
            mean = mean + (round_activation(sample, qparams) - sample).double().mean(dim=0)
        cross = statistics.moments.cross * scale[:, None]
        old_bias = cast(torch.Tensor, self.reference.get_submodule(layer).bias).detach().double()
        exact_bias = old_bias - (prepared * shift[:, None]).sum(dim=2).flatten()

        ready = factored(hessian)
        mask = zero_mask(layer_weight(self.reference, layer))
        mask = None if mask is None else mask[None]

        def finish(weights: torch.Tensor, method: str) -> Candidate:
            grid = self._grid_of(layer, statistics, weights, precision, affine)
            step = step_of(grid, weights)
            codes = nearest(weights, step, grid) if method == "nearest" else gptq(weights, step, grid, ready, mask)
            corrected = (statistics.moments.target_mean - (codes * step * mean[:, None]).sum(dim=2)).flatten()
            bias = corrected if self.options.bias_correction else exact_bias
            return Candidate(affine, qparams, grid, codes, bias, method, estimator)

        rounding = self.options.rounding
        if rounding in ("auto", "nearest"):
            yield finish(prepared, "nearest")
        if rounding in ("auto", "gptq", "adaround"):
            yield finish(prepared, "gptq")
            for ridge in RIDGES if rounding != "gptq" else ():
                fitted = refit(prepared, hessian, cross, ridge, mask)
                yield finish(fitted, f"gptq, re-fitted {ridge:g}")


def affine_rows(statistics: LayerStatistics, affine: Affine, rows: torch.Tensor) -> torch.Tensor:
    """Return sampled inputs (positions, G, K) behind an affine."""
    if affine.is_identity:
        return rows
    return rows * affine.scale[statistics.channels] + affine.shift[statistics.channels]


def _columns(statistics: LayerStatistics, affine: Affine, weight: torch.Tensor) -> torch.Tensor:
    """Return the weight for inputs behind an affine, (G, R, K) float64."""
    return weight / affine.scale.double()[statistics.channels][:, None]


def prepared_histogram(
    statistics: LayerStatistics, affine: Affine, sample: torch.Tensor, extremes: bool = True
) -> tuple[torch.Tensor, Histogram]:
    """Return the sampled inputs behind an affine and their histogram. extremes: of all values, not of the sample's only."""
    rows = affine_rows(statistics, affine, sample)
    low, high = float(rows.min()), float(rows.max())
    if extremes:
        low = min(low, float(affine.apply(statistics.channel_low).min()))
        high = max(high, float(affine.apply(statistics.channel_high).max()))
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
    statistics: LayerStatistics, weight: torch.Tensor, affine: Affine, qparams: QParams, rounded: torch.Tensor | None
) -> float:
    """Mean squared error of the layer's output on held-out inputs, its mean taken off (the bias will).

    weight: (G, R, K), for inputs without affine. rounded: (G, R, K), for inputs behind it; None: the unrounded weight.
    """
    prepared = _columns(statistics, affine, weight).float()
    inputs = affine_rows(statistics, affine, statistics.held_out)
    quantized = round_activation(inputs, qparams)
    # Q(x) W' - x W = (Q(x) - x) W, one product, where the weight is the same.
    pairs = [(quantized - inputs, prepared)] if rounded is None else [(quantized, rounded.float()), (-inputs, prepared)]
    terms = [
        rows[:, 0] @ used[0].T if weight.shape[0] == 1 else torch.einsum("pgk,grk->pgr", rows, used)
        for rows, used in pairs
    ]
    error = sum(terms[1:], terms[0])
    return float((error - error.mean(dim=0)).square().mean(dtype=torch.float64))


def step_of(grid: QParams, weight: torch.Tensor) -> torch.Tensor:
    """Return the step of every weight, in a shape that broadcasts to (G, R, K), float64."""
    groups, rows, columns = weight.shape
    scale = grid.scale.double()
    if grid.blocked:
        return scale.repeat_interleave(columns // scale.shape[1], dim=1).view(groups, rows, columns)
    return scale.view(groups, rows, 1)


def layer_weight(module: Network, layer: str) -> torch.Tensor:
    return cast(torch.Tensor, module.get_submodule(layer).weight).detach()
