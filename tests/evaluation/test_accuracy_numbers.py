"""Every figure of accuracy against scipy, a published table, or counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from edgeconvnext.errors import ExportError, LabelMismatchError
from edgeconvnext.evaluation import accuracy, intervals
from edgeconvnext.schema.report import Accuracy, Interval, ScoreRecord
from edgeconvnext.sqnr import LARGEST_DB, power_ratio_db

COUNTS = [(hits, n) for n in (1, 2, 7, 60, 1000, 50_000) for hits in {0, 1, n // 3, n - 1, n}]


def test_the_quantile_is_that_of_the_normal_distribution() -> None:
    assert stats.norm.ppf(0.975) == intervals.Z95


@pytest.mark.parametrize(("hits", "n"), COUNTS)
def test_wilson_is_scipys_score_interval(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert intervals.wilson(hits, n) == pytest.approx((expected.low, expected.high), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_of_newcombes_table(hits: int, n: int, low: float, high: float) -> None:
    """R. G. Newcombe, 1998, Stat. Med. 17:857, table I, method 3: four digits are printed."""
    assert intervals.wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_never_leaves_0_to_1_by_a_rounding() -> None:
    ends = [(*intervals.wilson(0, n), *intervals.wilson(n, n)) for n in range(1, 3000)]
    assert all(0 <= low < high < upper_low < upper_high <= 1 for low, high, upper_low, upper_high in ends[3:])
    assert intervals.wilson(0, 20)[0] == 0 and intervals.wilson(20, 20)[1] == 1


def paired_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Bonett and Price (2012) as mean and variance of n + 2 scores: 1 for a loss, -1 for a gain, one of each added."""
    scores = np.concatenate([np.ones(lost + 1), -np.ones(gained + 1), np.zeros(n - lost - gained)])
    half = stats.norm.ppf(0.975) * scores.std() / math.sqrt(len(scores))
    return float(np.clip(scores.mean() - half, -1, 1)), float(np.clip(scores.mean() + half, -1, 1))


@pytest.mark.parametrize(
    ("lost", "gained", "n"),
    [(0, 0, 1), (0, 0, 60), (1, 0, 1), (0, 1, 1), (3, 9, 40), (10, 2, 1000), (25, 0, 25), (0, 25, 25), (400, 90, 5000)],
)
def test_paired_drop_interval_is_mean_and_variance_of_paired_scores(lost: int, gained: int, n: int) -> None:
    drop = intervals.drop_interval(lost, gained, n)
    low, high = paired_interval(lost, gained, n)
    assert drop.value == pytest.approx(100 * (lost - gained) / n, rel=1e-14)
    assert (drop.low, drop.high) == pytest.approx((100 * low, 100 * high), rel=1e-12)


def test_paired_drop_interval_of_a_published_table() -> None:
    """Complete responses of Cavo et al. (2012): 6 and 16 discordant of 161 pairs, -0.0621 (-0.1195 to -0.0032).

    Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8, Wald interval with Bonett and Price's
    adjustment, as the book's R package (contingencytables) prints it.
    """
    drop = intervals.drop_interval(6, 16, 161)
    assert (drop.value, drop.low, drop.high) == pytest.approx((-6.21, -11.95, -0.32), abs=5e-3)


def test_paired_drop_counts_only_images_on_which_one_network_is_right() -> None:
    # Image by image: both right, only FP32 (twice), only the other, both wrong alike, both wrong otherwise.
    labels = np.array([0, 1, 2, 0, 1, 2])
    reference = np.eye(3)[[0, 1, 2, 1, 2, 0]]
    quantized = np.eye(3)[[0, 0, 1, 0, 2, 1]]
    drop = accuracy.paired_drop(reference, quantized, labels)
    low, high = paired_interval(2, 1, 6)
    assert (drop.value, drop.low, drop.high) == pytest.approx((100 / 6, 100 * low, 100 * high))


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(2, 9))
def test_topk_ranks_as_a_stable_sort_does(seed: int, images: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 3, (images, classes)).astype(np.float32)  # many ties
    labels = rng.integers(0, classes, images)
    scores = accuracy.topk(logits, labels)
    order = np.argsort(-logits, axis=1, kind="stable")
    first = sum(int(row[0] == label) for row, label in zip(order, labels, strict=True))
    five = sum(int(label in row[:5]) for row, label in zip(order, labels, strict=True))
    expected = stats.binomtest(first, images).proportion_ci(method="wilson")
    assert scores.n == images
    assert scores.value == pytest.approx(100 * first / images)
    assert (scores.low, scores.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-10)
    assert (scores.top5 is None) == (classes < 6)
    assert scores.top5 is None or scores.top5 == pytest.approx(100 * five / images)


def test_agreement_and_class_changes_are_counts_by_class() -> None:
    labels = np.array([3, 1, 1, 3, 3])
    reference = np.eye(5)[[3, 1, 0, 3, 2]]
    quantized = np.eye(5)[[3, 0, 1, 4, 2]]
    assert accuracy.agreement(reference, quantized) == pytest.approx(40.0)
    rows = accuracy.class_changes(reference, quantized, labels, None)
    assert [(row.label, row.n) for row in rows] == [("class 1", 2), ("class 3", 3)]
    assert [(row.fp32, row.artifact) for row in rows] == [
        (pytest.approx(50), pytest.approx(50)),
        (pytest.approx(200 / 3), pytest.approx(100 / 3)),
    ]


