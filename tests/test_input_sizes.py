"""Several input sizes in one artifact: free height and width in the file, one statement in the report for each size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgeconvnext.commands.bench import bench_artifact
from edgeconvnext.errors import ModelConfigError, TargetError
from edgeconvnext.model.load import load_model
from edgeconvnext.options.commands import Validate
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.commands import Outcome
from edgeconvnext.pipeline.job import Request


@pytest.fixture(scope="module")
def several(micro: str) -> Request:
    """An export of a network of 16x16 pixels that takes two further sizes."""
    return Request(
        model=micro,
        calib="digits",
        eval="digits_test",
        num_images=30,
        effort="quick",
        latency=False,
        sizes=((32, 32), (16, 48), (16, 16)),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def features(runs: Path, several: Request) -> Outcome:
    return pipeline.export(replace(several, head="features", output=runs / "features"))


def test_height_and_width_are_free_and_named_in_the_file(features: Outcome) -> None:
    for name in ("model.onnx", "baseline/model_fp32.onnx"):
        graph = onnx.load(features.path / name).graph
        shapes = [
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        ]
        assert shapes[0] == ["batch", 3, "height", "width"]
        assert shapes[2] == ["batch", 16, "height/4", "width/4"]


def test_the_file_computes_the_network_at_every_size(micro: str, features: Outcome) -> None:
    session = onnxruntime.InferenceSession(features.path / "model.onnx", providers=["CPUExecutionProvider"])
    stages = load_model(micro, head="features").module
    for size in ((16, 16), (32, 32), (16, 48), (48, 80)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = [stage.numpy() for stage in stages(images)]
        for found, wanted in zip(session.run(None, {"image": images.numpy()}), expected, strict=True):
            assert found.shape == wanted.shape
            noise = np.square(found - wanted).sum() / np.square(wanted).sum()
            assert 10 * np.log10(1 / noise) > 15, (
                "noise is no image of a digit, so ranges fit badly; yet it is the same network"
            )


def test_every_further_size_has_its_figures_smallest_first(features: Outcome) -> None:
    report = features.report
    assert [record.size for record in report.sizes] == [(16, 48), (32, 32)], (
        "the network's own is the report's main part"
    )
    for record in report.sizes:
        assert record.images == 599
        assert [output.name for output in record.outputs] == ["stage1", "stage2"]
        assert record.outputs[0].shape == (8, record.size[0] // 2, record.size[1] // 2)
        assert record.sqnr_db == min(output.sqnr_db for output in record.outputs)
        assert record.fidelity_db is not None and record.fidelity_db > 40
    for name in ("report.html", "MODEL_CARD.md"):
        assert "16x48" in (features.path / name).read_text()


def test_gates_count_the_worst_size(features: Outcome) -> None:
    report = features.report
    everywhere = [
        output.sqnr_db for outputs in (report.outputs, *(r.outputs for r in report.sizes)) for output in outputs
    ]
    gates = {gate.name: gate for gate in report.gates}
    assert gates["min_feature_sqnr_db"].measured == min(everywhere)
    fidelities = [report.fidelity_db, *(record.fidelity_db for record in report.sizes)]
    assert gates["min_fidelity_db"].measured == min(value for value in fidelities if value is not None)


def test_validate_keeps_the_sizes(features: Outcome) -> None:
    again = pipeline.validate(features.path, Validate(latency=False))
    assert again.report.sizes == features.report.sizes


def test_bench_times_the_networks_own_size(features: Outcome) -> None:
    result = bench_artifact(features.path, seconds=0.05, profile=True)
    assert result.latency.artifact is not None and result.latency.fp32 is not None
    assert set(result.profiles) == {"model.onnx", "model_fp32.onnx"}


def test_a_classifier_has_its_accuracy_at_every_size(runs: Path, several: Request) -> None:
    report = pipeline.quantize(replace(several, sizes=((32, 32),), output=runs / "classifier")).report
    (record,) = report.sizes
    assert record.fp32_score is not None and record.score is not None and record.drop_pp is not None
    assert record.fidelity_db is None and record.outputs == []


@pytest.mark.exhaustive
def test_tensorrt_builds_from_the_smallest_to_the_largest(runs: Path, several: Request) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'edgeconvnext[rtx]'")
    outcome = pipeline.export(replace(several, head="features", target="jetson", output=runs / "jetson"))
    assert all(check.passed for check in outcome.report.checks)
    kit = json.loads((outcome.path / "device" / "kit.json").read_text())
    assert kit["sizes"] == [[16, 16], [16, 16], [32, 48]]


def test_core_ml_is_refused_by_name(several: Request, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'edgeconvnext[coreml]'")
    with pytest.raises(TargetError, match="coreml writes Core ML packages of one input size"):
        pipeline.export(replace(several, target="coreml", output=tmp_path / "run"))


def test_a_size_that_does_not_fit_is_refused(several: Request, tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match="multiples of 4"):
        pipeline.quantize(replace(several, sizes=((64, 30),), output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
