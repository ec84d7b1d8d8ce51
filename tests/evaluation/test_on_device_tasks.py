"""The kit's script and the host make the same of one logit and of several decisions an image: both go by sign."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from device_files import described, kit, told
from pydantic import ValidationError
from sklearn import metrics

from edgeconvnext.backends.device import kit as script
from edgeconvnext.backends.kit.known import Kit
from edgeconvnext.backends.kit.record import device_record
from edgeconvnext.backends.kit.results import DeviceResults

RANDOM = np.random.default_rng(2)
COUNT = 32


def there(network: Kit) -> SimpleNamespace:
    """Return the kit as its script reads it."""
    return SimpleNamespace(
        about=json.loads(network.about.model_dump_json()),
        classes=network.about.classes,
        count=COUNT,
        labels=network.about.labels,
        outputs=[{"name": "logits"}],
        fp32=network.fp32.ravel(),
        simulated=network.simulated.ravel(),
        answers_of=lambda values, _name: values,
    )


def exported(task: str, classes: int) -> Kit:
    outputs = [{"name": "logits", "size": classes, "samples": classes}]
    described = kit(labels=False, task=task, classes=classes, outputs=outputs).about
    fp32 = RANDOM.normal(size=(COUNT, classes)).astype(np.float32)
    return Kit("a" * 64, described, fp32, fp32 + np.float32(0.01))


@pytest.mark.parametrize(("task", "classes"), [("binary", 1), ("multi-label", 6)])
def test_agreement_is_that_of_the_signs(task: str, classes: int) -> None:
    network = exported(task, classes)
    answers = network.fp32 + RANDOM.normal(0, 0.7, network.fp32.shape).astype(np.float32)
    same = 100 * np.mean([(a > 0) == (b > 0) for a, b in zip(answers.ravel(), network.fp32.ravel(), strict=True)])
    assert same < 100
    record = device_record(DeviceResults.model_validate(told(answers)), network)
    assert record.agreement == pytest.approx(same, rel=1e-12)
    assert script.compare(there(network), answers.ravel())["agreement"] == pytest.approx(same, rel=1e-12)
    assert record.score == {"binary": "accuracy", "multi-label": "mean average precision"}[task]


def test_targets_for_each_class_give_mean_average_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host computes it; the script counts decisions, and says that these are decisions."""
    rng = np.random.default_rng(4)
    targets = (rng.random((COUNT, 6)) < 0.4).astype(int)
    outputs = [{"name": "logits", "size": 6, "samples": 6}]
    about = described(labels=targets.tolist(), task="multi-label", classes=6, outputs=outputs)
    fp32 = (targets + rng.normal(size=(COUNT, 6))).astype(np.float32)
    network = Kit("a" * 64, about, fp32, fp32)
    answers = fp32 + rng.normal(0, 0.5, fp32.shape).astype(np.float32)
    record = device_record(DeviceResults.model_validate(told(answers)), network)
    assert record.artifact is not None and record.drop_pp is not None
    before, after = (100 * metrics.average_precision_score(targets, z, average="macro") for z in (fp32, answers))
    assert record.artifact.value == pytest.approx(after, rel=1e-9)
    assert record.drop_pp.value == pytest.approx(before - after, rel=1e-9)
    check = script.compare(there(network), answers.ravel())
    assert "score" not in check
    monkeypatch.setattr(script, "HERE", tmp_path)
    script.finish({"forms": {}, "check": check}, [])
    assert (
        f"agreement with FP32 {record.agreement:.1f} % of {6 * COUNT} decisions on {COUNT} images"
        in capsys.readouterr().out
    )


def test_a_kit_without_a_class_in_its_images_has_no_precision() -> None:
    outputs = [{"name": "logits", "size": 6, "samples": 6}]
    about = described(labels=[[0] * 6] * COUNT, task="multi-label", classes=6, outputs=outputs)
    values = RANDOM.normal(size=(COUNT, 6)).astype(np.float32)
    record = device_record(DeviceResults.model_validate(told(values)), Kit("a" * 64, about, values, values))
    assert record.artifact is None and "none of the classes" in record.not_measured["artifact"]


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("multi-label", [1] * COUNT),
        ("multi-label", [[0, 1]] * COUNT),
        ("multi-label", [[0, 2, 0, 0, 0, 0]] * COUNT),
        ("single-label", [[0, 1, 0, 0, 0, 0]] * COUNT),
    ],
)
def test_labels_of_another_task_are_refused(task: str, labels: list[object]) -> None:
    with pytest.raises(ValidationError, match="a label is none of 6 classes"):
        described(labels=labels, task=task, classes=6, outputs=[{"name": "logits", "size": 6, "samples": 6}])


def test_older_kits_call_the_score_top1() -> None:
    figures = {"images": 32, "outputs": [], "fidelity_db": 40.0, "sqnr_db": 30.0, "agreement": 96.875}
    older = DeviceResults.model_validate(told(None, check=figures | {"top1": 75.0, "top1_fp32": 78.125}))
    newer = DeviceResults.model_validate(told(None, check=figures | {"score": 75.0, "score_fp32": 78.125}))
    assert older.check is not None and older.check == newer.check
    assert (older.check.score, older.check.score_fp32) == (75.0, 78.125)