def test_flips_are_in_order_of_fp32s_confidence_then_of_the_images() -> None:
    reference = np.array([[2, 0, 0], [5, 0, 0], [0, 2, 0], [0, 0, 9], [0, 2, 0]], np.float32)
    quantized = np.array([[0, 2, 1], [0, 1, 3], [1, 0, 0], [0, 0, 1], [800, -800, 0]], np.float32)
    flips = accuracy.flips(reference, quantized, np.array([0, 1, 2, 2, 1]), ["a", "b", "c"], list("pqrst"))
    assert [(flip.image, flip.label, flip.fp32, flip.artifact) for flip in flips] == [
        ("q", "b", "a", "c"),
        ("p", "a", "a", "b"),
        ("r", "c", "b", "a"),
        ("t", "b", "b", "a"),
    ]
    # 1e-12: both are a few float64 roundings from the exact softmax.
    before = special.softmax(reference[[1, 0, 2, 4]].astype(np.float64), axis=1).max(1)
    after = special.softmax(quantized[[1, 0, 2, 4]].astype(np.float64), axis=1).max(1)
    assert [flip.fp32_confidence for flip in flips] == pytest.approx(before.tolist(), rel=1e-12)
    assert [flip.artifact_confidence for flip in flips] == pytest.approx(after.tolist(), rel=1e-12)


def test_no_flips_where_every_answer_stays() -> None:
    assert accuracy.flips(np.eye(3), 2 * np.eye(3), None, None, ["a", "b", "c"]) == []


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-9, 6))
def test_sqnr_is_the_log_of_the_power_ratio(seed: int, magnitude: float) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((6, 4))
    quantized = reference + 10**magnitude * rng.standard_normal((6, 4))
    # Norms instead of sums of squares, and 20 log10 instead of 10.
    expected = 20 * np.log10(np.linalg.norm(reference) / np.linalg.norm(reference - quantized))
    assert accuracy.logit_sqnr_db(reference, quantized) == pytest.approx(float(expected), abs=1e-9)


def test_sqnr_is_formed_in_float64() -> None:
    reference = np.full((1, 4), 60000, np.float16)  # its square is beyond float16
    quantized = np.full((1, 4), 30000, np.float16)
    assert accuracy.logit_sqnr_db(reference, quantized) == pytest.approx(20 * math.log10(2), rel=1e-12)


@pytest.mark.parametrize(
    ("signal", "noise", "decibels"),
    [
        (1.0, 0.0, 200.0),
        (0.0, 0.0, 200.0),
        (0.0, 1.0, -200.0),
        (1e-30, 1.0, -200.0),
        (1.0, 1e-30, 200.0),
        (1.0, 1e-19, 190.0),
        (1e-19, 1.0, -190.0),
        (50.0, 5.0, 10.0),
        (5.0, 5.0, 0.0),
        (1.0, 0.5, 10 * math.log10(2)),
        (0.5, 1.0, -10 * math.log10(2)),
    ],
)
def test_power_ratios_end_at_200_db(signal: float, noise: float, decibels: float) -> None:
    assert LARGEST_DB == 200
    assert power_ratio_db(signal, noise) == pytest.approx(decibels, rel=1e-12, abs=1e-12)


REFERENCE = np.eye(7)[[0, 1, 2, 3]]
ONE_LOST = np.eye(7)[[0, 1, 2, 4]]
TWO_LOST = np.eye(7)[[0, 1, 6, 4]]
LABELS = np.array([0, 1, 2, 3])
IDS = ["a", "b", "c", "d"]


def compared(simulated: np.ndarray | None, artifact: np.ndarray | None, labels: np.ndarray | None = LABELS) -> Accuracy:
    return accuracy.compare(REFERENCE, simulated, artifact, labels, None, IDS, dataset="set", runtime="engine")


def top1(scores: ScoreRecord | None) -> float | None:
    return None if scores is None else scores.value


