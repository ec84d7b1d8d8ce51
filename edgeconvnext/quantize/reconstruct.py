"""The accuracy engine: layer by layer, with later layers seeing the quantised earlier ones, every choice by held-out error.

For each layer, in forward order, one pass over the calibration images gathers what reaches it in the quantised network and what
it should answer according to the float network (`layer_problem`). Then compete, on held-out images:

  preparation   a scale and shift per channel in front of the quantizer, taken back exactly behind it (`preparations`)
  range         five estimators (`ranges`)
  rounding      nearest, GPTQ, GPTQ of weights re-fitted to the quantised inputs (`rounding`), AdaRound of a block (`adaround`)

each with the bias corrected by the output's measured shift; zeros of a 2:4 sparse layer stay zeros in all of them. The first two
are ranked by the error of the layer's own output, the finalists and the rounding by the error of the block's output. What wins is
put into a copy of the network, whose weights then lie on their grids: exporting it with the plan's Q/DQ pairs changes nothing any
more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.macs import layer_macs
from edgeconvnext.model.network import Network
from edgeconvnext.model.units import Unit, units_of
from edgeconvnext.progress import progress_bar
from edgeconvnext.quantize.fake import quantize_input, quantize_output, round_activation
from edgeconvnext.quantize.histogram import Histogram, StreamingHistogram
from edgeconvnext.quantize.layer_problem import LayerProblem, gather, weight_rows
from edgeconvnext.quantize.plan import ActivationPlan, LayerDecision, QParams, QuantPlan
from edgeconvnext.quantize.planning import (
    SEARCH_STEPS,
    Calibrator,
    Effort,
    activation_grid,
    estimators_for,
    palette_of,
    plan_activation,
    weight_limit,
)
from edgeconvnext.quantize.precision import Precision
from edgeconvnext.quantize.preparations import Preparation, affine_candidates, image_affine
from edgeconvnext.quantize.ranges import Estimator, Grid, estimate_range, quantization_mse
from edgeconvnext.quantize.rounding import factored, gptq, nearest, refit
from edgeconvnext.quantize.statistics import Statistics, TensorStatistics
from edgeconvnext.quantize.weights import palette_grid, weight_grid
from edgeconvnext.rewrite.lockstep import BATCH, Lockstep, StoredImages
from edgeconvnext.rewrite.prepare import Affine, norm_before, place_affine, takes_shift
from edgeconvnext.rewrite.two_of_four import zero_mask
from edgeconvnext.targets import Target

Rounding = Literal["auto", "nearest", "gptq", "adaround"]

DEFAULT_ADAROUND_MINUTES = 10.0
FINALISTS = 2
RIDGES = (0.01, 0.1)
# Multiply-adds of one evaluation of a block on held-out images; between these two numbers of images.
EVALUATION_MACS = 1e9
FEWEST_EVALUATED, MOST_EVALUATED = 12, 96


@dataclass(frozen=True)
class ReconstructionOptions:
    """What competes. preparation: "none" leaves inputs as they are, "force" takes the best change even where none is better.

    rounding: "auto" lets all methods compete (AdaRound with effort "best" only). adaround_minutes: time AdaRound may take in all.
    """

    calibrator: Calibrator = "auto"
    effort: Effort = "default"
    preparation: Preparation = "auto"
    rounding: Rounding = "auto"
    bias_correction: bool = True
    adaround_minutes: float = DEFAULT_ADAROUND_MINUTES

    @property
    def adaround(self) -> bool:
        return self.rounding == "adaround" or (self.rounding == "auto" and self.effort == "best")


@dataclass(frozen=True)
class Reconstructed:
    """The network with its weights on their grids and affines in place, the plan of its Q/DQ pairs, and what was seen.

    statistics: histograms of the prepared inputs, and how many images were fitted on and held out.
    """

    module: Network
    plan: QuantPlan
    statistics: Statistics


class _State(Lockstep):
    """The float network and the one under work. hooks: what quantises activations of the latter, by tensor."""

    def __init__(self, reference: Network, working: Network, images: StoredImages, folder: Path) -> None:
        super().__init__(reference, working, images, folder)
        self.hooks: dict[str, RemovableHandle] = {}


@dataclass(frozen=True)
class _Candidate:
    """One way to quantise a layer: everything that `_install` puts in place."""

    affine: Affine
    input: QParams | None
    grid: QParams
    codes: torch.Tensor
    bias: torch.Tensor
    rounding: str
    estimator: Estimator | None


@torch.no_grad()
def reconstruct(
    module: Network,
    target: Target,
    precisions: dict[str, Precision],
    fit: Iterable[torch.Tensor],
    held_out: Iterable[torch.Tensor],
    *,
    preprocess: Preprocess,
    folder: Path,
    options: ReconstructionOptions | None = None,
) -> Reconstructed:
    """Quantise `module` layer by layer; it is left as it is.

    module: exactly folded, for the target's input range. precisions: bits of every layer that is quantised. fit, held_out: batches
    of images (N, C, H, W) as the module takes them; each is read once. preprocess: the checkpoint's own. folder: where block
    inputs are kept meanwhile, 8 bytes an element.

    Raises QuantizationError when there are no images, or an activation is NaN or infinite.
    """
    options = options or ReconstructionOptions()
    with (
        StoredImages(folder, fit, held_out) as images,
        _State(module, copy.deepcopy(module).eval(), images, folder) as state,
    ):
        counts = (images.fit_images, images.held_out_images)
        if not all(counts):
            raise QuantizationError(
                f"Calibration needs images to fit ranges on and images to judge them on; there are {counts[0]} and {counts[1]}. "
                "Give at least 3 images, better 100 or more."
            )
        engine = _Engine(state, target, precisions, preprocess, options)
        total = len(precisions) + len(target.quantize.outputs)
        with progress_bar("Quantising layer by layer", total) as advance:
            for unit in units_of(module):
                engine.solve(unit, advance)
                if unit.name != "head":
                    state.advance(unit)
        for handle in state.hooks.values():
            handle.remove()
        statistics = Statistics(engine.tensors, *counts)
        return Reconstructed(state.working, QuantPlan(engine.activations, engine.weights, engine.decisions), statistics)


class _Engine:
    """Chooses for one layer after the other; what was chosen so far is in `activations`, `weights` and the working network."""

    def __init__(
        self,
        state: _State,
        target: Target,
        precisions: dict[str, Precision],
        preprocess: Preprocess,
        options: ReconstructionOptions,
    ) -> None:
        self.state = state
        self.target = target
        self.precisions = precisions
        self.preprocess = preprocess
        self.options = options
        self.kinds = weighted_layers(state.reference)
        self.macs = layer_macs(state.reference.config, preprocess.input_size)
        self.activations: dict[str, ActivationPlan] = {}
        self.weights: dict[str, QParams] = {}
        self.decisions: dict[str, LayerDecision] = {}
        self.tensors: dict[str, TensorStatistics] = {}
        self.adaround_seconds = 60 * options.adaround_minutes

    def solve(self, unit: Unit, advance: Callable[[int], None]) -> None:
        """Quantise the layers of one unit, in forward order."""
        if not unit.layers:
            return
        evaluation = _Evaluation(self.state, unit, sum(self.macs[layer] for layer in unit.layers))
        for layer in unit.layers:
            if layer in self.precisions:
                self._solve_layer(unit, layer, evaluation)
                advance(1)
            if self.target.quantize.takes_output(layer, self.kinds[layer]):
                self._solve_output(unit, layer)
                advance(1)
        # AdaRound moves codes to the next whole number, which a palette may not hold.
        chosen = [layer for layer in unit.layers if layer in self.weights and self.weights[layer].levels is None]
        if self.options.adaround and chosen:
            self._adaround(unit, chosen, evaluation)

    def _solve_layer(self, unit: Unit, layer: str, evaluation: _Evaluation) -> None:
        state, precision = self.state, self.precisions[layer]
        images = (state.fit_images, state.held_out_images)
        problem = gather(state.reference, state.working, unit, layer, state.fit, state.held_out, images)
        weight = weight_rows(state.reference.get_submodule(layer), _weight(state.reference, layer).double())
        grid = None if precision.activations is None else activation_grid(self.target, precision.activations)
        finalists = self._prepared(layer, problem, weight, grid, precision)
        plain = self._plain(layer, problem, weight, grid, precision)
        before = self._error(layer, plain, evaluation)
        scored: dict[str, tuple[float, _Candidate]] = {}
        if self.options.rounding in ("auto", "nearest") and self.options.preparation != "force":
            scored["none, nearest"] = (before, plain)
        for affine, qparams, estimator in finalists:
            for candidate in self._rounded(layer, problem, weight, affine, qparams, estimator, precision):
                name = f"{affine.name}, {candidate.rounding}"
                scored[name] = (self._error(layer, candidate, evaluation), candidate)
        best = min(scored, key=lambda name: scored[name][0])
        error, chosen = scored[best]
        self._install(layer, chosen)
        self._record(layer, problem, chosen)
        self.decisions[layer] = LayerDecision(
            chosen.affine,
            chosen.rounding,
            evaluation.sqnr_db(error),
            evaluation.sqnr_db(before),
            {name: evaluation.sqnr_db(value) for name, (value, _) in scored.items()},
        )

    # --- preparation and range -----------------------------------------------------------------------------------------------

    def _prepared(
        self, layer: str, problem: LayerProblem, weight: torch.Tensor, grid: Grid | None, precision: Precision
    ) -> list[tuple[Affine, QParams | None, Estimator | None]]:
        """Return the best few affines with the best range for each, judged by the layer's own output on held-out images."""
        identity = Affine.identity(len(problem.channel_low))
        if grid is None:
            return [(identity, None, None)]
        exact = self._exact_pixels(layer, grid)
        if exact is not None:
            scale = torch.tensor(1.0)
            return [
                (exact, QParams(scale, torch.tensor(0, dtype=torch.int32), grid.quant_min, grid.quant_max), "image")
            ]
        candidates = self._affines(layer, problem, weight)
        searched: list[tuple[float, Affine]] = []
        if len(candidates) > FINALISTS:
            for affine in candidates:
                qparams = self._range(problem, weight, affine, grid, ("output",))[0]
                rounded = self._nearest(layer, problem, weight, affine, precision)
                searched.append((_layer_error(problem, weight, affine, qparams, rounded), affine))
            searched.sort(key=lambda entry: entry[0])
            candidates = [affine for _, affine in searched[:FINALISTS]]
        estimators = estimators_for(self.options.calibrator, self.options.effort)
        if self.options.calibrator == "auto":
            estimators = (*estimators, "output")
        return [(affine, *self._range(problem, weight, affine, grid, estimators)) for affine in candidates]

    def _exact_pixels(self, layer: str, grid: Grid) -> Affine | None:
        """Return the affine that makes images integers, where this layer takes them and the target allows it."""
        first = layer == "downsample_layers.0.0"
        allowed = self.target.quantize.prepare.image and self.options.preparation != "none"
        if not (first and allowed and takes_shift(self.state.reference, layer)) or grid.levels != 255:
            return None
        return image_affine(self.preprocess, self.target.input.value_range, grid.quant_min < 0)

    def _affines(self, layer: str, problem: LayerProblem, weight: torch.Tensor) -> list[Affine]:
        allowed = self.target.quantize.prepare
        behind_norm = norm_before(self.state.reference, layer) is not None
        kind = self.kinds[layer]
        scales = (
            behind_norm
            or (kind == "pointwise2" and allowed.hidden == "channel")
            or (kind == "depthwise" and allowed.depthwise)
        )
        symmetric = self.target.quantize.activations.scheme == "symmetric"
        if self.options.preparation == "none":
            return [Affine.identity(len(problem.channel_low))]
        shifts = scales and takes_shift(self.state.reference, layer)
        one_shift = kind == "pointwise2" and allowed.hidden != "none" and symmetric
        candidates = affine_candidates(problem, weight, scales=scales, shifts=shifts, one_shift=one_shift)
        return candidates[1:] if self.options.preparation == "force" and len(candidates) > 1 else candidates

    def _range(
        self, problem: LayerProblem, weight: torch.Tensor, affine: Affine, grid: Grid, estimators: tuple[Estimator, ...]
    ) -> tuple[QParams, Estimator]:
        """Return the grid of the prepared input whose error, at the layer's output on held-out images, is least."""
        rows, histogram = _prepared_histogram(problem, affine, problem.fit)
        best: tuple[float, QParams, Estimator] | None = None
        for estimator in estimators:
            source = histogram
            if estimator == "output":
                columns = _columns(problem, affine, weight)
                source = _weighted(histogram, rows, columns.square().sum(dim=1))
            low, high = estimate_range(
                source, "mse" if estimator == "output" else estimator, grid, max(SEARCH_STEPS[self.options.effort], 40)
            )
            scale, zero_point = (torch.as_tensor(values[0]) for values in grid.fit(np.array([low]), np.array([high])))
            qparams = QParams(scale.float(), zero_point.int(), grid.quant_min, grid.quant_max)
            error = 0.0 if len(estimators) == 1 else _layer_error(problem, weight, affine, qparams, None)
            if best is None or error < best[0]:
                best = (error, qparams, estimator)
        assert best is not None
        return best[1], best[2]

    # --- rounding ------------------------------------------------------------------------------------------------------------

    def _grid_of(
        self, layer: str, problem: LayerProblem, weight: torch.Tensor, precision: Precision, affine: Affine
    ) -> QParams:
        """Return the weight grid, its scales searched for the least error weighted by the power of the inputs."""
        power = problem.covariance.diagonal(dim1=1, dim2=2) * affine.scale.double()[problem.channels].square()
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
        self, layer: str, problem: LayerProblem, weight: torch.Tensor, affine: Affine, precision: Precision
    ) -> torch.Tensor:
        prepared = _columns(problem, affine, weight)
        grid = self._grid_of(layer, problem, prepared, precision, affine)
        step = _step(grid, prepared)
        return nearest(prepared, step, grid) * step

    def _plain(
        self, layer: str, problem: LayerProblem, weight: torch.Tensor, grid: Grid | None, precision: Precision
    ) -> _Candidate:
        """Return what quantization would be without this engine: no preparation, least-error range, nearest code, old bias."""
        affine = Affine.identity(len(problem.channel_low))
        calibrator = self.options.calibrator
        estimators: tuple[Estimator, ...] = ("mse",) if calibrator == "auto" else (calibrator,)
        qparams, estimator = (None, None) if grid is None else self._range(problem, weight, affine, grid, estimators)
        codes = self._grid_of(layer, problem, weight, precision, affine)
        bias = cast(torch.Tensor, self.state.reference.get_submodule(layer).bias).detach().double()
        rounded = nearest(weight, _step(codes, weight), codes)
        return _Candidate(affine, qparams, codes, rounded, bias, "nearest", estimator)

    def _rounded(
        self,
        layer: str,
        problem: LayerProblem,
        weight: torch.Tensor,
        affine: Affine,
        qparams: QParams | None,
        estimator: Estimator | None,
        precision: Precision,
    ) -> Iterator[_Candidate]:
        """Yield the competing roundings of a layer behind one affine and grid."""
        scale = affine.scale.double()[problem.channels]
        shift = affine.shift.double()[problem.channels]
        prepared = weight / scale[:, None]
        # Rounding the input to steps of d adds a variance of d^2 / 12 to every column.
        noise = 0.0 if qparams is None else float(qparams.scale) ** 2 / 12
        eye = torch.eye(problem.covariance.shape[1], dtype=torch.float64)
        hessian = problem.covariance * scale[:, :, None] * scale[:, None] + noise * eye
        mean = problem.mean * scale + shift
        if qparams is not None:
            sample = affine_rows(problem, affine, problem.fit)
            mean = mean + (round_activation(sample, qparams) - sample).double().mean(dim=0)
        cross = problem.cross * scale[:, None]
        old_bias = cast(torch.Tensor, self.state.reference.get_submodule(layer).bias).detach().double()
        exact_bias = old_bias - (prepared * shift[:, None]).sum(dim=2).flatten()

        ready = factored(hessian)
        mask = zero_mask(_weight(self.state.reference, layer))
        mask = None if mask is None else mask[None]

        def finish(weights: torch.Tensor, method: str) -> _Candidate:
            grid = self._grid_of(layer, problem, weights, precision, affine)
            step = _step(grid, weights)
            codes = nearest(weights, step, grid) if method == "nearest" else gptq(weights, step, grid, ready, mask)
            corrected = (problem.target_mean - (codes * step * mean[:, None]).sum(dim=2)).flatten()
            bias = corrected if self.options.bias_correction else exact_bias
            return _Candidate(affine, qparams, grid, codes, bias, method, estimator)

        rounding = self.options.rounding
        if rounding in ("auto", "nearest"):
            yield finish(prepared, "nearest")
        if rounding in ("auto", "gptq", "adaround"):
            yield finish(prepared, "gptq")
            for ridge in RIDGES if rounding != "gptq" else ():
                fitted = refit(prepared, hessian, cross, ridge, mask)
                yield finish(fitted, f"gptq, re-fitted {ridge:g}")

    # --- putting a candidate in place ----------------------------------------------------------------------------------------

    def _install(self, layer: str, candidate: _Candidate) -> None:
        """Put a candidate into the working network, in place of whatever was there."""
        state = self.state
        name = f"{layer}:input"
        if name in state.hooks:
            state.hooks.pop(name).remove()
        _restore(state.reference, state.working, layer)
        if not candidate.affine.is_identity:
            place_affine(state.working, layer, candidate.affine)
        found = state.working.get_submodule(layer)
        weight = cast(torch.Tensor, found.weight)
        rows = candidate.codes * _step(candidate.grid, candidate.codes)
        weight.data.copy_(rows.view_as(weight))
        cast(torch.Tensor, found.bias).data.copy_(candidate.bias)
        if candidate.input is not None:
            state.hooks[name] = quantize_input(state.working, layer, candidate.input)

    def _error(self, layer: str, candidate: _Candidate, evaluation: _Evaluation) -> float:
        self._install(layer, candidate)
        return evaluation.error()

    def _record(self, layer: str, problem: LayerProblem, chosen: _Candidate) -> None:
        """Note the layer's grids, and the statistics of its prepared input."""
        self.weights[layer] = chosen.grid
        if chosen.input is None:
            return
        name = f"{layer}:input"
        _, fit = _prepared_histogram(problem, chosen.affine, problem.fit)
        _, held_out = _prepared_histogram(problem, chosen.affine, problem.held_out, extremes=False)
        low = chosen.affine.apply(problem.channel_low).float()
        high = chosen.affine.apply(problem.channel_high).float()
        self.tensors[name] = TensorStatistics(fit, held_out, low.numpy(), high.numpy())
        grid = Grid(chosen.input.quant_min, chosen.input.quant_max, False)
        scale, zero_point = (
            chosen.input.scale.double().view(1).numpy(),
            chosen.input.zero_point.double().view(1).numpy(),
        )
        mse = float(quantization_mse(held_out, scale, zero_point, grid)[0])
        assert chosen.estimator is not None
        self.activations[name] = ActivationPlan(name, chosen.input, chosen.estimator, mse, held_out.mean_square())

    def _solve_output(self, unit: Unit, layer: str) -> None:
        """Choose the grid of a layer's output, for targets that want a Q/DQ pair there."""
        state, name = self.state, f"{layer}:output"
        histograms = (StreamingHistogram(), StreamingHistogram())
        lows: list[torch.Tensor] = []
        highs: list[torch.Tensor] = []

        def watch(output: torch.Tensor, histogram: StreamingHistogram) -> None:
            channel_first = output if output.dim() == 4 and isinstance(found, nn.Conv2d) else output.movedim(-1, 1)
            axes = [axis for axis in range(channel_first.dim()) if axis != 1]
            lows.append(channel_first.amin(axes))
            highs.append(channel_first.amax(axes))
            histogram.update(output, float(output.min()), float(output.max()))

        found = state.working.get_submodule(layer)
        for batches, histogram in ((state.fit(), histograms[0]), (state.held_out(), histograms[1])):
            handle = found.register_forward_hook(lambda _m, _a, output, into=histogram: watch(output, into))
            for _, given in batches:
                unit.run(state.working, given)
            handle.remove()
        fit, held_out = (histogram.result() for histogram in histograms)
        low, high = torch.stack(lows).amin(dim=0), torch.stack(highs).amax(dim=0)
        self.tensors[name] = TensorStatistics(fit, held_out, low.numpy(), high.numpy())
        estimators = estimators_for(self.options.calibrator, self.options.effort)
        steps = max(SEARCH_STEPS[self.options.effort], 40)
        statistics = Statistics(self.tensors, state.fit_images, state.held_out_images)
        plan = plan_activation(name, statistics, activation_grid(self.target), estimators, steps)
        self.activations[name] = plan
        state.hooks[name] = quantize_output(state.working, layer, plan.qparams)

    def _adaround(self, unit: Unit, layers: list[str], evaluation: _Evaluation) -> None:
        """Let AdaRound move the unit's codes; keep what it found only where the held-out error falls."""
        from edgeconvnext.quantize.adaround import refine

        state = self.state
        share = sum(self.macs[layer] for layer in layers) / sum(self.macs[layer] for layer in self.precisions)
        before = evaluation.error()
        kept = {layer: copy.deepcopy(state.working.get_submodule(layer).state_dict()) for layer in layers}
        grids = {layer: self.weights[layer] for layer in layers}
        inputs = (state.expected, state.given, state.fit_images)
        refine(unit, state.reference, state.working, grids, inputs, seconds=share * self.adaround_seconds)
        after = evaluation.error()
        for layer in layers:
            found, decision = state.working.get_submodule(layer), self.decisions[layer]
            if after < before:
                self.decisions[layer] = decision.refined("adaround", evaluation.sqnr_db(after))
            else:
                found.load_state_dict(kept[layer])


