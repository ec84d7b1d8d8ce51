"""Accuracy figures: hand-computed cases, and intervals that cover the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeconvnext.errors import CheckpointError, ExportError, LabelMismatchError, QuantizationError
from edgeconvnext.evaluation.accuracy import agreement, compare, not_measured, topk
from edgeconvnext.evaluation.intervals import drop_interval, wilson
from edgeconvnext.sqnr import LARGEST_DB, logit_sqnr_db

REFERENCE = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4], [4, 0, 1]], np.float32)
QUANTIZED = np.array([[4, 0, 0], [0, 4, 5], [0, 0, 4], [1, 0, 2]], np.float32)
LABELS = np.array([0, 1, 2, 2])
IDS = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
NAMES = ["tench", "springer", "cassette player"]


def logits_with_top1(classes: np.ndarray, num_classes: int = 10) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[classes]


def test_top1_counts_hits_and_top5_ranks_below_it() -> None:
    logits = np.tile(np.arange(8, 0, -1, dtype=np.float32), (5, 1))
    scores = topk(logits, np.array([0, 1, 4, 5, 7]))
    assert (scores.value, scores.top5, scores.n) == (20.0, 60.0, 5)


def test_top5_is_null_below_six_classes() -> None:
    assert topk(np.eye(5, dtype=np.float32), np.arange(5)).top5 is None
    assert topk(np.eye(6, dtype=np.float32), np.arange(6)).top5 == 100.0


def test_a_constant_network_is_right_for_one_class_only() -> None:
    scores = topk(np.zeros((10, 10), np.float32), np.arange(10))
    assert (scores.value, scores.top5) == (10.0, 50.0)


def test_wilson_interval_of_known_cases() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_drop_of_a_hand_computed_case() -> None:
    # lost 10, gained 2, n 1000: p = 11/1002 and 3/1002; centre 8/1002 = 0.7984 points;
    # half = 1.96 * sqrt((14/1002 - (8/1002)^2) / 1002) = 0.7302 points.
    drop = drop_interval(10, 2, 1000)
    assert (drop.value, drop.low, drop.high) == pytest.approx((0.8, 0.0682, 1.5286), abs=1e-4)


@pytest.mark.parametrize(("loss", "gain", "n"), [(0.02, 0.01, 500), (0.03, 0.03, 200), (0.005, 0.0, 2000)])
def test_drop_interval_covers_the_true_drop(loss: float, gain: float, n: int) -> None:
    rng = np.random.default_rng(0)
    trials = 3000
    counts = rng.multinomial(n, [loss, gain, 1 - loss - gain], size=trials)
    covered = 0
    for lost, gained, _ in counts:
        drop = drop_interval(int(lost), int(gained), n)
        covered += drop.low <= 100 * (loss - gain) <= drop.high
    # Binomial standard error of 95 % over 3000 trials is 0.4 points; the method leans to the cautious side.
    assert 0.94 <= covered / trials <= 0.995


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5000))
def test_drop_interval_holds_its_value_and_mirrors(lost: int, gained: int, same: int) -> None:
    n = lost + gained + same + 1
    drop, mirrored = drop_interval(lost, gained, n), drop_interval(gained, lost, n)
    assert -100 <= drop.low <= drop.value <= drop.high <= 100
    assert drop.high - drop.low > 0
    assert (mirrored.low, mirrored.high) == pytest.approx((-drop.high, -drop.low))


def test_sqnr_of_known_ratios() -> None:
    reference = np.random.default_rng(0).standard_normal((20, 7)).astype(np.float32)
    assert logit_sqnr_db(reference, 2 * reference) == pytest.approx(0.0, abs=1e-5)
    assert logit_sqnr_db(reference, 1.1 * reference) == pytest.approx(20.0, abs=1e-4)
    assert logit_sqnr_db(reference, reference) == LARGEST_DB
    assert logit_sqnr_db(np.zeros_like(reference), reference) == -LARGEST_DB


@given(st.floats(1e-3, 0.5), st.integers(0, 1000))
def test_sqnr_falls_by_six_db_when_the_error_doubles(error: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, noise = rng.standard_normal((8, 5)), rng.standard_normal((8, 5))
    once, twice = (logit_sqnr_db(reference, reference + factor * error * noise) for factor in (1, 2))
    assert once - twice == pytest.approx(20 * math.log10(2), abs=1e-6)


def test_agreement_is_the_share_of_equal_answers() -> None:
    assert agreement(REFERENCE, QUANTIZED) == 50.0


def test_compare_reports_the_artifact_and_keeps_the_simulation_beside_it() -> None:
    result = compare(REFERENCE, REFERENCE, QUANTIZED, LABELS, NAMES, IDS, dataset="four")
    assert (result.measured_on, result.images, result.dataset) == ("artifact", 4, "four")
    assert result.fp32 is not None and result.simulated is not None and result.artifact is not None
    assert (result.fp32.value, result.simulated.value, result.artifact.value) == (75.0, 75.0, 75.0)
    assert result.drop_pp is not None and result.drop_pp.value == 0.0
    assert result.simulated_sqnr_db == LARGEST_DB
    # signal 16 * 3 + 17 = 65, error 5^2 + 3^2 + 1^2 = 35
    assert result.sqnr_db == pytest.approx(10 * math.log10(65 / 35))
    changes = {change.label: (change.n, change.fp32, change.artifact) for change in result.classes}
    assert changes == {"tench": (1, 100, 100), "springer": (1, 100, 0), "cassette player": (2, 50, 100)}


def test_flips_name_the_images_surest_first_with_softmax_confidences() -> None:
    flips = compare(REFERENCE, None, QUANTIZED, LABELS, NAMES, IDS).flips
    assert [(flip.image, flip.label, flip.fp32, flip.artifact) for flip in flips] == [
        ("b.jpg", "springer", "springer", "cassette player"),
        ("d.jpg", "cassette player", "tench", "cassette player"),
    ]
    assert flips[0].fp32_confidence == pytest.approx(math.exp(4) / (math.exp(4) + 2))
    assert flips[0].artifact_confidence == pytest.approx(math.exp(5) / (math.exp(5) + math.exp(4) + 1))
    assert flips[1].fp32_confidence == pytest.approx(math.exp(4) / (math.exp(4) + 1 + math.e))


def test_without_labels_agreement_and_sqnr_remain() -> None:
    result = compare(REFERENCE, QUANTIZED, None, None, None, IDS)
    assert result.fp32 is None and result.drop_pp is None and result.classes == []
    assert (result.agreement, result.measured_on) == (50.0, "simulation")
    assert [(flip.label, flip.fp32) for flip in result.flips] == [(None, "class 1"), (None, "class 0")]
    reasons = not_measured(result, labels_reason="no labels", artifact_reason="no board")
    assert reasons == {
        "accuracy.fp32": "no labels",
        "accuracy.simulated": "no labels",
        "accuracy.drop_pp": "no labels",
        "accuracy.artifact": "no board",
        "accuracy.runtime": "no board",
    }


def test_every_null_of_a_labelled_comparison_has_its_reason() -> None:
    result = compare(REFERENCE, QUANTIZED, None, LABELS, NAMES, IDS)
    reasons = not_measured(result, labels_reason="no labels", artifact_reason="no board")
    assert set(reasons) == {"accuracy.artifact", "accuracy.runtime", "accuracy.fp32.top5", "accuracy.simulated.top5"}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error_that_names_their_producer(bad: float) -> None:
    broken = REFERENCE.copy()
    broken[2, 1] = bad
    with pytest.raises(ExportError, match=r"artifact returns NaN or Inf for 1 of 4 images \(first: row 2\)"):
        compare(REFERENCE, REFERENCE, broken, LABELS, NAMES, IDS)
    with pytest.raises(QuantizationError, match="simulated quantised graph returns"):
        compare(REFERENCE, broken, None, LABELS, NAMES, IDS)
    with pytest.raises(CheckpointError, match="FP32 model returns"):
        compare(broken, REFERENCE, None, LABELS, NAMES, IDS)


def test_logits_of_another_network_are_an_error() -> None:
    with pytest.raises(ExportError, match="not the same network"):
        compare(REFERENCE, None, QUANTIZED[:, :2], LABELS, NAMES, IDS)


def test_labels_must_fit_the_model_and_the_images() -> None:
    with pytest.raises(LabelMismatchError, match="outside the model's 3 classes"):
        compare(REFERENCE, QUANTIZED, None, LABELS + 1, NAMES, IDS)
    with pytest.raises(LabelMismatchError, match="3 labels for 4 images"):
        compare(REFERENCE, QUANTIZED, None, LABELS[:3], NAMES, IDS)


def test_imagenet_sized_sets_take_no_more_than_one_pass() -> None:
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 10, 50_000)
    changed = np.where(rng.random(50_000) < 0.01, (answers + 1) % 10, answers)
    ids = [str(index) for index in range(50_000)]
    result = compare(logits_with_top1(answers), None, logits_with_top1(changed), answers, None, ids)
    assert result.drop_pp is not None
    assert result.drop_pp.value == pytest.approx(100 * (answers != changed).mean())
    assert len(result.flips) == (answers != changed).sum()
    assert 0.1 < result.drop_pp.high - result.drop_pp.low < 0.2
