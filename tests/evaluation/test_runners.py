"""Runners give the same logits whatever the file's batch, element type or value range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quantized_graphs import classifier_file

from edgeconvnext.backends.onnxruntime.runner import OnnxRunner
from edgeconvnext.data.loader import Batch
from edgeconvnext.data.preprocess import Preprocess, to_value_range
from edgeconvnext.errors import ExportError
from edgeconvnext.evaluation.runner import TorchRunner, collect, in_fixed_batches

WEIGHTS = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
IMAGES = np.random.default_rng(1).standard_normal((5, 3, 4, 4)).astype(np.float32)
EXPECTED = IMAGES.mean((2, 3)) @ WEIGHTS


class MeanClassifier(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) @ torch.from_numpy(WEIGHTS)


def test_onnx_runner_with_a_free_batch(tmp_path: Path) -> None:
    runner = OnnxRunner(classifier_file(tmp_path / "model.onnx", WEIGHTS), threads=1)
    np.testing.assert_allclose(runner(IMAGES), EXPECTED, atol=1e-6)
    assert runner.runtime.startswith("onnxruntime ") and runner.batch is None


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_onnx_runner_splits_and_fills_a_fixed_batch(tmp_path: Path, batch: int) -> None:
    runner = OnnxRunner(classifier_file(tmp_path / "model.onnx", WEIGHTS, batch=batch), threads=1)
    assert runner.batch == batch
    np.testing.assert_allclose(runner(IMAGES), EXPECTED, atol=1e-6)


def test_onnx_runner_feeds_float16_and_returns_float32(tmp_path: Path) -> None:
    logits = OnnxRunner(classifier_file(tmp_path / "model.onnx", WEIGHTS, dtype=np.float16), threads=1)(IMAGES)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, EXPECTED, atol=5e-3)  # float16 holds 11 bits


@pytest.mark.parametrize(("value_range", "scale"), [("0..1", 1.0), ("0..255", 255.0)])
def test_onnx_runner_undoes_the_normalisation_that_the_file_does_itself(
    tmp_path: Path, value_range: str, scale: float
) -> None:
    path = classifier_file(tmp_path / "model.onnx", WEIGHTS, value_range=value_range)  # type: ignore[arg-type]
    preprocess = Preprocess()
    pixels = IMAGES.mean((2, 3)) * np.array(preprocess.std) + np.array(preprocess.mean)
    np.testing.assert_allclose(OnnxRunner(path, threads=1)(IMAGES), scale * pixels @ WEIGHTS, rtol=1e-4, atol=1e-4)


def test_value_range_returns_the_decoded_pixels() -> None:
    preprocess = Preprocess()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 4, 4)).astype(np.float32)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std))
    normalised = (pixels / 255 - mean) / std
    np.testing.assert_allclose(to_value_range(normalised, preprocess, "0..255"), pixels, atol=1e-4)
    assert to_value_range(normalised, preprocess, "normalized") is normalised


def test_torch_runner_takes_modules_and_fixed_batch_programs() -> None:
    np.testing.assert_allclose(TorchRunner(MeanClassifier().eval())(IMAGES), EXPECTED, atol=1e-6)
    program = torch.export.export(MeanClassifier(), (torch.zeros(2, 3, 4, 4),)).module()
    np.testing.assert_allclose(TorchRunner(program, batch=2)(IMAGES), EXPECTED, atol=1e-6)


def test_fixed_batches_see_no_other_size() -> None:
    seen: list[int] = []

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        seen.append(len(images))
        return images, 2 * images

    for factor, output in zip((1, 2), in_fixed_batches(run, np.arange(7), 3), strict=True):
        np.testing.assert_array_equal(output, factor * np.arange(7))
    assert seen == [3, 3, 3]


def test_collect_runs_all_networks_in_one_pass(tmp_path: Path) -> None:
    passes = 0

    class Stream:
        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal passes
            passes += 1
            images = torch.from_numpy(IMAGES).contiguous(memory_format=torch.channels_last)
            yield Batch(images[:3], [0, 1, 4])
            yield Batch(images[3:], [5, 9])

    onnx_runner = OnnxRunner(classifier_file(tmp_path / "model.onnx", WEIGHTS), threads=1)
    logits, positions = collect({"fp32": TorchRunner(MeanClassifier()), "artifact": onnx_runner}, Stream())
    assert passes == 1
    assert positions.tolist() == [0, 1, 4, 5, 9]
    for name in ("fp32", "artifact"):
        np.testing.assert_allclose(logits[name], EXPECTED, atol=1e-6)


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_file_that_is_no_onnx_is_a_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx cannot be (opened in onnxruntime|read: no such file)"):
        OnnxRunner(path)


def test_images_of_another_size_are_a_clear_error(tmp_path: Path) -> None:
    runner = OnnxRunner(classifier_file(tmp_path / "model.onnx", WEIGHTS), threads=1)
    with pytest.raises(ExportError, match="resolution it was exported for"):
        runner(np.zeros((1, 3, 8, 8), np.float32))
