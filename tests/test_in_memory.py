"""From a module and a loader in memory to an artifact: what `quantize` of Python objects returns and reuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import micro_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgeconvnext
from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.loader import batches
from edgeconvnext.errors import CheckpointError, ExportError, ImageSetError, QuantizationError, RunDirectoryError
from edgeconvnext.pipeline.commands import Outcome
from edgeconvnext.pipeline.job import Request, resolve
from tests.model.foreign_modules import AuthorsConvNeXt, TimmConvNeXt

MICRO = micro_model()


def data(name: str, count: int) -> TensorDataset:
    """Return digits as a user's loader has them: prepared, with their classes."""
    images = digits_set(name).take(count)
    assert images.labels is not None
    values = torch.cat([batch.images for batch in batches(images, MICRO.preprocess)])
    return TensorDataset(values.contiguous(), torch.tensor(images.labels))


CALIBRATION, EVALUATION = data("calibration", 48), data("test", 96)


def quantized(module: nn.Module, folder: Path) -> Outcome:
    loader = DataLoader(CALIBRATION, batch_size=16, shuffle=True)
    return edgeconvnext.quantize(
        module, calib=loader, eval=DataLoader(EVALUATION, batch_size=32), effort="quick", target="onnx", output=folder
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("in_memory")


@pytest.fixture(scope="module")
def result(folder: Path) -> Outcome:
    return quantized(TimmConvNeXt(MICRO), folder / "run")


def test_accuracy_is_that_of_the_modules_own_forward(result: Outcome) -> None:
    images, labels = EVALUATION.tensors
    with torch.inference_mode():
        right = (TimmConvNeXt(MICRO).eval()(images).argmax(1) == labels).float().mean()
        simulated = (result.module(images).argmax(1) == labels).float().mean()
    accuracy = result.report.accuracy
    assert accuracy.fp32 is not None and accuracy.simulated is not None
    assert accuracy.fp32.value == pytest.approx(100 * float(right))
    assert accuracy.simulated.value == pytest.approx(100 * float(simulated))
    assert isinstance(result.module, nn.Module) and result.module.train().training is not None
    notes = " ".join(result.report.notes)
    assert "timm layout" in notes and "8-bit levels" in notes


def test_the_same_module_and_data_reuse_stages_and_changed_ones_do_not(result: Outcome, folder: Path) -> None:
    again = quantized(TimmConvNeXt(MICRO), folder / "again")
    assert all(stage.reused for stage in again.report.stages), again.report.stages
    module = TimmConvNeXt(MICRO)
    with torch.no_grad():
        module.head.fc.bias[0] += 0.1
    changed = quantized(module, folder / "changed")
    assert not any(stage.reused for stage in changed.report.stages)


def test_a_module_that_computes_something_else_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"between its layers mlp.fc1 and mlp.fc2"):
        resolve(Request(model=TimmConvNeXt(MICRO, nn.GELU(approximate="tanh")), calib=CALIBRATION))


def test_a_result_shows_itself(result: Outcome) -> None:
    assert re.match(r"<Outcome .*run: <Report of convnext_micro for onnx: .*; top-1 drop", repr(result))
    assert len(repr(result)) < 300
    assert "top-1 FP32" in str(result.report)
    page = result._repr_html_()
    assert page.startswith("<table>") and "SQNR" in page
    hostile = result.report.model_copy(update={"notes": ["<script>alert(1)</script>"], "target": "<b>\x1b[31m"})
    assert "<script>" not in hostile._repr_html_() and "<b>\\x1b" not in hostile._repr_html_()
    assert "\x1b" not in repr(hostile) + str(hostile)


def test_export_writes_an_artifact_that_predicts(result: Outcome, folder: Path) -> None:
    artifact = result.export(folder / "model.onnx", latency=False)
    images = EVALUATION.tensors[0][:40]
    predictions = artifact.predict(images)
    assert isinstance(predictions, list)
    with torch.inference_mode():
        simulated = result.module(images)
    assert [one.top.index for one in predictions] == simulated.argmax(1).tolist()
    shares = simulated.double().softmax(1)
    # Artifact and simulation round sums in another order; a code that flips by it moves a probability by less than a per cent.
    for row, one in enumerate(predictions):
        assert one.top.probability == pytest.approx(float(shares[row].max()), abs=0.01)
    picture = digits_set("test").take(96).read(0)
    picture.save(folder / "digit.png")
    from_file = artifact.predict(folder / "digit.png")
    assert not isinstance(from_file, list)
    assert np.allclose(
        [one.logit for one in from_file.classes], [one.logit for one in predictions[0].classes], atol=0.05
    )
    assert from_file.top.name in str(from_file) and "<table>" in from_file._repr_html_()
    assert artifact.outputs(images)[0].shape == (40, 10)
    with pytest.raises(ExportError, match=r"\.onnx"):
        result.export(folder / "model.engine")


def test_a_run_of_images_in_memory_says_that_it_does_not_hold_them(result: Outcome) -> None:
    with pytest.raises(RunDirectoryError, match="calib"):
        edgeconvnext.export(target="onnx", from_run=result.path)


def test_tensors_of_unknown_normalisation_stay_tensors(folder: Path) -> None:
    noise = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    outcome = edgeconvnext.quantize(AuthorsConvNeXt(MICRO), calib=noise, effort="quick", output=folder / "unknown")
    artifact = outcome.export(latency=False)
    assert len(artifact.predict(noise)) == 12
    digits_set("test").read(0).save(folder / "digit.png")
    with pytest.raises(ImageSetError, match="mean and std"):
        artifact.predict(folder / "digit.png")
    with pytest.raises(QuantizationError, match="mean and std"):
        outcome.export(target="coreml")
    with pytest.raises(QuantizationError, match="Photographs"):
        edgeconvnext.quantize(AuthorsConvNeXt(MICRO), calib=noise, eval="digits_test", effort="quick")


def test_classes_take_the_names_of_the_data_set() -> None:
    named = data("calibration", 24)
    named.classes = [f"digit {number}" for number in range(10)]
    job = resolve(Request(model=AuthorsConvNeXt(MICRO), calib=named))
    assert job.class_names == tuple(named.classes)
    assert job.evaluation.labels is not None


def test_mean_and_std_that_are_said_are_those_of_the_artifact() -> None:
    noise = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    job = resolve(Request(model=AuthorsConvNeXt(MICRO), calib=noise, mean=(0.5,) * 3, std=(0.2,) * 3, target="coreml"))
    assert (job.model.preprocess.mean, job.model.preprocess.std) == ((0.5,) * 3, (0.2,) * 3)
    again = resolve(job.request)
    assert again.config == job.config


def test_labels_beyond_the_outputs_are_refused() -> None:
    wrong = TensorDataset(EVALUATION.tensors[0], EVALUATION.tensors[1] + 5)
    with pytest.raises(ImageSetError, match="outputs 0 to 9"):
        resolve(Request(model=AuthorsConvNeXt(MICRO), calib=CALIBRATION, eval=wrong))


def test_memory_holds_one_image_at_a_time() -> None:
    """A stream of 400 MB in a process that may have no more than a quarter of that on top."""
    code = """
import resource, torch
from edgeconvnext.data.in_memory import resolve_images
def images():
    for _ in range(100):
        yield torch.zeros(8, 3, 204, 204)
next(images())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(resolve_images(images(), 800)) == 800
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in KiB on Linux")
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(grown.stdout) < 100
