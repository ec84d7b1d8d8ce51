"""Accuracy, agreement and logit SQNR of FP32, simulated and artifact logits over the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgeconvnext.errors import CheckpointError, EdgeConvNextError, ExportError, LabelMismatchError, QuantizationError
from edgeconvnext.schema.report import Accuracy, ClassChange, Flip, Interval, TopK
from edgeconvnext.sqnr import logit_sqnr_db

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def compare(
    reference: np.ndarray,
    simulated: np.ndarray | None,
    artifact: np.ndarray | None,
    labels: np.ndarray | None,
    class_names: Sequence[str] | None,
    image_ids: Sequence[str],
    dataset: str | None = None,
    runtime: str | None = None,
) -> Accuracy:
    """Compare the logits of the quantised network with FP32's, image by image.

    reference, simulated, artifact: (N, num_classes) logits over the same images in the same order; drop, agreement,
    SQNR, flips and classes are the artifact's where it ran, else the simulation's.
    labels: (N,) class indices, or None where the set has none; then top-k, drop and classes stay null.
    runtime: what ran the artifact.

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
    if labels is not None:
        _check_labels(labels, reference.shape)

    measured = artifact if artifact is not None else simulated
    result = Accuracy(dataset=dataset, images=len(reference), runtime=runtime)
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
            reasons[f"accuracy.{key}"] = labels_reason
    if accuracy.artifact is None:
        reasons["accuracy.artifact"] = labels_reason if ran_artifact else artifact_reason
    if accuracy.runtime is None and not ran_artifact:
        reasons["accuracy.runtime"] = artifact_reason
    for key in ("fp32", "simulated", "artifact"):
        scores = getattr(accuracy, key)
        if scores is not None and scores.top5 is None:
            reasons[f"accuracy.{key}.top5"] = "top-5 says nothing for fewer than six classes"
    return reasons


def topk(logits: np.ndarray, labels: np.ndarray) -> TopK:
    """Return top-1 and top-5 accuracy in per cent with the Wilson 95 % interval of top-1.

    Of equal logits the lower class ranks first, as in argmax.
    """
    n, num_classes = logits.shape
    ranks = _ranks(logits, labels)
    hits = int((ranks == 0).sum())
    low, high = wilson(hits, n)
    return TopK(
        top1=100 * hits / n,
        top1_low=100 * low,
        top1_high=100 * high,
        top5=100 * float((ranks < 5).mean()) if num_classes >= 6 else None,
        n=n,
    )


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (E. B. Wilson, 1927, J. Am. Stat. Assoc. 22:209).

    It stays inside 0..1 and has width even at 0 or n hits: 10 of 10 gives 0.722..1.
    """
    share = hits / n
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def paired_drop(reference: np.ndarray, quantized: np.ndarray, labels: np.ndarray) -> Interval:
    """Return FP32 top-1 minus quantised top-1 in points, with a paired 95 % interval.

    Only images on which exactly one of the two is right carry information, as in McNemar's test: with `lost` that FP32
    alone gets right and `gained` that the quantised network alone gets right, drop = (lost - gained) / n. The interval
    is the adjusted Wald of Bonett & Price (2012, J. Educ. Behav. Stat. 37:479): one image is added to either cell.
    Resampling images instead gives width zero wherever no answer changed, which 60 images do not justify.
    """
    right, still_right = reference.argmax(1) == labels, quantized.argmax(1) == labels
    return drop_interval(int((right & ~still_right).sum()), int((~right & still_right).sum()), len(labels))


def drop_interval(lost: int, gained: int, n: int) -> Interval:
    """Return (lost - gained) / n in points with its paired 95 % interval.

    10 lost and 2 gained of 1000: 0.80, from 0.07 to 1.53.
    """
    only_reference, only_quantized = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    centre = only_reference - only_quantized
    half = Z95 * math.sqrt((only_reference + only_quantized - centre**2) / (n + 2))
    value = (lost - gained) / n
    return Interval(
        value=100 * value,
        low=100 * max(-1.0, min(value, centre - half)),
        high=100 * min(1.0, max(value, centre + half)),
    )


def expected_drop(reference: np.ndarray, quantized: np.ndarray) -> Interval:
    """Return what top-1 loses, in points with a 95 % interval, if FP32's softmax probabilities are true; takes no labels.

    An image whose class changes from a to b loses p(a) - p(b), any other nothing. The interval is that of a mean over images.
    """
    probabilities, rows = _softmax(reference), np.arange(len(reference))
    losses = 100 * (probabilities[rows, reference.argmax(1)] - probabilities[rows, quantized.argmax(1)])
    value = float(losses.mean())
    half = Z95 * float(losses.std(ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else 100.0
    return Interval(value=value, low=max(0.0, value - half), high=min(100.0, value + half))


def agreement(reference: np.ndarray, quantized: np.ndarray) -> float:
    """Return the share of images with the same top-1 class, per cent."""
    return 100 * float((reference.argmax(1) == quantized.argmax(1)).mean())


def class_changes(
    reference: np.ndarray, quantized: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None
) -> list[ClassChange]:
    """Return top-1 before and after for each class that has images, in class order."""
    num_classes = reference.shape[1]
    totals = np.bincount(labels, minlength=num_classes)
    before = np.bincount(labels[reference.argmax(1) == labels], minlength=num_classes)
    after = np.bincount(labels[quantized.argmax(1) == labels], minlength=num_classes)
    return [
        ClassChange(
            label=_name(class_names, int(index)),
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
    """Return the images whose top-1 changed, those FP32 was surest of first. Confidences are softmax probabilities."""
    before, after = reference.argmax(1), quantized.argmax(1)
    changed = np.flatnonzero(before != after)
    sure_before = _softmax(reference[changed])[np.arange(len(changed)), before[changed]]
    sure_after = _softmax(quantized[changed])[np.arange(len(changed)), after[changed]]
    return [
        Flip(
            image=image_ids[int(image)],
            label=None if labels is None else _name(class_names, int(labels[image])),
            fp32=_name(class_names, int(before[image])),
            artifact=_name(class_names, int(after[image])),
            fp32_confidence=float(sure_before[row]),
            artifact_confidence=float(sure_after[row]),
        )
        for row, image in sorted(enumerate(changed), key=lambda entry: (-sure_before[entry[0]], entry[1]))
    ]


def _ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how many classes rank before each label; a tie goes to the lower class, as argmax does."""
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1])[None] < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(1, keepdims=True)


def _name(class_names: Sequence[str] | None, index: int) -> str:
    return f"class {index}" if class_names is None else class_names[index]


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


def _check_labels(labels: np.ndarray, shape: tuple[int, ...]) -> None:
    num_images, num_classes = shape
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
