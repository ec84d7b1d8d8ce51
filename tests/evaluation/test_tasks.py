"""Every score of a task against scikit-learn, scipy or counting by hand, and its interval against repeated experiments."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from edgeconvnext.errors import LabelMismatchError
from edgeconvnext.evaluation.intervals import drop_interval
from edgeconvnext.evaluation.tasks import (
    TASKS,
    Detection,
    PairedOutputs,
    Score,
    Segmentation,
    infer_task,
    mean_average_precision,
)

RANDOM = np.random.default_rng(7)


def scored(task: str, fp32: np.ndarray, quantized: np.ndarray, targets: np.ndarray | None) -> dict[str, Score]:
    return {score.name: score for score in TASKS[task].scores(PairedOutputs(fp32, quantized), targets)}  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        ((1000,), "single-label", "1000 logits"),
        ((2,), "single-label", "2 logits"),
        ((1,), "binary", "one logit"),
        ((4, ("logits",), np.eye(4)), "multi-label", "4 classes"),
        ((4, ("logits",), np.arange(4)), "single-label", "4 logits"),
        ((0, ("embedding",)), "embedding", "embedding"),
        ((0, ("stage1", "stage2")), "features", "feature maps"),
    ],
)
def test_a_task_follows_from_head_and_labels(arguments: tuple, name: str, words: str) -> None:
    task, why = infer_task(*arguments)
    assert task.name == name and words in why


def test_top_1_and_top_5_are_those_of_scikit_learn() -> None:
    first, second, labels = RANDOM.normal(size=(300, 9)), RANDOM.normal(size=(300, 9)), RANDOM.integers(0, 9, 300)
    first[np.arange(300), labels] += 1.5
    scores = scored("single-label", first, second, labels)
    for name, k in (("top-1", 1), ("top-5", 5)):
        for own, logits in ((scores[name].fp32, first), (scores[name].quantized, second)):
            expected = metrics.top_k_accuracy_score(labels, logits, k=k, labels=np.arange(9))
            assert own is not None and own.value == pytest.approx(100 * expected)
    drop = scores["top-1"].drop
    right, still = (metrics.accuracy_score(labels, logits.argmax(1), normalize=False) for logits in (first, second))
    assert drop is not None and drop.value == pytest.approx(100 * (right - still) / 300)


def test_one_logit_is_right_by_its_sign_and_has_no_top_1() -> None:
    first, labels = RANDOM.normal(size=(200, 1)), RANDOM.integers(0, 2, 200)
    second = first + RANDOM.normal(0, 0.5, size=(200, 1))
    score = scored("binary", first, second, labels)["accuracy"]
    before, after = (np.array([int(z > 0) for z in logits.ravel()]) == labels for logits in (first, second))
    assert score.fp32 is not None and score.fp32.value == pytest.approx(100 * metrics.accuracy_score(labels, first > 0))
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    assert lost and gained and score.drop == drop_interval(lost, gained, 200)
    with pytest.raises(LabelMismatchError, match="task binary"):
        scored("single-label", first, second, labels)
    with pytest.raises(LabelMismatchError, match="0 to 1"):
        scored("binary", first, second, labels + 1)


def test_mean_average_precision_is_that_of_scikit_learn_on_every_draw() -> None:
    logits = np.round(RANDOM.normal(size=(60, 5)), 1)  # with ties
    targets = (RANDOM.random((60, 5)) < 0.3).astype(int)
    targets[:, 4] = 0
    counts = np.stack([np.ones(60, int), RANDOM.multinomial(60, np.full(60, 1 / 60))])
    for row, own in zip(counts, mean_average_precision(logits, targets, counts), strict=True):
        images = np.repeat(np.arange(60), row)
        expected = [metrics.average_precision_score(targets[images, c], logits[images, c]) for c in range(4)]
        assert own == pytest.approx(100 * np.mean(expected), rel=1e-12)


def test_a_multi_label_network_has_its_precision_and_its_decisions() -> None:
    logits = RANDOM.normal(size=(80, 6))
    targets = (logits + RANDOM.normal(size=(80, 6)) > 0).astype(int)
    changed = logits + RANDOM.normal(0, 0.3, size=(80, 6))
    scores = scored("multi-label", logits, changed, targets)
    decisions = scores["decisions"]
    assert decisions.fp32 is not None and decisions.drop is not None
    assert decisions.fp32.value == pytest.approx(100 * (1 - metrics.hamming_loss(targets, logits > 0)))
    precision = scores["mean average precision"].quantized
    assert precision.value == pytest.approx(100 * metrics.average_precision_score(targets, changed, average="macro"))
    assert precision.low < precision.value < precision.high
    # The standard error of a mean over images, against which the percentiles of 1,000 draws stay within a tenth.
    losses = 100 * (((logits > 0) == targets).mean(1) - ((changed > 0) == targets).mean(1))
    width = 2 * 1.96 * losses.std() / np.sqrt(80)
    assert decisions.drop.high - decisions.drop.low == pytest.approx(width, rel=0.1)
    with pytest.raises(LabelMismatchError, match="targets of 0 and 1"):
        scored("multi-label", logits, changed, targets.argmax(1))


@pytest.mark.parametrize(("task", "shape"), [("embedding", (50, 16)), ("features", (50, 4, 3, 3))])
def test_features_are_measured_against_fp32(task: str, shape: tuple[int, ...]) -> None:
    first = RANDOM.normal(size=shape).astype(np.float32)
    second = (first + RANDOM.normal(0, 0.1, size=shape)).astype(np.float32)
    scores = scored(task, first, second, None)
    a, b = (values.reshape(50, -1).astype(np.float64) for values in (first, second))
    assert scores["SQNR"].quantized.value == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    cosines = np.diag(metrics.pairwise.cosine_similarity(a, b))
    cosine = scores["cosine"].quantized
    assert cosine.value == pytest.approx(cosines.mean()) and cosine.low <= cosine.value <= cosine.high <= 1
    assert scores["SQNR"].fp32 is None and scores["cosine"].drop is None


def test_miou_is_that_of_scikit_learn_without_the_ignored_pixels() -> None:
    masks = RANDOM.integers(0, 4, (20, 6, 5))
    logits = RANDOM.normal(size=(20, 4, 6, 5)) + 2 * (masks[:, None] == np.arange(4)[None, :, None, None])
    masks[:, 0] = 255
    other = logits + RANDOM.normal(size=logits.shape)
    score = scored("segmentation", logits, other, masks)["mIoU"]
    judged = masks != 255
    for own, values in ((score.fp32, logits), (score.quantized, other)):
        expected = metrics.jaccard_score(masks[judged], values.argmax(1)[judged], average="macro")
        assert own is not None and own.value == pytest.approx(100 * expected)
    assert score.fp32 is not None and score.drop is not None
    assert score.drop.value == pytest.approx(score.fp32.value - score.quantized.value)
    task = Segmentation()
    halves = [
        np.concatenate([task.confusions(values[part], masks[part]) for part in (slice(0, 9), slice(9, 20))])
        for values in (logits, other)
    ]
    assert task.scores_of_confusions(*halves) == [score], "batch after batch is the same"
    with pytest.raises(LabelMismatchError, match="0 to 3"):
        task.confusions(logits, np.where(judged, 4, 255))


def test_a_detection_is_scored_by_its_own_callable_on_the_same_draws() -> None:
    truth = [int(value) for value in RANDOM.integers(0, 2, 40)]
    wrong = [1 - value if index < 8 else value for index, value in enumerate(truth)]

    def hits(answers: list[int], targets: list[int]) -> float:
        return 100 * sum(a == b for a, b in zip(answers, targets, strict=True)) / len(targets)

    (score,) = Detection(hits, "hits").scores(PairedOutputs(truth, wrong), truth)  # type: ignore[arg-type]
    assert score.name == "hits" and score.fp32 is not None and score.drop is not None
    assert (score.fp32.value, score.quantized.value, score.drop.value) == (100, 80, 20)
    assert (
        score.drop.low == pytest.approx(100 - score.quantized.high) and 5 < score.drop.low < 20 < score.drop.high < 40
    )


def test_equal_answers_have_a_drop_of_zero() -> None:
    logits, targets = RANDOM.normal(size=(30, 3)), RANDOM.integers(0, 2, (30, 3))
    drop = scored("multi-label", logits, logits, targets)["mean average precision"].drop
    assert drop is not None and (drop.value, drop.low, drop.high) == (0, 0, 0)
