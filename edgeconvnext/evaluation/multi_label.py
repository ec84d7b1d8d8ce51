"""Compare networks that say yes or no to each class: decisions agree by sign, and an image flips with any of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeconvnext.evaluation.tasks import PairedOutputs, Task
from edgeconvnext.schema.report import Accuracy, Flip, ScoreRecord
from edgeconvnext.sqnr import logit_sqnr_db


def compare_decisions(
    task: Task,
    networks: tuple[np.ndarray, np.ndarray | None, np.ndarray | None],
    targets: np.ndarray | None,
    class_names: Sequence[str] | None,
    image_ids: Sequence[str],
) -> Accuracy:
    """Compare FP32's logits with the simulation's and the artifact's, (N, num_classes) each.

    agreement: share of all decisions, images times classes, that are FP32's. targets: (N, num_classes) of 0 and 1. Scores stay
    null where no image has a class.
    """
    reference, simulated, artifact = networks
    measured = artifact if artifact is not None else simulated
    result = Accuracy(task=task.name, score=task.main_score, images=len(reference))
    if simulated is not None:
        result.simulated_sqnr_db = logit_sqnr_db(reference, simulated)
    if measured is not None:
        result.measured_on = "simulation" if artifact is None else "artifact"
        result.agreement = 100 * float(((reference > 0) == (measured > 0)).mean())
        result.sqnr_db = logit_sqnr_db(reference, measured)
        result.flips = _changed(reference, measured, targets, class_names, image_ids)
    if targets is not None and targets.any():
        for name, logits in (("fp32", reference), ("simulated", simulated), ("artifact", artifact)):
            if logits is not None:
                score = task.scores(PairedOutputs(reference, logits), targets)[0]
                setattr(result, name, ScoreRecord(**score.quantized.model_dump(), top5=None, n=len(reference)))
                if logits is measured:
                    result.drop_pp = score.drop
    return result


def class_name(class_names: Sequence[str] | None, index: int) -> str:
    """Return the name of a class, or its number where it has none."""
    return f"class {index}" if class_names is None else class_names[index]


def _changed(
    reference: np.ndarray,
    quantized: np.ndarray,
    targets: np.ndarray | None,
    class_names: Sequence[str] | None,
    image_ids: Sequence[str],
) -> list[Flip]:
    """Return the images with changed decisions, those FP32 was surest of first; each side names the classes said yes to."""

    def named(row: np.ndarray) -> str:
        return ", ".join(class_name(class_names, int(index)) for index in np.flatnonzero(row > 0)) or "none"

    changed = (reference > 0) != (quantized > 0)
    sure = [np.where(changed, _sigmoid(np.abs(logits)), 0).max(1) for logits in (reference, quantized)]
    return [
        Flip(
            image=image_ids[int(row)],
            label=None if targets is None else named(targets[row]),
            fp32=named(reference[row]),
            artifact=named(quantized[row]),
            fp32_confidence=float(sure[0][row]),
            artifact_confidence=float(sure[1][row]),
        )
        for row in sorted(np.flatnonzero(changed.any(1)), key=lambda row: (-sure[0][row], row))
    ]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(np.reciprocal(1 + np.exp(-logits.astype(np.float64))))
