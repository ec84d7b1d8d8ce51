"""Accuracy, agreement and logit SQNR of FP32, simulated and artifact logits over the same images.

A network with one logit is judged by its sign throughout: its only class would never change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgeconvnext.choices import TaskName
from edgeconvnext.decisions import two_logits
from edgeconvnext.errors import CheckpointError, EdgeConvNextError, ExportError, LabelMismatchError, QuantizationError
from edgeconvnext.evaluation.intervals import Z95, drop_interval, wilson
from edgeconvnext.evaluation.multi_label import class_name, compare_decisions
from edgeconvnext.evaluation.tasks import TASKS, infer_task
from edgeconvnext.schema.report import Accuracy, ClassChange, Flip, Interval, ScoreRecord
from edgeconvnext.sqnr import logit_sqnr_db


def compare(
    reference: np.ndarray,
    simulated: np.ndarray | None,
    artifact: np.ndarray | None,
    labels: np.ndarray | None,
    class_names: Sequence[str] | None,
    image_ids: Sequence[str],
    dataset: str | None = None,
    runtime: str | None = None,
    task: TaskName | None = None,
) -> Accuracy:
    """Compare the logits of the quantised network with FP32's, image by image.

    reference, simulated, artifact: (N, num_classes) logits over the same images in the same order; drop, agreement,
    SQNR, flips and classes are the artifact's where it ran, else the simulation's.
    labels: (N,) class indices, 0 or 1 for one logit; of task multi-label (N, num_classes) of 0 and 1; or None where the set has
    none: then scores, drop and classes stay null. runtime: what ran the artifact. task: None infers it from logits and labels.

    Raises CheckpointError, QuantizationError or ExportError for logits with NaN or Inf, and LabelMismatchError for
    labels outside the model's classes.
    """
    producers: dict[str, tuple[np.ndarray | None, type[EdgeConvNextError]]] = {
        "FP32 model": (reference, CheckpointError),
        "simulated quantised graph": (simulated, QuantizationError),
        "artifact": (artifact, ExportError),
    }
    for producer, (logits, error) in producers.items():
        if logits is not None:
            _check_logits(logits, reference.shape, producer, error)
    if len(image_ids) != len(reference):
        raise ValueError(f"{len(image_ids)} image ids for {len(reference)} rows of logits")
    task = task or infer_task(reference.shape[1], targets=labels)[0].name
    if task == "single-label" and reference.shape[1] < 2:
        raise LabelMismatchError("One logit has no top-1: it is always the only class. Judge it as task binary.")
    if task == "multi-label":
        decided = compare_decisions(TASKS[task], (reference, simulated, artifact), labels, class_names, image_ids)
        return decided.model_copy(update={"dataset": dataset, "runtime": runtime})
    if labels is not None:
        _check_labels(labels, len(reference), max(2, reference.shape[1]))
    if reference.shape[1] == 1:
        class_names = decision_names(class_names)

    measured = artifact if artifact is not None else simulated
    score = TASKS[task].main_score
    result = Accuracy(task=task, score=score, dataset=dataset, images=len(reference), runtime=runtime)
    if simulated is not None:
        result.simulated_sqnr_db = logit_sqnr_db(reference, simulated)
    if measured is not None:
        result.measured_on = "simulation" if artifact is None else "artifact"
        result.agreement = agreement(reference, measured)
        result.expected_drop_pp = expected_drop(reference, measured)
        result.sqnr_db = logit_sqnr_db(reference, measured)
        result.flips = flips(reference, measured, labels, class_names, image_ids)
    if labels is not None:
        result.fp32 = topk(reference, labels)
        result.simulated = None if simulated is None else topk(simulated, labels)
        result.artifact = None if artifact is None else topk(artifact, labels)
        if measured is not None:
            result.drop_pp = paired_drop(reference, measured, labels)
            result.classes = class_changes(reference, measured, labels, class_names)
    return result


def not_measured(accuracy: Accuracy, labels_reason: str, artifact_reason: str) -> dict[str, str]:
    """Return the reason for each null of `accuracy`, by its dotted name in report.json.

    labels_reason: why there is no top-1, where images are unlabelled or absent.
    artifact_reason: why the artifact did not run.
    """
    reasons: dict[str, str] = {}
    ran_artifact = accuracy.measured_on == "artifact"
    if accuracy.task == "multi-label" and accuracy.measured_on is not None:
        reasons["accuracy.expected_drop_pp"] = "it is of one class an image"
    for key in (
        "fp32",
        "simulated",
        "drop_pp",
        "expected_drop_pp",
        "agreement",
        "sqnr_db",
        "simulated_sqnr_db",
        "measured_on",
    ):
        if getattr(accuracy, key) is None:
            reasons.setdefault(f"accuracy.{key}", labels_reason)
    if accuracy.artifact is None:
        reasons["accuracy.artifact"] = labels_reason if ran_artifact else artifact_reason
    if accuracy.runtime is None and not ran_artifact:
        reasons["accuracy.runtime"] = artifact_reason
    for key in ("fp32", "simulated", "artifact"):
        scores = getattr(accuracy, key)
        if scores is not None and scores.top5 is None:
            why = (
                "for fewer than six classes" if accuracy.task in (None, "single-label") else f"of task {accuracy.task}"
            )
            reasons[f"accuracy.{key}.top5"] = f"top-5 says nothing {why}"
    return reasons


def topk(logits: np.ndarray, labels: np.ndarray) -> ScoreRecord:
    """Return top-1 and top-5 accuracy in per cent with the Wilson 95 % interval of top-1.

    Of equal logits the lower class ranks first, as in argmax.
    """
    logits = two_logits(logits)
    n, num_classes = logits.shape
    ranks = _ranks(logits, labels)
    hits = int((ranks == 0).sum())
    low, high = wilson(hits, n)
    return ScoreRecord(
        value=100 * hits / n,
        low=100 * low,
        high=100 * high,
        top5=100 * float((ranks < 5).mean()) if num_classes >= 6 else None,
        n=n,
    )


def paired_drop(reference: np.ndarray, quantized: np.ndarray, labels: np.ndarray) -> Interval:
    """Return FP32 top-1 minus quantised top-1 in points, with a paired 95 % interval.

    Only images on which exactly one of the two is right carry information, as in McNemar's test: with `lost` that FP32
    alone gets right and `gained` that the quantised network alone gets right, drop = (lost - gained) / n. The interval
    is the adjusted Wald of Bonett & Price (2012, J. Educ. Behav. Stat. 37:479): one image is added to either cell.
    Resampling images instead gives width zero wherever no answer changed, which 60 images do not justify.
    """
    right, still_right = _answers(reference) == labels, _answers(quantized) == labels
    return drop_interval(int((right & ~still_right).sum()), int((~right & still_right).sum()), len(labels))


def expected_drop(reference: np.ndarray, quantized: np.ndarray) -> Interval:
    """Return what top-1 loses, in points with a 95 % interval, if FP32's softmax probabilities are true; takes no labels.

    An image whose class changes from a to b loses p(a) - p(b), any other nothing. The interval is that of a mean over images.
    """
    probabilities, rows = _softmax(two_logits(reference)), np.arange(len(reference))
    losses = 100 * (probabilities[rows, _answers(reference)] - probabilities[rows, _answers(quantized)])
    value = float(losses.mean())
    half = Z95 * float(losses.std(ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else 100.0
    return Interval(value=value, low=max(0.0, value - half), high=min(100.0, value + half))


def agreement(reference: np.ndarray, quantized: np.ndarray) -> float:
    """Return the share of images with the same top-1 class, or with the same sign of one logit, per cent."""
    return 100 * float((_answers(reference) == _answers(quantized)).mean())


def class_changes(
    reference: np.ndarray, quantized: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None
) -> list[ClassChange]:
    """Return top-1 before and after for each class that has images, in class order."""
    num_classes = max(2, reference.shape[1])
    totals = np.bincount(labels, minlength=num_classes)
    before = np.bincount(labels[_answers(reference) == labels], minlength=num_classes)
    after = np.bincount(labels[_answers(quantized) == labels], minlength=num_classes)
    return [
        ClassChange(
            label=class_name(class_names, int(index)),
            n=int(totals[index]),
            fp32=100 * float(before[index] / totals[index]),
            artifact=100 * float(after[index] / totals[index]),
        )
        for index in np.flatnonzero(totals)
    ]


def flips(
    reference: np.ndarray,
    quantized: np.ndarray,
    labels: np.ndarray | None,
    class_names: Sequence[str] | None,
    image_ids: Sequence[str],
) -> list[Flip]:
    """Return the images whose answer changed, those FP32 was surest of first. Confidences are those of softmax or sigmoid."""
    reference, quantized = two_logits(reference), two_logits(quantized)
    before, after = reference.argmax(1), quantized.argmax(1)
    changed = np.flatnonzero(before != after)
    sure_before = _softmax(reference[changed])[np.arange(len(changed)), before[changed]]
    sure_after = _softmax(quantized[changed])[np.arange(len(changed)), after[changed]]
    return [
        Flip(
            image=image_ids[int(image)],
            label=None if labels is None else class_name(class_names, int(labels[image])),
            fp32=class_name(class_names, int(before[image])),
            artifact=class_name(class_names, int(after[image])),
            fp32_confidence=float(sure_before[row]),
            artifact_confidence=float(sure_after[row]),
        )
        for row, image in sorted(enumerate(changed), key=lambda entry: (-sure_before[entry[0]], entry[1]))
    ]


def decision_names(class_names: Sequence[str] | None) -> tuple[str, str]:
    """Name what a logit up to 0 and one above it say: "not cat" and "cat"; two names as they are; else "no" and "yes"."""
    if class_names is not None and len(class_names) == 2:
        return class_names[0], class_names[1]
    return ("no", "yes") if class_names is None else (f"not {class_names[0]}", class_names[0])


def _answers(logits: np.ndarray) -> np.ndarray:
    """Return the class of each image, (N,): the largest logit's, or of one logit 1 where it is above 0."""
    return np.asarray(two_logits(logits).argmax(1))


