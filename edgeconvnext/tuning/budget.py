"""Stay within a drop of accuracy: give the layers that cost most more bits, or back to float, until the budget holds.

Everything here looks at held-out calibration images only; the evaluation set is looked at once, when the run is over.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from edgeconvnext.choices import JudgedBy
from edgeconvnext.errors import QuantizationError
from edgeconvnext.evaluation.accuracy import agreement, paired_drop
from edgeconvnext.model.macs import layer_macs
from edgeconvnext.model.network import Network
from edgeconvnext.quantization.fake import fake_quantized
from edgeconvnext.quantization.plan import QuantPlan
from edgeconvnext.quantization.precision import BitPlan, LayerEntry
from edgeconvnext.quantization.reconstruct import Reconstructed
from edgeconvnext.rewrite.residual_streams import scale_streams
from edgeconvnext.tuning.sensitivity import Sensitivity, float_layer, kl_divergence, sensitivities

ROUNDS = 6
LARGEST_KL = 0.1
"""Without labels a budget also bounds the mean KL divergence from FP32's softmax, in nats."""


@dataclass(frozen=True)
class HeldOut:
    """What a quantised network loses on held-out calibration images. loss_pp: points of the score, or 100 minus agreement."""

    loss_pp: float
    kl: float

    def within(self, max_drop: float, labelled: bool) -> bool:
        return self.loss_pp <= max_drop and (labelled or self.kl <= LARGEST_KL)


@dataclass(frozen=True)
class Move:
    """One layer that was given more bits: `to` is "8-bit weights" or "float"; kl: what it cost alone, in nats."""

    layer: str
    to: str
    kl: float
    macs_share: float


@dataclass(frozen=True)
class BudgetOutcome:
    """A network within its budget, and what that took. before, after: on held-out calibration images, without and with `moves`.

    result: the network that meets it; first: the one that was asked for, before any move.
    """

    result: Reconstructed
    first: Reconstructed
    bits: BitPlan
    max_drop: float
    judged_by: JudgedBy
    images: int
    before: HeldOut
    after: HeldOut
    moves: tuple[Move, ...]

    def record(self) -> dict[str, Any]:
        """Return everything but the network, JSON-able."""
        return {
            "bits": self.bits.model_dump(),
            "max_drop": self.max_drop,
            "judged_by": self.judged_by,
            "images": self.images,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "moves": [asdict(move) for move in self.moves],
        }


def within_budget(
    module: Network,
    bits: BitPlan,
    with_bits: Callable[[BitPlan], Reconstructed],
    batches: Sequence[torch.Tensor],
    labels: np.ndarray | None,
    *,
    max_drop: float,
    input_size: tuple[int, int],
) -> BudgetOutcome:
    """Quantise `module` so that at most `max_drop` points are lost on held-out calibration images.

    bits: what was asked for. with_bits: reconstructs the network with other bits. batches, labels: the held-out images as the
    module takes them, and their classes where known. Layers are ranked by the KL divergence that each causes alone; 4-bit layers
    get 8 bits first, then the costliest become float. How many is found on the network at hand; the network is then made anew with
    those bits and measured again, and more layers follow where it still loses too much.

    Raises QuantizationError where even the float layers of the last round do not meet the budget.
    """
    logits = _logits(module, batches)
    labelled = labels is not None
    judged_by: JudgedBy = "agreement" if labels is None else "accuracy" if logits.shape[1] == 1 else "top-1"
    first = result = with_bits(bits)
    module = scale_streams(module, first.plan.stream_exponents)  # layers of both are exchanged
    before = after = _measure(result, logits, batches, labels)
    macs = layer_macs(module.config, input_size)
    moves: list[Move] = []
    for _ in range(ROUNDS):
        if after.within(max_drop, labelled):
            return BudgetOutcome(result, first, bits, max_drop, judged_by, len(logits), before, after, tuple(moves))
        ranked = sorted(sensitivities(module, result.module, result.plan, batches), key=lambda entry: -entry.kl_alone)
        chosen = _enough(module, result, ranked, logits, batches, labels, max_drop)
        moves += [
            Move(entry.layer, _next(result.plan, entry.layer), entry.kl_alone, macs[entry.layer] / sum(macs.values()))
            for entry in chosen
        ]
        bits = bits.with_layers({entry.layer: _entry(result.plan, entry.layer) for entry in chosen})
        result = with_bits(bits)
        after = _measure(result, logits, batches, labels)
    if after.within(max_drop, labelled):
        return BudgetOutcome(result, first, bits, max_drop, judged_by, len(logits), before, after, tuple(moves))
    raise QuantizationError(
        f"--max-drop {max_drop:g} was not reached: after {ROUNDS} rounds {len(moves)} layers have more bits or are float, and "
        f"{after.loss_pp:.2f} points are still lost on {len(logits)} held-out calibration images. Allow a larger drop, use 8-bit "
        "weights, or give more calibration images (--num-images)."
    )


def _enough(
    module: Network,
    result: Reconstructed,
    ranked: Sequence[Sensitivity],
    logits: torch.Tensor,
    batches: Sequence[torch.Tensor],
    labels: np.ndarray | None,
    max_drop: float,
) -> list[Sensitivity]:
    """Return the fewest of the costliest layers that, promoted in the network at hand, meet the budget; all where none do.

    Promoted layers get their unrounded weights, which stand in for 8-bit ones as well.
    """
    if not ranked:
        raise QuantizationError("No layer is quantised any more and the budget is still not met; this is a bug.")
    trial = Reconstructed(copy.deepcopy(result.module), result.plan, result.statistics)
    activations, tried = dict(result.plan.activations), 0
    while tried < len(ranked):
        # One at a time as long as that is cheap, then a tenth of the layers.
        step = 1 if tried < 8 else max(1, len(ranked) // 10)
        for entry in ranked[tried : tried + step]:
            float_layer(trial.module, module, result.plan, entry.layer)
            if not result.plan.weights[entry.layer].has_eight_bit_form:
                activations.pop(f"{entry.layer}:input", None)
        tried = min(tried + step, len(ranked))
        plan = QuantPlan(activations, result.plan.weights, result.plan.decisions)
        measured = _measure(Reconstructed(trial.module, plan, result.statistics), logits, batches, labels)
        if measured.within(max_drop, labels is not None):
            break
    return list(ranked[:tried])


def _next(plan: QuantPlan, layer: str) -> str:
    return "8-bit weights" if plan.weights[layer].has_eight_bit_form else "float"


def _entry(plan: QuantPlan, layer: str) -> LayerEntry:
    return LayerEntry(weights=8) if plan.weights[layer].has_eight_bit_form else LayerEntry(float=True)


@torch.no_grad()
def _logits(module: Network, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([module(batch) for batch in batches])


def _measure(
    result: Reconstructed, logits: torch.Tensor, batches: Sequence[torch.Tensor], labels: np.ndarray | None
) -> HeldOut:
    with fake_quantized(result.module, result.plan):
        found = _logits(result.module, batches)
    reference, quantized = logits.numpy(), found.numpy()
    loss = 100 - agreement(reference, quantized) if labels is None else paired_drop(reference, quantized, labels).value
    return HeldOut(loss, kl_divergence(logits, found))
