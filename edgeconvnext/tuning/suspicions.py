"""What looks wrong in an analysis, in plain sentences: the layer, the figure, and what to try.

Each rule is a function from the records to its findings, without images or networks. The limits are set so that a network with
bell-shaped tensors gives no finding; docs/analyze.md says what each one means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

from edgeconvnext.backends import backend
from edgeconvnext.schema import format
from edgeconvnext.schema.analysis import Analysis, LayerAnalysis, Setting, Suspicion, SuspicionKind, TensorAnalysis

MOST_RARE_RANGE = 0.5
"""Of a normal distribution's range over a million values, the rarest 0.1 % take a third."""

MOST_SATURATED = 0.01
MOST_UNUSED = 0.4
MOST_ONE_SIDED = 0.25
"""A tensor whose smaller side reaches less than this share of its larger one leaves half of a symmetric grid empty."""

MOST_BEYOND_FIT = 0.5
LEAST_COSTLY_KL = 1e-3
"""Nats; a layer that costs less changes hardly any answer, whatever its share."""

MOST_KL_SHARE = 1 / 3
MOST_KL_JUMP = 1 / 2
FEWEST_COMPARED = 4
LARGEST_WEIGHT_GAP_DB = 12.0
OFTEN_OUTLIERS = 0.1
"""Where more of the channels than this reach far, they are how the tensor is spread, not outliers."""

NAMED_CHANNELS = 4


def with_suspicions(analysis: Analysis) -> Analysis:
    """Return the analysis with its findings: about calibration first, then by what their layers cost alone."""
    found = [suspicion for rule in _RULES for suspicion in rule(analysis)]
    cost = {layer.layer: layer.kl_alone or 0.0 for layer in analysis.layers}
    found.sort(key=lambda suspicion: (suspicion.kind != "few-images", -cost[suspicion.layer]))
    return analysis.model_copy(update={"suspicions": found})


def few_images(analysis: Analysis) -> Iterator[Suspicion]:
    """Held-out values lie far outside of everything that ranges were fitted on."""
    found = [(tensor, layer) for layer, tensor in _tensors(analysis) if tensor.beyond_fit > MOST_BEYOND_FIT]
    if not found:
        return
    setting = analysis.setting
    worst, layer = max(found, key=lambda entry: entry[0].beyond_fit)
    others = f" (and {len(found) - 1} other tensors likewise)" if found[1:] else ""
    wanted = max(128, 4 * (setting.fit_images + setting.held_out_images))
    yield _finding(
        "few-images",
        layer,
        f"{_title(worst)}: held-out images reach {_range(worst.observed_low, worst.observed_high)}, and the {setting.fit_images} "
        f"images that ranges were fitted on only {_range(worst.fit_low, worst.fit_high)}{others}",
        f"more calibration images (--num-images {wanted}) of the kind the network will see",
    )


def costly_layer(analysis: Analysis) -> Iterator[Suspicion]:
    """One layer causes most of what all layers cost alone."""
    measured = _measured(analysis)
    total = sum(kl for _, kl, _ in measured)
    if len(measured) < FEWEST_COMPARED:
        return
    for layer, kl, _ in measured:
        if kl > max(LEAST_COSTLY_KL, MOST_KL_SHARE * total):
            yield _finding(
                "costly-layer",
                layer,
                f"{layer.layer} alone causes {format.share(kl / total)} of what all layers cost alone "
                f"({format.significant(kl)} of {format.significant(total)} nats), with {format.share(layer.macs_share)} of MACs",
                _more_bits(analysis.setting, layer),
                "--max-drop 0.5, which finds such layers itself",
            )


def error_adds_up(analysis: Analysis) -> Iterator[Suspicion]:
    """The error of the network so far jumps at a layer that costs little alone."""
    measured = _measured(analysis)
    if len(measured) < FEWEST_COMPARED:
        return
    total = sum(kl for _, kl, _ in measured)
    highest = max(cumulative for *_, cumulative in measured)
    before = 0.0
    for layer, kl, cumulative in measured:
        jump = cumulative - before
        known = kl > max(LEAST_COSTLY_KL, MOST_KL_SHARE * total)
        if jump > max(LEAST_COSTLY_KL, MOST_KL_JUMP * highest) and not known:
            yield _finding(
                "error-adds-up",
                layer,
                f"{layer.layer}: with all layers up to this one quantised the KL divergence jumps from "
                f"{format.significant(before)} to {format.significant(cumulative)} nats, and this layer alone costs "
                f"{format.significant(kl)}: the errors that reach it add up",
                "--effort default, which fits each layer to the quantised ones before it"
                if analysis.setting.effort == "quick"
                else "--max-drop 0.5, which gives back the costliest layers",
                _more_bits(analysis.setting, layer),
            )
        before = cumulative


