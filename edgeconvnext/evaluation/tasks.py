"""What a network is for, as data: how its answers are scored, with intervals that pair FP32 and quantised image by image.

A task takes arrays alone, so that it serves runs and networks in memory alike:

    task = infer_task(num_classes=1)
    task.scores(PairedOutputs(fp32, quantized), targets)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgeconvnext.choices import TaskName
from edgeconvnext.decisions import two_logits
from edgeconvnext.errors import LabelMismatchError
from edgeconvnext.evaluation.intervals import drop_interval, wilson
from edgeconvnext.evaluation.resampling import SEED, bootstrap_counts, percentiles
from edgeconvnext.schema.report import Interval
from edgeconvnext.sqnr import power_ratio_db

IGNORED = 255
"""Pixels of a mask that are not judged."""


@dataclass(frozen=True)
class PairedOutputs:
    """What two networks answer for the same N images, (N, ...); for a detection, whatever its callable takes, by image."""

    fp32: Any
    quantized: Any


@dataclass(frozen=True)
class Score:
    """One figure with 95 % intervals. drop: FP32 minus quantised, paired. fp32, drop: None of what FP32 is the measure of."""

    name: str
    unit: str
    images: int
    fp32: Interval | None
    quantized: Interval
    drop: Interval | None


class Task(Protocol):
    """What the answers of a network mean. main_score: name of the first score, which gates judge."""

    @property
    def name(self) -> TaskName: ...

    @property
    def main_score(self) -> str: ...

    def scores(self, outputs: PairedOutputs, targets: Any) -> list[Score]: ...


@dataclass(frozen=True)
class SingleLabel:
    """One class of several for each image. targets: (N,) class indices; scores: top-1, top-5 from six classes on."""

    name: TaskName = "single-label"
    main_score: str = "top-1"

    def scores(self, outputs: PairedOutputs, targets: np.ndarray) -> list[Score]:
        """Score logits (N, classes). Raises LabelMismatchError for one logit, whose argmax cannot change."""
        classes = outputs.fp32.shape[1]
        if classes < 2:
            raise LabelMismatchError("One logit has no top-1: it is always the only class. Score it as task binary.")
        targets = _labels(targets, outputs.fp32, classes)
        depths = {"top-1": 1, "top-5": 5} if classes >= 6 else {"top-1": 1}
        return [
            _share(name, *(_in_first(logits, targets, depth) for logits in (outputs.fp32, outputs.quantized)))
            for name, depth in depths.items()
        ]


@dataclass(frozen=True)
class Binary:
    """Yes or no by the sign of one logit. targets: (N,) of 0 and 1; score: accuracy."""

    name: TaskName = "binary"
    main_score: str = "accuracy"

    def scores(self, outputs: PairedOutputs, targets: np.ndarray) -> list[Score]:
        """Score logits (N, 1): above 0 is yes."""
        targets = _labels(targets, outputs.fp32, 2)
        right = [two_logits(logits).argmax(1) == targets for logits in (outputs.fp32, outputs.quantized)]
        return [_share("accuracy", *right)]


@dataclass(frozen=True)
class MultiLabel:
    """Yes or no for each class. targets: (N, classes) of 0 and 1; scores: mean average precision, share of right decisions."""

    name: TaskName = "multi-label"
    main_score: str = "mean average precision"

    def scores(self, outputs: PairedOutputs, targets: np.ndarray) -> list[Score]:
        """Score logits (N, classes); classes without an image are left out of the mean. Images are what is resampled."""
        targets = np.asarray(targets)
        if targets.shape != outputs.fp32.shape or not np.isin(targets, (0, 1)).all():
            raise LabelMismatchError(
                f"Task multi-label takes targets of 0 and 1, one for each of the {outputs.fp32.shape[1]} classes of an image; "
                f"they have the shape {targets.shape} where the logits have {outputs.fp32.shape}."
            )
        if not targets.any():
            raise LabelMismatchError("No image has any of the classes, so there is no average precision to measure.")
        counts = bootstrap_counts(len(targets))
        drawn = [mean_average_precision(logits, targets, counts) for logits in (outputs.fp32, outputs.quantized)]
        decided = [((logits > 0) == (targets > 0)).mean(1) for logits in (outputs.fp32, outputs.quantized)]
        return [
            _resampled("mean average precision", len(targets), *drawn),
            _resampled("decisions", len(targets), *(100 * (counts @ share) / len(targets) for share in decided)),
        ]


@dataclass(frozen=True)
class Features:
    """Vectors or feature maps that others work on. FP32 is the measure, and targets play no part; scores: SQNR and cosine."""

    name: TaskName = "features"
    main_score: str = "SQNR"

    def scores(self, outputs: PairedOutputs, targets: None = None) -> list[Score]:
        """Score outputs (N, ...): SQNR over all values, and the mean over images of the cosine between the two vectors."""
        del targets
        fp32, quantized = (
            np.asarray(values, np.float64).reshape(len(values), -1) for values in (outputs.fp32, outputs.quantized)
        )
        counts = bootstrap_counts(len(fp32))
        signal, noise = (fp32**2).sum(1), ((fp32 - quantized) ** 2).sum(1)
        decibels = np.array([power_ratio_db(float(row @ signal), float(row @ noise)) for row in counts])
        norms = np.sqrt(signal * (quantized**2).sum(1))
        cosine = np.divide((fp32 * quantized).sum(1), norms, out=np.ones(len(norms)), where=norms > 0)
        return [
            Score("SQNR", "dB", len(fp32), None, percentiles(decibels), None),
            Score("cosine", "", len(fp32), None, percentiles(counts @ cosine / len(fp32)), None),
        ]


@dataclass(frozen=True)
class Embedding(Features):
    """The image as one vector, as `Features`."""

    name: TaskName = "embedding"


@dataclass(frozen=True)
class Segmentation:
    """A class for each pixel. targets: (N, H, W) class indices, `ignored` where nothing is judged; score: mIoU."""

    name: TaskName = "segmentation"
    main_score: str = "mIoU"
    ignored: int = IGNORED

    def scores(self, outputs: PairedOutputs, targets: np.ndarray) -> list[Score]:
        """Score logits (N, classes, H, W)."""
        pairs = [self.confusions(logits, targets) for logits in (outputs.fp32, outputs.quantized)]
        return self.scores_of_confusions(*pairs)

    def confusions(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the pixels of each image by class and answer, (N, classes, classes), so that no logits need be kept.

        Raises LabelMismatchError for masks of another size, or with other classes.
        """
        images, classes = logits.shape[:2]
        targets = np.asarray(targets)
        if targets.shape != (images, *logits.shape[2:]):
            raise LabelMismatchError(f"Masks have the shape {targets.shape} where the logits have {logits.shape}.")
        judged = targets != self.ignored
        if ((targets < 0) | (targets >= classes))[judged].any():
            raise LabelMismatchError(f"Masks hold classes outside 0 to {classes - 1}; {self.ignored} is left out.")
        cells = (np.arange(images)[:, None, None] * classes + targets) * classes + logits.argmax(1)
        found = np.bincount(cells[judged].astype(np.int64), minlength=images * classes * classes)
        return found.reshape(images, classes, classes)

    def scores_of_confusions(self, fp32: np.ndarray, quantized: np.ndarray) -> list[Score]:
        """Return the mIoU of two networks from what `confusions` gave, batch after batch: (N, classes, classes) each."""
        counts = bootstrap_counts(len(fp32))
        return [_resampled("mIoU", len(fp32), *(_mean_iou(cells, counts) for cells in (fp32, quantized)))]


