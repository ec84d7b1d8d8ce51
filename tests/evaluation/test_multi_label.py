"""Several labels an image: decisions by sign, and mean average precision where there are targets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn import metrics

from edgeconvnext.evaluation.accuracy import compare, not_measured

RANDOM = np.random.default_rng(11)
FP32 = RANDOM.normal(size=(50, 4)).astype(np.float32)
INT8 = FP32 + RANDOM.normal(0, 0.2, size=(50, 4)).astype(np.float32)
TARGETS = (FP32 + RANDOM.normal(0, 1, size=(50, 4)) > 0).astype(np.int64)
IDS = [f"{index}.png" for index in range(50)]
NAMES = ("a", "b", "c", "d")


def test_decisions_agree_by_sign_and_changed_images_name_their_classes() -> None:
    result = compare(FP32, INT8, None, None, NAMES, IDS, task="multi-label")
    assert (result.task, result.score, result.measured_on) == ("multi-label", "mean average precision", "simulation")
    assert result.agreement == pytest.approx(100 * (1 - metrics.hamming_loss(FP32 > 0, INT8 > 0)))
    changed = {IDS[row] for row in range(50) if list(FP32[row] > 0) != list(INT8[row] > 0)}
    assert changed and {flip.image for flip in result.flips} == changed
    flip = result.flips[0]
    row = IDS.index(flip.image)
    assert flip.fp32 == (", ".join(name for name, z in zip(NAMES, FP32[row], strict=True) if z > 0) or "none")
    moved = [abs(a) for a, b in zip(FP32[row], INT8[row], strict=True) if (a > 0) != (b > 0)]
    assert flip.fp32_confidence == pytest.approx(special.expit(max(moved)), rel=1e-6)
    reasons = not_measured(result, "no targets", "no board")
    assert reasons["accuracy.fp32"] == "no targets" and "one class" in reasons["accuracy.expected_drop_pp"]


def test_targets_give_mean_average_precision_and_its_paired_drop() -> None:
    result = compare(FP32, INT8, INT8, TARGETS, NAMES, IDS)
    before, after = (100 * metrics.average_precision_score(TARGETS, z, average="macro") for z in (FP32, INT8))
    assert result.task == "multi-label", "inferred from the targets"
    assert result.fp32 is not None and result.artifact is not None and result.drop_pp is not None
    assert (result.fp32.value, result.artifact.value) == pytest.approx((before, after))
    assert result.drop_pp.value == pytest.approx(before - after)
    # Paired: the same draws for both, so the drop is far less uncertain than either score.
    assert result.drop_pp.high - result.drop_pp.low < 0.5 * (result.fp32.high - result.fp32.low)