def test_figures_of_a_comparison_are_the_artifacts_where_it_ran() -> None:
    both = compared(ONE_LOST, TWO_LOST)
    assert (both.dataset, both.images, both.runtime, both.measured_on) == ("set", 4, "engine", "artifact")
    assert (top1(both.fp32), top1(both.simulated), top1(both.artifact)) == (100, 75, 50)
    assert both.agreement == 50
    # Each flipped one-hot row errs in two places: power 4 against 4, and 2 against 4.
    assert both.sqnr_db == pytest.approx(0.0, abs=1e-12)
    assert both.simulated_sqnr_db == pytest.approx(10 * math.log10(2), rel=1e-12)
    assert [flip.image for flip in both.flips] == ["c", "d"]
    assert both.drop_pp == intervals.drop_interval(2, 0, 4)
    assert [row.artifact for row in both.classes] == [100, 100, 0, 0]

    simulation = compared(ONE_LOST, None)
    assert (simulation.measured_on, simulation.agreement, simulation.artifact) == ("simulation", 75, None)
    assert simulation.sqnr_db == simulation.simulated_sqnr_db == pytest.approx(10 * math.log10(2), rel=1e-12)
    assert [flip.image for flip in simulation.flips] == ["d"]
    assert simulation.drop_pp == intervals.drop_interval(1, 0, 4)

    artifact = compared(None, TWO_LOST)
    assert (artifact.simulated, artifact.simulated_sqnr_db, artifact.measured_on) == (None, None, "artifact")
    assert (top1(artifact.artifact), artifact.agreement) == (50, 50)

    alone = compared(None, None)
    assert (top1(alone.fp32), alone.simulated, alone.artifact) == (100, None, None)
    assert (alone.measured_on, alone.agreement, alone.sqnr_db, alone.drop_pp) == (None, None, None, None)
    assert alone.flips == [] and alone.classes == []


def test_ids_and_labels_must_be_one_an_image() -> None:
    for ids in (IDS[:3], [*IDS, "e"]):
        with pytest.raises(ValueError, match=f"{len(ids)} image ids for 4 rows"):
            accuracy.compare(REFERENCE, None, None, None, None, ids)
    for labels in (LABELS[:3], np.append(LABELS, 0), LABELS[:, None]):
        with pytest.raises(LabelMismatchError, match="4 images"):
            compared(None, None, labels)
    for wrong in (-1, 7):
        with pytest.raises(LabelMismatchError, match=rf"^1 labels lie .* 7 classes \(first: {wrong}\)"):
            compared(None, None, np.array([0, 6, wrong, 3]))
    assert compared(None, None, np.array([0, 6, 6, 0])).images == 4


def test_every_row_must_be_finite() -> None:
    for row in range(4):
        broken = ONE_LOST.copy()
        broken[row, 6] = -np.inf
        with pytest.raises(ExportError, match=rf"for 1 of 4 images \(first: row {row}\)"):
            compared(None, broken)


def test_the_expected_drop_is_the_probability_that_changed_classes_had_more() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(0, 2, (2, 40, 5))
    softmax = special.softmax(first, axis=1)
    losses = [100 * (max(row) - row[chosen.argmax()]) for row, chosen in zip(softmax, second, strict=True)]
    half = 1.959963984540054 * stats.sem(losses)
    drop = accuracy.expected_drop(first, second)
    assert (drop.value, drop.high - drop.value) == pytest.approx((np.mean(losses), half), rel=1e-9)
    same = accuracy.expected_drop(first, first)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    one = accuracy.expected_drop(first[:1], second[:1])
    assert (one.low, one.high) == (0, 100), "one image says nothing"


DROP = Interval(value=1.0, low=0.0, high=2.0)
WITHOUT_TOP5 = ScoreRecord(value=50.0, low=40.0, high=60.0, top5=None, n=9)
WITH_TOP5 = WITHOUT_TOP5.model_copy(update={"top5": 90.0})


def test_nothing_measured_names_every_null() -> None:
    labels, artifact = "no labels", "no board"
    assert accuracy.not_measured(Accuracy(), labels, artifact) == {
        "accuracy.fp32": labels,
        "accuracy.simulated": labels,
        "accuracy.drop_pp": labels,
        "accuracy.expected_drop_pp": labels,
        "accuracy.agreement": labels,
        "accuracy.sqnr_db": labels,
        "accuracy.simulated_sqnr_db": labels,
        "accuracy.measured_on": labels,
        "accuracy.artifact": artifact,
        "accuracy.runtime": artifact,
    }


def test_reasons_follow_what_ran() -> None:
    full = Accuracy(
        fp32=WITH_TOP5,
        simulated=WITH_TOP5,
        artifact=WITH_TOP5,
        drop_pp=DROP,
        expected_drop_pp=DROP,
        agreement=1.0,
        sqnr_db=1.0,
        simulated_sqnr_db=1.0,
        measured_on="artifact",
        runtime="engine",
    )
    top5 = "top-5 says nothing for fewer than six classes"
    cases: list[tuple[dict[str, object], dict[str, str]]] = [
        ({}, {}),
        ({"artifact": None}, {"accuracy.artifact": "no labels"}),
        ({"artifact": None, "measured_on": "simulation"}, {"accuracy.artifact": "no board"}),
        ({"runtime": None}, {}),
        ({"runtime": None, "measured_on": "simulation"}, {"accuracy.runtime": "no board"}),
        ({"measured_on": "simulation"}, {}),
        ({"fp32": WITHOUT_TOP5}, {"accuracy.fp32.top5": top5}),
        ({"simulated": WITHOUT_TOP5}, {"accuracy.simulated.top5": top5}),
        ({"artifact": WITHOUT_TOP5}, {"accuracy.artifact.top5": top5}),
    ]
    for change, expected in cases:
        assert accuracy.not_measured(full.model_copy(update=change), "no labels", "no board") == expected, change
