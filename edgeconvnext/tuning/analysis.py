"""Where the quantization error comes from: figures for each layer of a plan and each tensor around it.

What a tensor looks like is read from its calibration statistics; only the sensitivities need passes over images. The records are
the content of analysis.json; docs/analyze.md documents every key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from edgeconvnext.choices import Operator
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network
from edgeconvnext.quantization.layer_errors import rounded_weight_sqnr_db, scaled_weight
from edgeconvnext.quantization.plan import ActivationPlan, QParams, QuantPlan
from edgeconvnext.quantization.statistics import Statistics, TensorStatistics
from edgeconvnext.schema.analysis import Analysis, LayerAnalysis, Setting, TensorAnalysis, WeightAnalysis
from edgeconvnext.tuning.sensitivity import Sensitivity, sensitivities

BINS = 64
"""Bins of the histograms before and after quantization."""

RAREST = 0.001
"""Share of values that the range of the others is compared with."""

OUTLIER_REACH = 8.0
"""A channel whose largest magnitude is more than so many times the median channel's is an outlier."""

VALUES_PER_CODE = 16
"""Below so many values per code of an 8-bit grid, a code that none of them uses says nothing."""


def measure(
    folded: Network,
    prepared: Network,
    plan: QuantPlan,
    statistics: Statistics,
    images: Sequence[torch.Tensor],
    *,
    macs: Mapping[str, int],
    setting: Setting,
) -> Analysis:
    """Return the figures of every layer of `plan`, in forward order, without suspicions.

    folded: the float network; prepared: the same with scalings and codes in place. images: held-out batches, (N, C, H, W), for the
    sensitivities. macs: multiply-adds by layer.
    """
    costs = {cost.layer: cost for cost in sensitivities(folded, prepared, plan, images)} if plan.weights else {}
    every = sum(macs.values())
    layers = [
        _layer(layer, operator, folded, prepared, plan, statistics, costs.get(layer), macs[layer] / every)
        for layer, operator in weighted_layers(folded).items()
        if layer in plan.weights or any(f"{layer}:{side}" in plan.activations for side in ("input", "output"))
    ]
    last = list(costs.values())[-1] if costs else None
    return Analysis(
        setting=setting,
        kl=None if last is None else last.kl_cumulative,
        agreement=None if last is None else last.agreement_cumulative,
        layers=layers,
    )


def _layer(
    layer: str,
    operator: Operator,
    folded: Network,
    prepared: Network,
    plan: QuantPlan,
    statistics: Statistics,
    cost: Sensitivity | None,
    macs_share: float,
) -> LayerAnalysis:
    decision, grid = plan.decisions.get(layer), plan.weights.get(layer)
    tensors = {
        side: analyse_tensor(plan.activations[name], statistics.tensors[name])
        for side in ("input", "output")
        if (name := f"{layer}:{side}") in plan.activations
    }
    weights = None
    if grid is not None:
        sqnr_db = rounded_weight_sqnr_db(folded, prepared, plan, layer)
        weights = analyse_weights(scaled_weight(folded, plan, layer), grid, sqnr_db)
    return LayerAnalysis(
        layer=layer,
        operator=operator,
        macs_share=macs_share,
        kl_alone=None if cost is None else cost.kl_alone,
        kl_cumulative=None if cost is None else cost.kl_cumulative,
        agreement_alone=None if cost is None else cost.agreement_alone,
        agreement_cumulative=None if cost is None else cost.agreement_cumulative,
        smoothing=None if decision is None else decision.scaling.name,
        rounding=None if decision is None else decision.rounding,
        block_sqnr_db=None if decision is None else decision.block_sqnr_db,
        plain_sqnr_db=None if decision is None else decision.plain_sqnr_db,
        weights=weights,
        input=tensors.get("input"),
        output=tensors.get("output"),
    )


