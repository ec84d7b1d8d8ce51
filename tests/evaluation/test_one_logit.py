"""A network with one logit is judged by its sign, everywhere: the largest of one logit cannot change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import special, stats

from edgeconvnext.data.decided_labels import decided_labels
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.decisions import two_logits
from edgeconvnext.errors import LabelMismatchError
from edgeconvnext.evaluation.accuracy import compare
from edgeconvnext.evaluation.intervals import drop_interval
from edgeconvnext.rewrite.prune_segments import logit_agreement, logit_kl
from edgeconvnext.tuning.norm_removal import measure_loss

RANDOM = np.random.default_rng(5)
FP32 = RANDOM.normal(size=(40, 1)).astype(np.float32)
INT8 = FP32 + RANDOM.normal(0, 0.5, size=(40, 1)).astype(np.float32)
TARGETS = RANDOM.integers(0, 2, 40)
IDS = [f"{index}.png" for index in range(40)]
SIDES = [bool(z > 0) for z in FP32[:, 0]], [bool(z > 0) for z in INT8[:, 0]]
CHANGED = [name for name, before, after in zip(IDS, *SIDES, strict=True) if before != after]


def test_its_two_logits_have_the_sign_and_the_sigmoid() -> None:
    pairs = two_logits(FP32)
    assert list(pairs.argmax(1)) == SIDES[0] and pairs.dtype == np.float32
    np.testing.assert_allclose(special.softmax(pairs, 1)[:, 1], special.expit(FP32[:, 0]), rtol=1e-6)
    assert np.array_equal(two_logits(torch.from_numpy(FP32)).numpy(), pairs)
    assert two_logits(np.zeros((1, 1))).argmax(1) == 0, "0 is no"
    assert two_logits(np.ones((3, 2))).shape == (3, 2)


def test_agreement_is_by_sign_and_changed_images_are_listed() -> None:
    result = compare(FP32, None, INT8, None, None, IDS)
    assert (result.task, result.score) == ("binary", "accuracy")
    assert CHANGED and result.agreement == pytest.approx(100 * (1 - len(CHANGED) / 40))
    assert sorted(flip.image for flip in result.flips) == sorted(CHANGED)
    first = result.flips[0]
    z = float(FP32[IDS.index(first.image), 0])
    assert first.fp32_confidence == pytest.approx(special.expit(abs(z)), rel=1e-6)
    assert (first.fp32, first.artifact) == (("yes", "no") if z > 0 else ("no", "yes"))
    lost = [2 * special.expit(abs(float(FP32[IDS.index(name), 0]))) - 1 for name in CHANGED]
    assert result.expected_drop_pp is not None
    assert result.expected_drop_pp.value == pytest.approx(100 * sum(lost) / 40, rel=1e-6)
    assert result.fp32 is None and result.drop_pp is None


def test_accuracy_is_by_sign_with_the_paired_interval() -> None:
    result = compare(FP32, INT8, INT8, TARGETS, ("cat",), IDS)
    right, still = (np.array(side) == TARGETS for side in SIDES)
    assert result.fp32 is not None and result.artifact is not None
    expected = stats.binomtest(int(right.sum()), 40).proportion_ci(method="wilson")
    assert (result.fp32.value, result.fp32.low, result.fp32.high) == pytest.approx(
        (100 * right.mean(), 100 * expected.low, 100 * expected.high)
    )
    assert result.artifact.value == pytest.approx(100 * still.mean()) and result.artifact.top5 is None
    assert result.drop_pp == drop_interval(int((right & ~still).sum()), int((still & ~right).sum()), 40)
    assert [change.label for change in result.classes] == ["not cat", "cat"]
    with pytest.raises(LabelMismatchError, match="task binary"):
        compare(FP32, None, INT8, None, None, IDS, task="single-label")


def test_divergence_and_losses_are_those_of_the_sigmoid() -> None:
    first, second = torch.from_numpy(FP32), torch.from_numpy(INT8)
    p, q = (special.expit(values[:, 0].astype(np.float64)) for values in (FP32, INT8))
    kl = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert logit_kl(first, second) == pytest.approx(kl, rel=1e-6)
    loss = measure_loss(first, second, None)
    assert (loss.kl, loss.points) == pytest.approx((kl, 100 * len(CHANGED) / 40), rel=1e-6)
    assert logit_agreement(first, second) == pytest.approx(100 - loss.points)


@pytest.mark.parametrize(
    ("classes", "labels", "yes"),
    [
        (("0", "1"), None, "1"),
        (("no", "yes"), None, "yes"),
        (("Negative", "Positive"), None, "Positive"),
        (("cat", "dog"), ("cat",), "cat"),
        (("cat", "dog"), ("dog", "cat"), "cat"),
        (("cat", "dog"), None, None),
        (("cat", "dog"), ("bird",), None),
        (("0", "1", "2"), None, None),
    ],
)
def test_the_class_that_means_yes_is_named_never_guessed(
    tmp_path, classes: tuple[str, ...], labels: tuple[str, ...] | None, yes: str | None
) -> None:
    for index, name in enumerate(classes):
        (tmp_path / name).mkdir()
        for number in range(index + 1):
            Image.new("RGB", (4, 4), (index, number, 0)).save(tmp_path / name / f"{number}.png")
    images = resolve_image_set(tmp_path)
    names = None if labels is None else Labels(labels, labels)
    if yes is None:
        with pytest.raises(LabelMismatchError, match="Call them 0 and 1"):
            decided_labels(images, names)
    else:
        assert images.labels is not None
        expected = [images.class_names[label] == yes for label in images.labels]
        assert list(decided_labels(images, names)) == expected