def rare_values(analysis: Analysis) -> Iterator[Suspicion]:
    """A few values use most of the grid's range, and the others share what is left."""
    for layer, tensor in _tensors(analysis):
        if tensor.rare_range > MOST_RARE_RANGE:
            yield _finding(
                "rare-values",
                layer,
                f"{_title(tensor)}: 0.1 % of values use {format.share(tensor.rare_range)} of the range",
                *_narrower_range(analysis.setting, tensor),
                *_evened_out(analysis.setting, layer, tensor),
                _wider_codes(analysis.setting, layer, tensor),
            )


def outlier_channels(analysis: Analysis) -> Iterator[Suspicion]:
    """A few channels reach many times as far as the others and set the step for all."""
    for layer, tensor in _tensors(analysis):
        count = len(tensor.outlier_channels)
        if 0 < count <= max(1, OFTEN_OUTLIERS * tensor.channels):
            names = ", ".join(str(channel) for channel in tensor.outlier_channels[:NAMED_CHANNELS])
            more = f" and {count - NAMED_CHANNELS} more" if count > NAMED_CHANNELS else ""
            who = f"channel {names} reaches" if count == 1 else f"channels {names}{more} reach up to"
            yield _finding(
                "outlier-channels",
                layer,
                f"{_title(tensor)}: {who} {format.significant(tensor.outlier_reach)} times as far as the median channel",
                *_evened_out(analysis.setting, layer, tensor),
                _wider_codes(analysis.setting, layer, tensor),
            )


def saturation(analysis: Analysis) -> Iterator[Suspicion]:
    """More values are clipped than any range estimator would give up for finer steps."""
    for layer, tensor in _tensors(analysis):
        if tensor.saturated > MOST_SATURATED:
            minmax = tensor.estimator == "minmax"
            yield _finding(
                "saturation",
                layer,
                f"{_title(tensor)}: {format.share(tensor.saturated)} of held-out values lie outside of the grid, "
                f"{_range(tensor.low, tensor.high)}, and are clipped",
                "more calibration images (--num-images)" if minmax else "--calibrator minmax",
                _wider_codes(analysis.setting, layer, tensor),
            )


def unused_codes(analysis: Analysis) -> Iterator[Suspicion]:
    """Many codes of the grid are used by no value, and no rare value explains it."""
    setting = analysis.setting
    for layer, tensor in _tensors(analysis):
        unused = tensor.unused_codes
        if unused is None or unused <= MOST_UNUSED or tensor.rare_range > MOST_RARE_RANGE:
            continue
        low, high = min(tensor.observed_low, tensor.fit_low), max(tensor.observed_high, tensor.fit_high)
        sides = sorted((max(0.0, -low), max(0.0, high)))
        symmetric = abs(tensor.low + tensor.high) <= 2 * tensor.scale
        if symmetric and sides[0] < MOST_ONE_SIDED * sides[1]:
            yield _finding(
                "unused-codes",
                layer,
                f"{_title(tensor)}: {format.share(unused)} of the codes are used by no value, because the values, "
                f"{_range(low, high)}, lie on one side of a symmetric grid",
                *_shifted(setting, layer, tensor),
                _wider_codes(setting, layer, tensor),
            )
        else:
            yield _finding(
                "unused-codes",
                layer,
                f"{_title(tensor)}: {format.share(unused)} of the codes are used by no value; the grid spans "
                f"{_range(tensor.low, tensor.high)}, the values {_range(low, high)}",
                *_narrower_range(setting, tensor),
                _wider_codes(setting, layer, tensor),
            )


def coarse_weights(analysis: Analysis) -> Iterator[Suspicion]:
    """A few weights set the step of their row, and most others round to 0."""
    setting = analysis.setting
    for layer in analysis.layers:
        weights = layer.weights
        if weights is None:
            continue
        # Re-fitted and AdaRounded weights differ from the float ones on purpose.
        moved = any(word in (layer.rounding or "") for word in ("re-fitted", "adaround"))
        others = [
            each.weights.sqnr_db
            for each in analysis.layers
            if each.weights is not None and each is not layer and each.weights.bits == weights.bits
        ]
        typical = median(others) if len(others) >= FEWEST_COMPARED - 1 else weights.sqnr_db
        advice = (
            "--effort default" if setting.effort == "quick" else None,
            f'`[layers."{layer.layer}"] weights = 8` in a plan file (--plan)' if weights.bits == 4 else None,
            _float(layer),
        )
        if weights.coarse_rows:
            rows = f"{weights.coarse_rows} of {weights.rows} rows"
            yield _finding(
                "coarse-weights",
                layer,
                f"{layer.layer} weights: in {rows} more than half of the weights round to 0, because their largest is up to "
                f"{format.significant(weights.spread)} times the median",
                *advice,
            )
        elif typical - weights.sqnr_db > LARGEST_WEIGHT_GAP_DB and not moved:
            yield _finding(
                "coarse-weights",
                layer,
                f"{layer.layer} weights: {format.decibel(weights.sqnr_db)} SQNR, where the median layer has "
                f"{format.decibel(typical)}; the largest of a row is up to {format.significant(weights.spread)} times the median",
                *advice,
            )


