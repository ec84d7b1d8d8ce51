"""Which LayerNorms can go: each measured alone, then together, the most time saved per accuracy lost first.

Everything is judged on held-out calibration images. The replacement itself is `rewrite.norms`; a norm stays wherever its
replacement, together with those already made, would cost more than the budget allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from edgeconvnext.decisions import two_logits
from edgeconvnext.evaluation.accuracy import agreement, paired_drop
from edgeconvnext.evaluation.intervals import wilson
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.progress import progress_bar
from edgeconvnext.rewrite.norms import NormsReplaced, replace_each, replace_norms, replaceable_norms
from edgeconvnext.rewrite.paired_networks import StoredImages
from edgeconvnext.schema.report import NormVerdict
from edgeconvnext.tuning.sensitivity import kl_divergence

KL_PER_POINT = 0.02
"""Nats that may be lost for each point of the budget: held-out images may be among those the network was trained on, where answers
hold longer than elsewhere; the divergence of the answers does not flatter so much."""

SMALLEST_KL = 1e-6
"""Nats; replacements that measure as better than nothing are ranked by what they save alone."""


@dataclass(frozen=True)
class Loss:
    """What a changed network loses on held-out images, against the network handed in.

    points: of the task's score where labels are known, else 100 minus agreement. points_low: lower end of their paired 95 %
    interval, without labels the same as points. expected_points: of that score if the original network's
    probabilities were true, 100 * mean(p[its answer] - p[the other's answer]): without labels and with a fraction of their noise.
    kl: nats. agreement: per cent, with its Wilson 95 % interval.
    """

    points: float
    points_low: float
    expected_points: float
    kl: float
    agreement: float
    agreement_low: float
    agreement_high: float

    def within(self, max_drop: float) -> bool:
        """Whether the budget is kept.

        A few hundred images do not resolve half a point: one image is 0.4 points of 256. So the score may not be lower by more
        than chance explains, and what else is measured, with less noise, must lie within the budget.
        """
        return max(self.points_low, self.expected_points) <= max_drop and self.kl <= KL_PER_POINT * max_drop


@dataclass(frozen=True)
class NormSearch:
    """The network that keeps the budget, a verdict for each of its LayerNorms, and what it loses on held-out images."""

    module: ConvNeXt
    verdicts: tuple[NormVerdict, ...]
    loss: Loss


@torch.no_grad()
def replace_within_budget(
    module: ConvNeXt,
    images: StoredImages,
    folder: Path,
    labels: np.ndarray | None,
    *,
    max_drop: float,
    saved: Mapping[str, float],
    unit: str,
    reference: ConvNeXt | None = None,
    norms: Sequence[str] | None = None,
) -> NormSearch:
    """Replace as many LayerNorms as a budget allows.

    module: exactly folded. labels: classes of the held-out images, or None. max_drop: points. saved: what each norm's absence
    saves; unit: "ms", or "values" where nothing was timed. reference: what `module` came from, if it was changed before (pruned).
    norms: which may go; None: all that can.
    Norms are taken up in the order of time saved per KL divergence that they cause alone; each step takes as many as together keep
    the budget: all at first, half as many whenever it is not kept. Every step fits and measures the whole network anew.
    """
    norms = [norm for norm in replaceable_norms(module) if norms is None or norm in norms]
    best: NormsReplaced | None = None
    loss = Loss(0.0, 0.0, 0.0, 0.0, 100.0, 100.0, 100.0)
    with progress_bar("Replacing LayerNorms", 2 * len(norms)) as advance:
        expected, each = replace_each(module, images, folder)
        alone = {norm: (found.error, measure_loss(expected, found.logits, labels)) for norm, found in each.items()}
        advance(len(norms))
        if reference is not None and norms:
            best = replace_norms(module, [], images, folder, reference=reference)
            loss = measure_loss(best.reference_logits, best.logits, labels)
        # Where noise hides what a norm saves, or makes it a loss, the harmless ones still come first.
        gains = [saved[norm] for norm in norms if saved.get(norm, 0.0) > 0]
        least = 0.01 * median(gains) if gains else 1.0
        waiting = sorted(
            norms, key=lambda norm: -max(saved.get(norm, 0.0), least) / max(alone[norm][1].kl, SMALLEST_KL)
        )
        gone: list[str] = []
        refused: dict[str, Loss] = {}
        step = len(waiting)
        while waiting:
            step = min(step, len(waiting))
            tried = waiting[:step]
            result = replace_norms(module, [*gone, *tried], images, folder, reference=reference)
            found = measure_loss(result.reference_logits, result.logits, labels)
            if found.within(max_drop):
                best, loss = result, found
                gone += tried
            elif step > 1:
                step //= 2
                continue
            else:
                refused[tried[0]] = found
            waiting = waiting[step:]
            advance(step)
    kept = best.module if best is not None else module
    verdicts = tuple(
        _verdict(module, norm, alone, norms, refused.get(norm), max_drop, saved, unit)
        for norm in module.config.norm_paths
    )
    return NormSearch(kept, verdicts, loss)


def measure_loss(expected: torch.Tensor, logits: torch.Tensor, labels: np.ndarray | None) -> Loss:
    """Compare logits (N, classes) with those of the original network."""
    reference, changed = expected.numpy(), logits.numpy()
    same = agreement(reference, changed)
    low, high = wilson(round(same * len(reference) / 100), len(reference))
    drop = None if labels is None else paired_drop(reference, changed, labels)
    points, points_low = (100 - same, 100 - same) if drop is None else (drop.value, drop.low)
    rows, probabilities = torch.arange(len(expected)), two_logits(expected).double().softmax(1)
    lost = probabilities[rows, two_logits(expected).argmax(1)] - probabilities[rows, two_logits(logits).argmax(1)]
    return Loss(
        points, points_low, 100 * float(lost.mean()), kl_divergence(expected, logits), same, 100 * low, 100 * high
    )


def _verdict(
    module: ConvNeXt,
    norm: str,
    alone: Mapping[str, tuple[float, Loss]],
    asked: Sequence[str],
    refused: Loss | None,
    max_drop: float,
    saved: Mapping[str, float],
    unit: str,
) -> NormVerdict:
    if norm in module.config.identity_norms:
        return NormVerdict(
            norm=norm, method="none", verdict="gone before", why="it was replaced in the model handed in"
        )
    if norm not in alone:
        return NormVerdict(norm=norm, method="none", verdict="kept", why="its result is the network's output")
    error, loss = alone[norm]
    budget = f"{max_drop:g} points and {KL_PER_POINT * max_drop:.3g} nats"
    if norm not in asked:
        why = "only the norms of blocks were to go"
    elif refused is None:
        why = f"within {budget} together with the others"
    else:
        why = (
            f"together with those replaced it would cost {refused.points:.2f} points ({refused.expected_points:.2f} expected) and "
            f"{refused.kl:.3g} nats, and the budget is {budget}"
        )
    return NormVerdict(
        norm=norm,
        method="frozen",
        error_alone=error,
        kl_alone=loss.kl,
        agreement_alone=loss.agreement,
        agreement_low=loss.agreement_low,
        agreement_high=loss.agreement_high,
        saved_ms=saved.get(norm) if unit == "ms" else None,
        verdict="replaced" if refused is None and norm in asked else "kept",
        why=why,
    )