@dataclass(frozen=True)
class Detection:
    """Boxes, or anything else that only the user can score.

    metric: takes the answers and the targets of some images, as lists, and returns one figure in per cent, such as mAP. It is
    called for `resamples` draws of the images.
    """

    metric: Callable[[Sequence[Any], Sequence[Any]], float]
    main_score: str = "metric"
    resamples: int = 200
    name: TaskName = "detection"

    def scores(self, outputs: PairedOutputs, targets: Sequence[Any]) -> list[Score]:
        """Score what the callable makes of both networks' answers, on the same draws of images."""
        images = len(targets)
        drawn = np.random.default_rng(SEED).integers(0, images, (self.resamples, images))
        rows = np.concatenate([np.arange(images)[None], drawn])
        figures = [
            np.array([self.metric([answers[i] for i in row], [targets[i] for i in row]) for row in rows])
            for answers in (outputs.fp32, outputs.quantized)
        ]
        return [_resampled(self.main_score, images, *figures)]


TASKS: dict[TaskName, Task] = {
    task.name: task for task in (SingleLabel(), Binary(), MultiLabel(), Embedding(), Features(), Segmentation())
}
"""The tasks that need nothing more than their name."""


def infer_task(num_classes: int, output_names: Sequence[str] = ("logits",), targets: Any = None) -> tuple[Task, str]:
    """Return the task of a network and why it is that, in words for the report.

    num_classes: logits, 0 without classifier. targets: of the images, where there are any.
    """
    if not num_classes:
        if tuple(output_names) == ("embedding",):
            return TASKS["embedding"], "the network ends with an embedding"
        return TASKS["features"], "the network ends with feature maps"
    if num_classes == 1:
        return TASKS["binary"], "the network has one logit, which decides by its sign"
    if targets is not None and np.shape(targets)[1:] == (num_classes,):
        return TASKS["multi-label"], f"each image has a target for each of {num_classes} classes"
    return TASKS["single-label"], f"the network has {num_classes} logits, and an image one class"


