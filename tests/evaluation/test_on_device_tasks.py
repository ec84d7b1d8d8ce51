"""The kit's script and the host make the same of one logit and of several decisions an image: both go by sign."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from device_files import kit, told

from edgeconvnext.backends.device import kit as script
from edgeconvnext.backends.kit.known import Kit
from edgeconvnext.backends.kit.record import device_record
from edgeconvnext.backends.kit.results import DeviceResults

RANDOM = np.random.default_rng(2)
COUNT = 32


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
    there = SimpleNamespace(
        about=json.loads(network.about.model_dump_json()),
        classes=classes,
        count=COUNT,
        labels=None,
        outputs=[{"name": "logits"}],
        fp32=network.fp32.ravel(),
        simulated=network.simulated.ravel(),
        answers_of=lambda values, _name: values,
    )
    assert script.compare(there, answers.ravel())["agreement"] == pytest.approx(same, rel=1e-12)
    assert record.score == {"binary": "accuracy", "multi-label": "mean average precision"}[task]