def _ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how many classes rank before each label; a tie goes to the lower class, as argmax does."""
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1])[None] < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(1, keepdims=True)


def _check_logits(logits: np.ndarray, shape: tuple[int, ...], producer: str, error: type[EdgeConvNextError]) -> None:
    if logits.shape != shape:
        raise error(
            f"The {producer} returned logits of shape {logits.shape} where the FP32 model's have {shape}: it is "
            f"not the same network, or was run on other images. Export it again from this model."
        )
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise error(
            f"The {producer} returns NaN or Inf for {int(bad.sum())} of {len(logits)} images (first: row "
            f"{int(bad.argmax())}). In float16 this is an overflow beyond 65504, mostly in a LayerNormalization that "
            f"was split into its parts; otherwise weights or scales are not finite. Use a target with float_type "
            f'"float32", or check the checkpoint with `edgeconvnext inspect`.'
        )


def _check_labels(labels: np.ndarray, num_images: int, num_classes: int) -> None:
    if labels.shape != (num_images,):
        raise LabelMismatchError(f"There are {labels.size} labels for {num_images} images; each image needs one.")
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        raise LabelMismatchError(
            f"{int(outside.sum())} labels lie outside the model's {num_classes} classes (first: "
            f"{int(labels[outside][0])}). Use an image set whose classes are the model's."
        )


def fidelity_db(artifact: np.ndarray, simulated: np.ndarray) -> float:
    """Return the SQNR of the artifact's logits, from its runtime, against the simulated graph's. (N, num_classes)."""
    return logit_sqnr_db(simulated, artifact)
