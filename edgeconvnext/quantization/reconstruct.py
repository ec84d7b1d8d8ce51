"""The accuracy engine: layer by layer, with later layers seeing the quantised earlier ones, every choice by held-out error.

For each layer, in forward order, one pass over the calibration images gathers what reaches it in the quantised network and what
it should answer according to the float network (`layer_statistics`). Then compete, on held-out images:

  smoothing     a scale and shift per channel in front of the quantizer, taken back exactly in the layer after it (`smoothing`)
  range         five estimators (`ranges`)
  rounding      nearest, GPTQ, GPTQ of weights re-fitted to the quantised inputs (`rounding`), AdaRound of a block (`adaround`)

each with the bias corrected by the output's measured shift; zeros of a 2:4 sparse layer stay zeros in all of them
(`candidates`). The first two are ranked by the error of the layer's own output, the finalists and the rounding by the error of
the block's output. What wins is put into a copy of the network, whose weights then lie on their grids: exporting it with the
plan's Q/DQ pairs changes nothing any more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import QuantizationError
from edgeconvnext.model.macs import layer_macs
from edgeconvnext.model.network import Network
from edgeconvnext.model.units import Unit, units_of
from edgeconvnext.progress import progress_bar
from edgeconvnext.quantization.candidates import (
    Candidate,
    Candidates,
    ReconstructionOptions,
    layer_weight,
    scaled_histogram,
    step_of,
)
from edgeconvnext.quantization.fake import quantize_input, quantize_output
from edgeconvnext.quantization.float16_range import Float16Range, fit_float16, peaks_of
from edgeconvnext.quantization.histogram import StreamingHistogram
from edgeconvnext.quantization.layer_checkpoints import LayerCheckpoints
from edgeconvnext.quantization.layer_statistics import LayerStatistics, gather, weight_rows
from edgeconvnext.quantization.plan import ActivationPlan, LayerDecision, QParams, QuantPlan
from edgeconvnext.quantization.planning import (
    SEARCH_STEPS,
    activation_code_range,
    estimators_for,
    plan_activation,
)
from edgeconvnext.quantization.precision import Precision
from edgeconvnext.quantization.ranges import CodeRange, quantization_mse
from edgeconvnext.quantization.statistics import Statistics, TensorStatistics
from edgeconvnext.rewrite.channel_scaling import ScaledConv2d, ScaledLinear, norm_before, place_scaling
from edgeconvnext.rewrite.paired_networks import PairedNetworks, StoredImages
from edgeconvnext.sqnr import power_ratio_db
from edgeconvnext.targets import Target

# Multiply-adds of one evaluation of a block on held-out images; between these two numbers of images.
EVALUATION_MACS = 1e9
FEWEST_EVALUATED, MOST_EVALUATED = 12, 96


@dataclass(frozen=True)
class Reconstructed:
    """The network with its weights on their grids and scalings in place, the plan of its Q/DQ pairs, and what was seen.

    statistics: histograms of the inputs behind their scalings, and how many images were fitted on and held out. float16: what
    float16 does not hold of the float network; None where the target's float type is another one.
    """

    module: Network
    plan: QuantPlan
    statistics: Statistics
    float16: Float16Range | None = None


class _State(PairedNetworks):
    """The float network and the one under work. hooks: what quantises activations of the latter, by tensor."""

    def __init__(self, reference: Network, working: Network, images: StoredImages, folder: Path) -> None:
        super().__init__(reference, working, images, folder)
        self.hooks: dict[str, RemovableHandle] = {}


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
    checkpoints: LayerCheckpoints | None = None,
) -> Reconstructed:
    """Quantise `module` layer by layer; it is left as it is.

    module: exactly folded, for the target's input range. precisions: bits of every layer that is quantised. fit, held_out: batches
    of images (N, C, H, W) as the module takes them; each is read once. preprocess: the checkpoint's own. folder: where block
    inputs are kept meanwhile, 8 bytes an element. checkpoints: layers finished before are taken from there, and each that
    is finished is kept there.

    Raises QuantizationError when there are no images, or an activation is NaN or infinite.
    """
    options = options or ReconstructionOptions()
    with StoredImages(folder, fit, held_out) as images:
        counts = (images.fit_images, images.held_out_images)
        if not all(counts):
            raise QuantizationError(
                f"Calibration needs images to fit ranges on and images to judge them on; there are {counts[0]} and {counts[1]}. "
                "Give at least 3 images, better 100 or more."
            )
        float16 = None
        if target.float_type == "float16":
            peaks = peaks_of(module, chain(images.fit(), images.held_out()))
            module, float16 = fit_float16(module, peaks)
        with _State(module, copy.deepcopy(module).eval(), images, folder) as state:
            engine = _Engine(state, target, precisions, preprocess, options, checkpoints)
            outputs = (target.quantize.takes_output(*layer) for layer in engine.candidates.kinds.items())
            total = len(precisions) + sum(outputs)
            with progress_bar("Quantising layer by layer", total) as advance:
                for unit in units_of(module):
                    engine.solve(unit, advance)
                    if unit.name != "head":
                        state.advance(unit)
            for handle in state.hooks.values():
                handle.remove()
            exponents = () if float16 is None else float16.stream_exponents
            plan = QuantPlan(engine.activations, engine.weights, engine.decisions, exponents)
            return Reconstructed(state.working, plan, Statistics(engine.tensors, *counts), float16)


class _Engine:
    """Chooses for one layer after the other; what was chosen so far is in `activations`, `weights` and the working network."""

    def __init__(
        self,
        state: _State,
        target: Target,
        precisions: dict[str, Precision],
        preprocess: Preprocess,
        options: ReconstructionOptions,
        checkpoints: LayerCheckpoints | None,
    ) -> None:
        self.state = state
        self.checkpoints = checkpoints
        self.target = target
        self.precisions = precisions
        self.options = options
        self.candidates = Candidates(state.reference, target, preprocess, options)
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
                if not self._restored(layer, [layer]):
                    self._solve_layer(unit, layer, evaluation)
                    self._keep(layer, [layer])
                advance(1)
            if self.target.quantize.takes_output(layer, self.candidates.kinds[layer]):
                if not self._restored(f"{layer}:output", []):
                    self._solve_output(unit, layer)
                    self._keep(f"{layer}:output", [])
                advance(1)
        # AdaRound moves codes to the next whole number, which a palette may not hold.
        chosen = [layer for layer in unit.layers if layer in self.weights and self.weights[layer].levels is None]
        if self.options.adaround and chosen and not self._restored(f"{unit.name}:adaround", chosen):
            self._adaround(unit, chosen, evaluation)
            self._keep(f"{unit.name}:adaround", chosen)

    def _keep(self, step: str, layers: list[str]) -> None:
        """Keep what a step made, where steps are kept. step: a layer, a layer's output, or a unit's AdaRound."""
        if self.checkpoints is None:
            return
        names = {step, f"{step}:input"}
        plan = QuantPlan(
            {name: self.activations[name] for name in names & self.activations.keys()},
            {layer: self.weights[layer] for layer in layers},
            {layer: self.decisions[layer] for layer in layers},
        )
        tensors = {name: self.tensors[name] for name in names & self.tensors.keys()}
        state = self.state
        self.checkpoints.save(step, plan, state.working, Statistics(tensors, state.fit_images, state.held_out_images))

    def _restored(self, step: str, layers: list[str]) -> bool:
        """Put a step that was finished before an interruption in its place; say whether there was one."""
        if self.checkpoints is None:
            return False
        working = self.state.working
        stored = self.checkpoints.restore(step, working, scalings=layers == [step])
        if stored is None:
            return False
        plan, statistics = stored
        self.activations |= plan.activations
        self.weights |= plan.weights
        self.decisions |= plan.decisions
        self.tensors |= statistics.tensors
        for name, activation in plan.activations.items():
            layer, _, side = name.partition(":")
            quantize = quantize_input if side == "input" else quantize_output
            self.state.hooks[name] = quantize(working, layer, activation.qparams)
        return True

    def _solve_layer(self, unit: Unit, layer: str, evaluation: _Evaluation) -> None:
        state, precision = self.state, self.precisions[layer]
        images = (state.fit_images, state.held_out_images)
        statistics = gather(state.reference, state.working, unit, layer, state.fit, state.held_out, images)
        weight = weight_rows(state.reference.get_submodule(layer), layer_weight(state.reference, layer).double())
        code_range = (
            None if precision.activations is None else activation_code_range(self.target, precision.activations)
        )
        finalists = self.candidates.scalings(layer, statistics, weight, code_range, precision)
        plain = self.candidates.plain(layer, statistics, weight, code_range, precision)
        before = self._error(layer, plain, evaluation)
        scored: dict[str, tuple[float, Candidate]] = {}
        if self.options.rounding in ("auto", "nearest") and self.options.smoothing != "force":
            scored["none, nearest"] = (before, plain)
        for scaling, qparams, estimator in finalists:
            for candidate in self.candidates.rounded(layer, statistics, weight, scaling, qparams, estimator, precision):
                name = f"{scaling.name}, {candidate.rounding}"
                scored[name] = (self._error(layer, candidate, evaluation), candidate)
        best = min(scored, key=lambda name: scored[name][0])
        error, chosen = scored[best]
        self._install(layer, chosen)
        self._record(layer, statistics, chosen)
        self.decisions[layer] = LayerDecision(
            chosen.scaling,
            chosen.rounding,
            evaluation.sqnr_db(error),
            evaluation.sqnr_db(before),
            {name: evaluation.sqnr_db(value) for name, (value, _) in scored.items()},
        )

    def _install(self, layer: str, candidate: Candidate) -> None:
        """Put a candidate into the working network, in place of whatever was there."""
        state = self.state
        name = f"{layer}:input"
        if name in state.hooks:
            state.hooks.pop(name).remove()
        _restore(state.reference, state.working, layer)
        if not candidate.scaling.is_identity:
            place_scaling(state.working, layer, candidate.scaling)
        layer_module = state.working.get_submodule(layer)
        weight = cast(torch.Tensor, layer_module.weight)
        rows = candidate.codes * step_of(candidate.weight_qparams, candidate.codes)
        weight.data.copy_(rows.view_as(weight))
        cast(torch.Tensor, layer_module.bias).data.copy_(candidate.bias)
        if candidate.input_qparams is not None:
            state.hooks[name] = quantize_input(state.working, layer, candidate.input_qparams)

    def _error(self, layer: str, candidate: Candidate, evaluation: _Evaluation) -> float:
        self._install(layer, candidate)
        return evaluation.error()

    def _record(self, layer: str, statistics: LayerStatistics, chosen: Candidate) -> None:
        """Note the layer's qparams, and the statistics of its input behind the scaling."""
        self.weights[layer] = chosen.weight_qparams
        if chosen.input_qparams is None:
            return
        name = f"{layer}:input"
        _, fit = scaled_histogram(statistics, chosen.scaling, statistics.fit)
        _, held_out = scaled_histogram(statistics, chosen.scaling, statistics.held_out, extremes=False)
        low = chosen.scaling.apply(statistics.channel_low).float()
        high = chosen.scaling.apply(statistics.channel_high).float()
        self.tensors[name] = TensorStatistics(fit, held_out, low.numpy(), high.numpy())
        code_range = CodeRange(chosen.input_qparams.quant_min, chosen.input_qparams.quant_max, False)
        scale, zero_point = (
            chosen.input_qparams.scale.double().view(1).numpy(),
            chosen.input_qparams.zero_point.double().view(1).numpy(),
        )
        mse = float(quantization_mse(held_out, scale, zero_point, code_range)[0])
        assert chosen.estimator is not None
        self.activations[name] = ActivationPlan(
            name, chosen.input_qparams, chosen.estimator, mse, held_out.mean_square()
        )

    def _solve_output(self, unit: Unit, layer: str) -> None:
        """Choose the qparams of a layer's output, for targets that want a Q/DQ pair there."""
        state, name = self.state, f"{layer}:output"
        histograms = (StreamingHistogram(), StreamingHistogram())
        lows: list[torch.Tensor] = []
        highs: list[torch.Tensor] = []

        def watch(output: torch.Tensor, histogram: StreamingHistogram) -> None:
            channel_first = (
                output if output.dim() == 4 and isinstance(layer_module, nn.Conv2d) else output.movedim(-1, 1)
            )
            axes = [axis for axis in range(channel_first.dim()) if axis != 1]
            lows.append(channel_first.amin(axes))
            highs.append(channel_first.amax(axes))
            histogram.update(output, float(output.min()), float(output.max()))

        layer_module = state.working.get_submodule(layer)
        for batches, histogram in ((state.fit(), histograms[0]), (state.held_out(), histograms[1])):
            handle = layer_module.register_forward_hook(lambda _m, _a, output, into=histogram: watch(output, into))
            for _, working_input in batches:
                unit.run(state.working, working_input)
            handle.remove()
        fit, held_out = (histogram.result() for histogram in histograms)
        low, high = torch.stack(lows).amin(dim=0), torch.stack(highs).amax(dim=0)
        self.tensors[name] = TensorStatistics(fit, held_out, low.numpy(), high.numpy())
        estimators = estimators_for(self.options.calibrator, self.options.effort)
        steps = max(SEARCH_STEPS[self.options.effort], 40)
        statistics = Statistics(self.tensors, state.fit_images, state.held_out_images)
        plan = plan_activation(name, statistics, activation_code_range(self.target), estimators, steps)
        self.activations[name] = plan
        state.hooks[name] = quantize_output(state.working, layer, plan.qparams)

    def _adaround(self, unit: Unit, layers: list[str], evaluation: _Evaluation) -> None:
        """Let AdaRound move the unit's codes; keep its codes only where the held-out error falls."""
        from edgeconvnext.quantization.adaround import refine

        state = self.state
        share = sum(self.macs[layer] for layer in layers) / sum(self.macs[layer] for layer in self.precisions)
        before = evaluation.error()
        codes_before = {layer: copy.deepcopy(state.working.get_submodule(layer).state_dict()) for layer in layers}
        qparams = {layer: self.weights[layer] for layer in layers}
        inputs = (state.reference_file, state.working_file, state.fit_images)
        refine(unit, state.reference, state.working, qparams, inputs, seconds=share * self.adaround_seconds)
        after = evaluation.error()
        for layer in layers:
            if after < before:
                self.decisions[layer] = self.decisions[layer].refined("adaround", evaluation.sqnr_db(after))
            else:
                state.working.get_submodule(layer).load_state_dict(codes_before[layer])