def constant_channels(analysis: Analysis) -> Iterator[Suspicion]:
    """Channels that never change carry nothing and cost multiply-adds."""
    for layer, tensor in _tensors(analysis):
        count = len(tensor.constant_channels)
        if count:
            names = ", ".join(str(channel) for channel in tensor.constant_channels[:NAMED_CHANNELS])
            more = ", ..." if count > NAMED_CHANNELS else ""
            yield _finding(
                "constant-channels",
                layer,
                f"{_title(tensor)}: {count} of {tensor.channels} channels never change ({names}{more})",
                "edgeconvnext prune before quantising, which takes such hidden channels out"
                if layer.operator == "pointwise2"
                else "looking at how the checkpoint was trained or converted: the layer before it may be partly empty",
            )


_RULES: tuple[Callable[[Analysis], Iterator[Suspicion]], ...] = (
    few_images,
    costly_layer,
    error_adds_up,
    rare_values,
    outlier_channels,
    saturation,
    unused_codes,
    coarse_weights,
    constant_channels,
)


def _finding(kind: SuspicionKind, layer: LayerAnalysis, fact: str, *advice: str | None) -> Suspicion:
    tries = list(dict.fromkeys(each for each in advice if each))[:3]
    return Suspicion(kind=kind, layer=layer.layer, sentence=f"{fact}; try {', or '.join(tries)}.")


def _measured(analysis: Analysis) -> list[tuple[LayerAnalysis, float, float]]:
    """Return the layers whose sensitivity was measured, with it alone and cumulative."""
    return [
        (layer, layer.kl_alone, layer.kl_cumulative)
        for layer in analysis.layers
        if layer.kl_alone is not None and layer.kl_cumulative is not None
    ]


def _tensors(analysis: Analysis) -> Iterator[tuple[LayerAnalysis, TensorAnalysis]]:
    return ((layer, tensor) for layer in analysis.layers for tensor in layer.tensors)


def _title(tensor: TensorAnalysis) -> str:
    return tensor.name.replace(":", " ")


def _range(low: float, high: float) -> str:
    return f"{format.significant(low)} to {format.significant(high)}"


def _float(layer: LayerAnalysis) -> str:
    return f'`[layers."{layer.layer}"] float = true` in a plan file (--plan)'


def _wider_codes(setting: Setting, layer: LayerAnalysis, tensor: TensorAnalysis) -> str:
    """Finer steps for one tensor: 16 bits where the target has them and the tensor does not, else float."""
    if tensor.name.endswith(":output"):
        return f"leaving {layer.operator} out of `outputs` under [quantize] in a target file of your own"
    if setting.wide_activations and tensor.bits < 16:
        return f'`[layers."{layer.layer}"] activations = 16` in a plan file (--plan)'
    return _float(layer)


def _more_bits(setting: Setting, layer: LayerAnalysis) -> str:
    if layer.weights is not None and layer.weights.bits == 4:
        return f'`[layers."{layer.layer}"] weights = 8` in a plan file (--plan)'
    return _float(layer)


def _narrower_range(setting: Setting, tensor: TensorAnalysis) -> Iterator[str]:
    if tensor.estimator == "minmax":
        yield "--calibrator percentile" if setting.calibrator == "minmax" else "--calibrator mse"
    elif tensor.estimator not in ("percentile", "image") and setting.calibrator == "auto":
        yield "--calibrator percentile"


def _evened_out(setting: Setting, layer: LayerAnalysis, tensor: TensorAnalysis) -> Iterator[str]:
    """Scales per channel in front of the quantizer, where they are possible and were not tried."""
    if not tensor.name.endswith(":input"):
        return
    if setting.effort == "quick":
        yield "--effort default, which scales channels in front of quantizers"
    elif setting.smoothing == "none":
        yield "leaving out --smoothing none, so that channels are scaled in front of the quantizer"
    if layer.operator == "depthwise" and not setting.prepares_depthwise:
        yield "`depthwise = true` under [quantize.smoothing] in a target file of your own"
    if layer.operator == "pointwise2" and setting.prepares_hidden != "channel":
        yield '`hidden = "channel"` under [quantize.smoothing] in a target file of your own'


def _shifted(setting: Setting, layer: LayerAnalysis, tensor: TensorAnalysis) -> Iterator[str]:
    """A shift in front of the quantizer, or a zero point in it."""
    if layer.operator == "pointwise2" and tensor.name.endswith(":input"):
        if setting.prepares_hidden == "none":
            yield '`hidden = "shift"` under [quantize.smoothing] in a target file of your own'
        elif setting.effort == "quick":
            yield "--effort default, which shifts the values in front of the quantizer"
        elif setting.smoothing == "none":
            yield "leaving out --smoothing none, so that the values are shifted in front of the quantizer"
    if not setting.affine_activations and backend(setting.exporter).limits.zero_points:
        yield '`scheme = "affine"` under [quantize.activations] in a target file of your own'