class _Evaluation:
    """The error of a unit's output on held-out images, kept in memory: as many as EVALUATION_MACS allow."""

    def __init__(self, state: _State, unit: Unit, macs: int) -> None:
        self.state = state
        self.unit = unit
        count = int(min(MOST_EVALUATED, max(FEWEST_EVALUATED, EVALUATION_MACS / max(macs, 1)), state.held_out_images))
        rows = torch.linspace(0, state.held_out_images - 1, count).round().long() + state.fit_images
        self.inputs = state.given.pick(rows.tolist())
        expected = state.expected.pick(rows.tolist())
        self.targets = [unit.branch(state.reference, batch) for batch in expected.split(BATCH)]
        self.power = sum(float(target.double().square().sum()) for target in self.targets)

    def error(self) -> float:
        """Squared error of the working network's unit against the float network's."""
        total = 0.0
        for batch, target in zip(self.inputs.split(BATCH), self.targets, strict=True):
            total += float((self.unit.branch(self.state.working, batch) - target).square().sum(dtype=torch.float64))
        return total

    def sqnr_db(self, error: float) -> float:
        return float(10 * torch.log10(torch.tensor(max(self.power, 1e-30) / max(error, 1e-30))))


def affine_rows(problem: LayerProblem, affine: Affine, rows: torch.Tensor) -> torch.Tensor:
    """Return sampled inputs (positions, G, K) behind an affine."""
    if affine.is_identity:
        return rows
    return rows * affine.scale[problem.channels] + affine.shift[problem.channels]