class _Evaluation:
    """The error of a unit's output on held-out images, in memory: as many as EVALUATION_MACS allow."""

    def __init__(self, state: _State, unit: Unit, macs: int) -> None:
        self.state = state
        self.unit = unit
        count = int(min(MOST_EVALUATED, max(FEWEST_EVALUATED, EVALUATION_MACS / max(macs, 1)), state.held_out_images))
        rows = torch.linspace(0, state.held_out_images - 1, count).round().long() + state.fit_images
        self.inputs = state.working_file.pick(rows.tolist())
        reference_inputs = state.reference_file.pick(rows.tolist())
        self.at_once = state.working_file.rows_at_once
        self.targets = [unit.branch(state.reference, batch) for batch in reference_inputs.split(self.at_once)]
        self.power = sum(float(target.double().square().sum()) for target in self.targets)

    def error(self) -> float:
        """Squared error of the working network's unit against the float network's."""
        total = 0.0
        for batch, target in zip(self.inputs.split(self.at_once), self.targets, strict=True):
            total += float((self.unit.branch(self.state.working, batch) - target).square().sum(dtype=torch.float64))
        return total

    def sqnr_db(self, error: float) -> float:
        """Return the SQNR of the unit's output at this squared error."""
        return power_ratio_db(self.power, error)


def _restore(reference: Network, working: Network, layer: str) -> None:
    """Take the scaling in front of a layer out of the working network again; weights are set by the caller."""
    norm, original = norm_before(working, layer), norm_before(reference, layer)
    if norm is not None and original is not None:
        norm.load_state_dict(original.state_dict())
    if isinstance(working.get_submodule(layer), ScaledLinear | ScaledConv2d):
        working.set_submodule(layer, copy.deepcopy(reference.get_submodule(layer)))
