"""The examples of docs/backbone.md: a pyramid that learns on real photographs, and a detector head behind INT8 features."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import edgeconvnext

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"


@pytest.fixture
def fpn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fpn

    return fpn


@pytest.mark.data
def test_the_pyramid_learns_to_find_what_was_pasted_into_photographs(
    fpn: ModuleType, photographs: Path, atto_weights: Path
) -> None:
    torch.manual_seed(0)
    model = edgeconvnext.load_model(atto_weights, head="features")
    head = fpn.CentreHead(model.config.dims)
    before = [parameter.clone() for parameter in model.module.parameters()]
    images = fpn.photographs(model, photographs / "imagenette2-160" / "val", 48)
    losses = fpn.train(model.module, head, images, steps=18)
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6]), losses
    for parameter, old in zip(model.module.parameters(), before, strict=True):
        assert torch.equal(parameter, old), "the backbone is frozen, so its INT8 form stays the one that was measured"


@pytest.mark.exhaustive
def test_a_detector_is_one_file_from_image_to_heatmap(fpn: ModuleType, micro: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = tmp_path / "run"
    edgeconvnext.export(
        micro, head="features", target="onnx", calib="digits", num_images=30, effort="quick", resolution=32, latency=False,
        output=run,
    )  # fmt: skip
    head = fpn.CentreHead((8, 16)).eval()
    torch.save(head.state_dict(), tmp_path / "head.pth")
    command = [sys.executable, EXAMPLES / "onnx_detector.py", run, tmp_path / "head.pth", tmp_path / "detector.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).numpy()
    backbone = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    stages = backbone.run(None, {"image": images})
    with torch.no_grad():
        expected = head(*map(torch.from_numpy, stages)).numpy()
    detector = onnxruntime.InferenceSession(tmp_path / "detector.onnx", providers=["CPUExecutionProvider"])
    (found,) = detector.run(["heatmap"], {"image": images})
    assert found.shape == (3, 1, 8, 8)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    kinds = [node.op_type for node in onnx.load(tmp_path / "detector.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == [n.op_type for n in onnx.load(run / "model.onnx").graph.node].count(
        "QuantizeLinear"
    )
