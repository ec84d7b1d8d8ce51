"""Structured pruning without training and without labels: hidden channels of the blocks, and whole blocks.

    1. what each block loses at several widths is measured: KL of the logits on held-out images, this block pruned alone
       (`prune_curves`);
    2. one allocation over all blocks picks widths from these curves for a budget (`prune_budget`);
    3. the network is rebuilt block after block: each sees the pruned blocks before it, and its pwconv2 is fitted in closed form
       to what the original network has behind it (`prune_rebuild`).

Which channels go is decided by greedy elimination that counts the re-fit in (`prune_channels`), or by a simpler score.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from edgeconvnext.choices import Score
from edgeconvnext.errors import RewriteError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.macs import count_macs, count_parameters
from edgeconvnext.rewrite.exact import fold_layer_scale
from edgeconvnext.rewrite.float_timer import FloatTimer
from edgeconvnext.rewrite.paired_networks import StoredImages
from edgeconvnext.rewrite.prune_budget import allocate, costs_of, interpolated
from edgeconvnext.rewrite.prune_channels import taylor_scores
from edgeconvnext.rewrite.prune_costs import Budget
from edgeconvnext.rewrite.prune_curves import Curve, measure_curves
from edgeconvnext.rewrite.prune_depth import Removal, remove_blocks
from edgeconvnext.rewrite.prune_rebuild import rebuild
from edgeconvnext.rewrite.prune_segments import (
    check_images,
    hidden_widths,
    logit_agreement,
    logit_kl,
    run_held_out,
    segments_of,
)

COMPENSATIONS = (1.0, 0.0)
"""Shares of the error of the blocks before it that a block is fitted to make good; the better on held-out images is taken."""


@dataclass(frozen=True)
class PrunedBlock:
    """One block of the pruned network, for reports.

    path: in the network handed in. hidden_before, hidden_after: channels; 0 where the block was removed. score: what chose the
    channels. kl_alone: KL of the logits in nats on held-out images that was expected from pruning this block alone; None where
    it was not pruned. relative_error: RMS error of the block's output, what the blocks before it lost included, relative to
    the RMS variation of what the block adds, held-out images; None for removed blocks and where nothing changed.
    """

    path: str
    hidden_before: int
    hidden_after: int
    score: str
    kl_alone: float | None
    relative_error: float | None


@dataclass(frozen=True)
class PruneVerdict:
    """One way to rebuild the network, measured on held-out images. kl: of the logits, nats; agreement: per cent of images."""

    name: str
    kl: float
    agreement: float
    taken: bool


@dataclass(frozen=True)
class PruneResult:
    """A smaller network and what it was measured to lose on held-out calibration images.

    cost_before, cost_after: in the budget's unit (multiply-adds, bytes, milliseconds). macs, parameters: at the input size asked
    for, batch 1. removals: blocks taken out, in order. latency_ms: medians of both networks, measured; with a latency budget
    only. curves: what each block would lose at other widths.
    """

    module: ConvNeXt
    budget: Budget
    cost_before: float
    cost_after: float
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    blocks: tuple[PrunedBlock, ...]
    removals: tuple[Removal, ...]
    verdicts: tuple[PruneVerdict, ...]
    latency_ms: tuple[float, float] | None
    curves: dict[str, Curve]
    fit_images: int
    held_out_images: int

    @property
    def widths(self) -> dict[str, int]:
        """Hidden channels of the blocks that are left, by their path in the network handed in."""
        return {block.path: block.hidden_after for block in self.blocks if block.hidden_after}

    @property
    def verdict(self) -> PruneVerdict:
        return next(verdict for verdict in self.verdicts if verdict.taken)


@torch.no_grad()
def prune(
    module: ConvNeXt,
    fit: Iterable[torch.Tensor],
    held_out: Iterable[torch.Tensor],
    budget: Budget,
    *,
    input_size: tuple[int, int],
    multiple: int = 8,
    score: Score = "auto",
    blocks: int = 0,
    curves: dict[str, Curve] | None = None,
    timer: FloatTimer | None = None,
) -> PruneResult:
    """Return a narrower network within `budget`; `module` is left as it is.

    fit, held_out: batches of preprocessed images, (N, C, H, W), each read once; channels and weights come from the first, every
    choice from the second. input_size: (height, width) of costs. multiple: widths that change become multiples of it, and no
    block gets narrower than it. score: "auto" takes, for each block, the one with the least measured loss. blocks: so many whole
    blocks are taken out first, those whose loss is least with a neighbour fitted to make up for it. curves: of an earlier result
    for this network, these images and `multiple`, all blocks kept; they are then not measured again. timer: for a latency budget.

    Layer scale is folded on the way. Raises RewriteError for V2 networks, budgets that cannot be met, and without images.
    """
    _check(module, multiple, blocks)
    reference = fold_layer_scale(module).eval()
    costs = costs_of(reference, budget, input_size, multiple, timer)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeconvnext-prune-")))
        images = stack.enter_context(StoredImages(folder, fit, held_out))
        check_images(images)
        logits = run_held_out(reference, images)
        removals = remove_blocks(reference, images, logits, blocks)
        segments = segments_of(reference.config, [removal.path for removal in removals])
        allowed = [segment.path for segment in segments]
        costs.check(allowed, budget, multiple)
        if blocks:
            curves = None  # a neighbour of a removed block answers for both, and loses something else
        named = {score} if curves is None else {curve.score for curve in curves.values()}
        taylor = taylor_scores(reference, images) if named & {"auto", "taylor"} else {}
        if curves is None:
            curves = measure_curves(reference, segments, images, logits, folder, score, taylor, multiple)
        widths = allocate({path: curves[path].points for path in allowed}, costs, budget, multiple)
        best: tuple[float, ConvNeXt, dict[str, float]] | None = None
        tried: list[tuple[str, float, float]] = []
        for compensation in COMPENSATIONS:
            chosen = {path: curves[path].score for path in allowed}
            pruned, errors = rebuild(reference, segments, images, folder, widths, chosen, taylor, compensation)
            kl, agreement = _judge(pruned, images, logits)
            name = "errors of earlier blocks compensated" if compensation else "each block for itself"
            tried.append((name, kl, agreement))
            if best is None or kl < best[0]:
                best = (kl, pruned, errors)
    assert best is not None
    _, pruned, errors = best
    times: tuple[float, float] | None = None
    if timer is not None and budget.kind == "latency":
        timed = timer.compare_latency(reference, pruned, (reference.config.in_channels, *input_size))
        times = timed.before_ms, timed.after_ms
    taken = min(range(len(tried)), key=lambda index: tried[index][1])
    verdicts = tuple(PruneVerdict(*each, taken=index == taken) for index, each in enumerate(tried))
    return PruneResult(
        module=pruned,
        budget=budget,
        cost_before=costs.total,
        cost_after=costs.of(widths),
        macs_before=count_macs(reference, input_size),
        macs_after=count_macs(pruned, input_size),
        parameters_before=count_parameters(reference),
        parameters_after=count_parameters(pruned),
        blocks=_rows(reference, widths, curves, errors),
        removals=tuple(removals),
        verdicts=verdicts,
        latency_ms=times,
        curves=curves,
        fit_images=images.fit_images,
        held_out_images=images.held_out_images,
    )


def _check(module: ConvNeXt, multiple: int, blocks: int) -> None:
    if "grn_shift" in module.exact_folds:
        raise RewriteError(
            "Hidden channels of a ConvNeXt V2 cannot be pruned one by one: Global Response Normalization (GRN) divides "
            "each by the mean over all of them, so that removing one changes the rest. Prune a V1 network, or quantise "
            "this one unpruned."
        )
    if multiple < 1:
        raise RewriteError(f"Widths are rounded to a multiple of at least 1; it is {multiple}.")
    most = sum(depth - 1 for depth in module.config.depths)
    if not 0 <= blocks <= most:
        raise RewriteError(
            f"--blocks is {blocks}; of the {sum(module.config.depths)} blocks of this network 0 to {most} can go, one "
            "stays in every stage."
        )


def _judge(pruned: ConvNeXt, images: StoredImages, logits: torch.Tensor) -> tuple[float, float]:
    """Return KL in nats and agreement in per cent on the held-out images."""
    pruned_logits = run_held_out(pruned, images)
    return logit_kl(logits, pruned_logits), logit_agreement(logits, pruned_logits)


def _rows(
    reference: ConvNeXt, widths: dict[str, int], curves: dict[str, Curve], errors: dict[str, float]
) -> tuple[PrunedBlock, ...]:
    rows = []
    for path, before in hidden_widths(reference.config).items():
        after = widths.get(path, 0)
        # At its full width a block loses something only where it stands for removed ones too.
        changed = after and (after < before or curves[path].points[before] > 0)
        alone = interpolated(curves[path].points, after) if changed else None
        score = curves[path].score if path in curves else ""
        rows.append(PrunedBlock(path, before, after, score, alone, errors.get(path)))
    return tuple(rows)