def mean_average_precision(logits: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean over classes of average precision, per cent, for each row of image counts, (R, N).

    Average precision is the sum of precision times the step in recall over the thresholds, equal logits being one threshold. A
    class that no drawn image has is left out of the mean.
    """
    total, classes_there = np.zeros(len(counts)), np.zeros(len(counts))
    for scores, wanted in zip(logits.T, targets.T, strict=True):
        if not wanted.any():
            continue
        order = np.argsort(-scores, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
        weights = counts[:, order].astype(np.float64)
        seen = np.cumsum(weights, axis=1)[:, ends]
        hits = np.cumsum(weights * wanted[order], axis=1)[:, ends]
        steps = np.diff(hits, axis=1, prepend=0)
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        there = hits[:, -1] > 0
        total += np.divide((precision * steps).sum(1), hits[:, -1], out=np.zeros(len(counts)), where=there)
        classes_there += there
    return 100 * np.divide(total, classes_there, out=np.zeros(len(counts)), where=classes_there > 0)


def _mean_iou(cells: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean over classes of intersection over union, per cent, for each row of image counts; (N, C, C), (R, N)."""
    classes = cells.shape[1]
    summed = (counts @ cells.reshape(len(cells), -1)).reshape(-1, classes, classes).astype(np.float64)
    hits = np.einsum("rcc->rc", summed)
    union = summed.sum(1) + summed.sum(2) - hits
    there = union > 0
    ratios = np.divide(hits, union, out=np.zeros_like(hits), where=there)
    return 100 * ratios.sum(1) / np.maximum(1, there.sum(1))


def _in_first(logits: np.ndarray, labels: np.ndarray, depth: int) -> np.ndarray:
    """Say for each image whether its class is among the first `depth`; of equal logits the lower class is first."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :depth]
    return (order == labels[:, None]).any(1)


def _share(name: str, fp32: np.ndarray, quantized: np.ndarray) -> Score:
    """Return the score of answers that are right or wrong, (N,) each: Wilson intervals, and Bonett and Price's of the drop."""
    n = len(fp32)
    own = []
    for right in (fp32, quantized):
        low, high = wilson(int(right.sum()), n)
        own.append(Interval(value=100 * float(right.mean()), low=100 * low, high=100 * high))
    drop = drop_interval(int((fp32 & ~quantized).sum()), int((~fp32 & quantized).sum()), n)
    return Score(name, "%", n, own[0], own[1], drop)


def _resampled(name: str, images: int, fp32: np.ndarray, quantized: np.ndarray) -> Score:
    """Return the score of figures in per cent, (1 + resamples,) each, the first being that of all images, on the same draws."""
    return Score(name, "%", images, percentiles(fp32), percentiles(quantized), percentiles(fp32 - quantized))


def _labels(targets: np.ndarray, logits: np.ndarray, classes: int) -> np.ndarray:
    targets = np.asarray(targets)
    if targets.shape != (len(logits),):
        raise LabelMismatchError(
            f"There are targets of shape {targets.shape} for {len(logits)} images; each needs one."
        )
    if ((targets < 0) | (targets >= classes)).any():
        raise LabelMismatchError(f"Targets lie outside the classes 0 to {classes - 1}.")
    return targets.astype(np.int64)