def _columns(problem: LayerProblem, affine: Affine, weight: torch.Tensor) -> torch.Tensor:
    """Return the weight for inputs behind an affine, (G, R, K) float64."""
    return weight / affine.scale.double()[problem.channels][:, None]


def _prepared_histogram(
    problem: LayerProblem, affine: Affine, sample: torch.Tensor, extremes: bool = True
) -> tuple[torch.Tensor, Histogram]:
    """Return the sampled inputs behind an affine and their histogram. extremes: of all values, not of the sample's only."""
    rows = affine_rows(problem, affine, sample)
    low, high = float(rows.min()), float(rows.max())
    if extremes:
        low = min(low, float(affine.apply(problem.channel_low).min()))
        high = max(high, float(affine.apply(problem.channel_high).max()))
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
    problem: LayerProblem, weight: torch.Tensor, affine: Affine, qparams: QParams, rounded: torch.Tensor | None
) -> float:
    """Mean squared error of the layer's output on held-out inputs, its mean taken off (the bias will).

    weight: (G, R, K), for inputs without affine. rounded: (G, R, K), for inputs behind it; None: the unrounded weight.
    """
    prepared = _columns(problem, affine, weight).float()
    inputs = affine_rows(problem, affine, problem.held_out)
    quantized = round_activation(inputs, qparams)
    # Q(x) W' - x W = (Q(x) - x) W, one product, where the weight is the same.
    pairs = [(quantized - inputs, prepared)] if rounded is None else [(quantized, rounded.float()), (-inputs, prepared)]
    terms = [
        rows[:, 0] @ used[0].T if weight.shape[0] == 1 else torch.einsum("pgk,grk->pgr", rows, used)
        for rows, used in pairs
    ]
    error = sum(terms[1:], terms[0])
    return float((error - error.mean(dim=0)).square().mean(dtype=torch.float64))


def _step(grid: QParams, weight: torch.Tensor) -> torch.Tensor:
    """Return the step of every weight, in a shape that broadcasts to (G, R, K), float64."""
    groups, rows, columns = weight.shape
    scale = grid.scale.double()
    if grid.blocked:
        return scale.repeat_interleave(columns // scale.shape[1], dim=1).view(groups, rows, columns)
    return scale.view(groups, rows, 1)


def _restore(reference: Network, working: Network, layer: str) -> None:
    """Take the affine in front of a layer out of the working network again; weights are set by the caller."""
    norm, original = norm_before(working, layer), norm_before(reference, layer)
    if norm is not None and original is not None:
        norm.load_state_dict(original.state_dict())
    found = working.get_submodule(layer)
    if "input_affine" in found._modules:
        del found.input_affine
        found.__class__ = nn.Conv2d if isinstance(found, nn.Conv2d) else nn.Linear


def _weight(module: Network, layer: str) -> torch.Tensor:
    return cast(torch.Tensor, module.get_submodule(layer).weight).detach()