def analyse_tensor(activation: ActivationPlan, statistics: TensorStatistics) -> TensorAnalysis:
    """Describe one quantised activation from its grid and its statistics."""
    grid, held_out, fit = activation.qparams, statistics.held_out, statistics.fit
    low, high = grid.range()
    span = max(high - low, 1e-30)
    centers = np.concatenate([fit.centers, held_out.centers])
    counts = np.concatenate([fit.counts, held_out.counts])
    widths = np.concatenate([np.full(len(each.counts), each.width) for each in (fit, held_out)])
    seen = counts > 0
    centers, counts, widths = centers[seen], counts[seen], widths[seen]
    lowest = float(np.clip(min(fit.low, held_out.low), low, high))
    highest = float(np.clip(max(fit.high, held_out.high), low, high))
    core = shortest_interval(np.clip(centers, low, high), counts, 1 - RAREST)
    reach = np.maximum(np.abs(statistics.channel_low), np.abs(statistics.channel_high)).astype(float)
    median = float(np.median(reach))
    outliers = np.flatnonzero(reach > OUTLIER_REACH * median) if median > 0 else np.zeros(0, dtype=int)
    fit_span = max(fit.high - fit.low, 1e-30)
    enough = counts.sum() >= VALUES_PER_CODE * min(256, grid.quant_max - grid.quant_min + 1)
    return TensorAnalysis(
        name=activation.name,
        bits=grid.bits,
        estimator=activation.estimator,
        low=low,
        high=high,
        scale=float(grid.scale),
        zero_point=int(grid.zero_point),
        sqnr_db=activation.sqnr_db,
        observed_low=held_out.low,
        observed_high=held_out.high,
        fit_low=fit.low,
        fit_high=fit.high,
        range_used=min(1.0, (highest - lowest) / span),
        rare_range=min(1.0, max(0.0, (highest - lowest - core) / span)),
        saturated=held_out.share_outside(low - float(grid.scale) / 2, high + float(grid.scale) / 2),
        unused_codes=_unused_codes(grid, centers, widths) if enough else None,
        beyond_fit=max(0.0, held_out.high - fit.high, fit.low - held_out.low) / fit_span,
        channels=len(reach),
        outlier_channels=[int(channel) for channel in outliers],
        outlier_reach=float(reach.max() / median) if median > 0 else 0.0,
        constant_channels=[
            int(channel) for channel in np.flatnonzero(statistics.channel_low == statistics.channel_high)
        ],
        histogram=[float(share) for share in held_out.rebinned(BINS)],
        codes=_code_shares(grid, held_out.centers, held_out.counts),
    )


def shortest_interval(values: np.ndarray, counts: np.ndarray, share: float) -> float:
    """Return the length of the shortest interval that holds `share` of all values. values, counts: (bins,), in any order.

    Example: of the values 0, 1, 2 and 100 once each, three quarters lie within 2.
    """
    order = np.argsort(values, kind="stable")
    values, total = values[order], np.cumsum(counts[order])
    if not len(values):
        return 0.0
    before = np.concatenate([[0.0], total[:-1]])
    # A millionth of slack: sums of many counts in float64 need not be exact.
    ends = np.searchsorted(total, before + share * total[-1] * (1 - 1e-6))
    inside = ends < len(values)
    return float((values[ends[inside]] - values[inside]).min())


def analyse_weights(weight: torch.Tensor, grid: QParams, sqnr_db: float) -> WeightAnalysis:
    """Describe a layer's weight, (out, in, ...), behind its smoothing, and what its grid does to the small ones."""
    codes = grid.nearest_code(weight.double() / grid.broadcast(grid.scale, weight).double()).flatten(1)
    rows = weight.double().abs().flatten(1)
    nonzero = rows > 0
    lost = ((codes == 0) & nonzero).sum(dim=1)
    coarse = lost > 0.5 * nonzero.sum(dim=1)
    median = rows.masked_fill(~nonzero, torch.nan).nanmedian(dim=1).values
    spread = (rows.amax(dim=1) / median).nan_to_num(nan=1.0)
    return WeightAnalysis(
        bits=grid.bits,
        sqnr_db=sqnr_db,
        rows=len(rows),
        coarse_rows=int(coarse.sum()),
        spread=float(spread.max()),
    )


def _codes(grid: QParams, values: np.ndarray) -> np.ndarray:
    codes = np.round(values / float(grid.scale)) + int(grid.zero_point)
    return np.clip(codes, grid.quant_min, grid.quant_max).astype(int) - grid.quant_min


def _unused_codes(grid: QParams, centers: np.ndarray, widths: np.ndarray) -> float:
    """Share of the grid's codes that no bin reaches, of 16-bit grids in groups of 256 codes; a wide bin may hold any it covers."""
    codes = grid.quant_max - grid.quant_min + 1
    groups = min(codes, 256)
    half = np.where(widths > float(grid.scale) * codes / groups, widths / 2, 0.0)
    first, last = (_codes(grid, centers + side * half) * groups // codes for side in (-1, 1))
    # +1 where a bin's codes start and -1 behind its last one; sums of these count the bins over each code.
    edges = np.bincount(first, minlength=groups + 1) - np.bincount(last + 1, minlength=groups + 1)
    return float((np.cumsum(edges)[:groups] == 0).mean())


def _code_shares(grid: QParams, centers: np.ndarray, counts: np.ndarray) -> list[float]:
    codes = grid.quant_max - grid.quant_min + 1
    groups = _codes(grid, centers) * BINS // codes
    shares = np.bincount(groups, weights=counts, minlength=BINS) / max(counts.sum(), 1.0)
    return [float(share) for share in shares]
