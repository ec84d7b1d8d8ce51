""".pte files: one delegate, written from the plan's own scales, run in ExecuTorch, equal to the simulation."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeconvnext.backends import backend, load_target
from edgeconvnext.backends.base import LatencySettings
from edgeconvnext.backends.executorch.forms import MOST_TAPS, in_xnnpack_forms
from edgeconvnext.backends.metadata import ArtifactMetadata
from edgeconvnext.errors import ExportError
from edgeconvnext.model.build import build
from edgeconvnext.model.convnext.network import ConvNeXtConfig
from edgeconvnext.model.program import export_program
from tests.in_process import run_command
from tests.micro import micro_model, write_micro

EXECUTORCH = backend("executorch")
# Codes that a tie rounds the other way: 40 dB is 1 % of the signal.
LEAST_FIDELITY_DB = 40.0


# The graph that XNNPACK gets: needs torch alone


def _random(config: ConvNeXtConfig) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build(config).eval()
        for name, parameter in module.named_parameters():
            nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.2)
    return module


@pytest.mark.parametrize(
    "config",
    [
        ConvNeXtConfig(depths=(1, 1), dims=(8, 16), num_classes=5, patch_size=2),
        ConvNeXtConfig(depths=(1, 1), dims=(8, 16), num_classes=5, patch_size=2, version=2),
        ConvNeXtConfig(depths=(1,), dims=(8,), num_classes=5, patch_size=2, kernel_size=9, head_norm="before_pool"),
        ConvNeXtConfig(depths=(1, 1), dims=(8, 16), num_classes=0, patch_size=2, ends_with="stages"),
    ],
    ids=["V1", "V2", "81 taps", "stages"],
)
def test_the_forms_compute_what_the_network_does(config: ConvNeXtConfig) -> None:
    module = _random(config)
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    forms = in_xnnpack_forms(export_program(module, images, max_batch=None))
    with torch.no_grad():
        expected, given = copy.deepcopy(module).double()(images.double()), forms.module()(images)
    expected, given = (value if isinstance(value, tuple | list) else (value,) for value in (expected, given))
    for ours, theirs in zip(given, expected, strict=True):
        # Float32 sums of at most 81 * 32 products, in four layers one after the other.
        assert float((ours - theirs).abs().max()) < 4 * 2592 * 2.0**-24 * float(theirs.abs().max())


def test_no_depthwise_kernel_has_more_taps_than_xnnpack_has_fast_kernels_for() -> None:
    module = _random(ConvNeXtConfig(depths=(1,), dims=(8,), num_classes=5, patch_size=2, kernel_size=7))
    forms = in_xnnpack_forms(export_program(module, torch.zeros(1, 3, 16, 16), max_batch=None))
    weights = [node.args[1].meta["val"] for node in forms.graph.nodes if node.target == torch.ops.aten.conv2d.default]
    depthwise = [tuple(weight.shape[2:]) for weight in weights if weight.shape[:2] == (8, 1)]
    assert sorted(depthwise) == [(1, 7), (3, 7), (3, 7)]
    assert all(height * width <= MOST_TAPS for height, width in depthwise)
    operators = {str(node.target) for node in forms.graph.nodes}
    assert not any("layer_norm" in operator or "permute" in operator for operator in operators)


# The file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the micro network on the digits."""
    pytest.importorskip("executorch", reason="ExecuTorch: pip install 'edgeconvnext[executorch]'")
    folder = tmp_path_factory.mktemp("executorch")
    model = write_micro(folder / "micro.safetensors")
    options = ("--calib", "digits", "--eval", "digits_test", "--num-images", "60", "--effort", "quick")
    done = run_command("export", "--target", "android", "--model", model, *options, "--output", folder / "run")
    assert done.returncode in (0, 3), done.stdout + done.stderr  # a slow machine may miss the gate of speed
    return folder / "run"


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("executorch", reason="ExecuTorch: pip install 'edgeconvnext[executorch]'")
    model = micro_model()
    metadata = ArtifactMetadata("micro", ("a",) * 10, model.preprocess, "normalized", "0.1")
    program = export_program(model.module, torch.zeros(1, 3, 16, 16), max_batch=None)
    path = tmp_path_factory.mktemp("float") / "float.pte"
    return EXECUTORCH.write(load_target("android"), program, path, metadata)


def test_a_run_measures_the_artifact_in_its_runtime(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["accuracy"]["runtime"].startswith("ExecuTorch ")
    assert report["accuracy"]["measured_on"] == "artifact"
    fp32, artifact = (np.load(run / name)[key] for name, key in (("reference.npz", "fp32"), ("logits.npz", "artifact")))
    noise = np.square(fp32.astype(np.float64) - artifact).sum()
    own = 10 * np.log10(np.square(fp32.astype(np.float64)).sum() / noise)
    assert report["accuracy"]["sqnr_db"] == pytest.approx(own, abs=1e-6)
    assert report["fidelity_db"] > LEAST_FIDELITY_DB
    assert report["latency"]["runtime"].startswith("ExecuTorch ")
    checks = {check["name"]: check["passed"] for check in report["checks"]}
    assert checks["one delegate"] and checks["ExecuTorch against the simulation"]


def test_the_float_file_computes_what_the_module_does(float_file: Path) -> None:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = micro_model().module(images).numpy()
    logits = EXECUTORCH.runner(float_file)(images.numpy())
    # Float32 sums of at most 5 * 5 * 16 products in another order.
    assert np.abs(logits - expected).max() < 400 * 2.0**-24 * np.abs(expected).max()


def test_the_file_says_how_images_are_prepared(float_file: Path) -> None:
    metadata = EXECUTORCH.metadata_of(float_file)
    assert metadata.labels == ("a",) * 10
    assert metadata.preprocess == micro_model().preprocess
    assert EXECUTORCH.input_of(float_file).size == (16, 16)


def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    exir = pytest.importorskip("executorch.exir")
    program = torch.export.export(nn.ReLU(), (torch.zeros(1, 3),))
    (tmp_path / "other.pte").write_bytes(exir.to_edge(program).to_executorch().buffer)
    with pytest.raises(ExportError, match=r"other\.pte was not written by edgeconvnext"):
        EXECUTORCH.runner(tmp_path / "other.pte")


@pytest.mark.parametrize("content", [b"", b"no program", "cut"])
def test_a_broken_file_is_named(float_file: Path, tmp_path: Path, content: bytes | str) -> None:
    whole = float_file.read_bytes()
    (tmp_path / "broken.pte").write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(ExportError, match=r"broken\.pte cannot be read by ExecuTorch"):
        EXECUTORCH.runner(tmp_path / "broken.pte")


def test_a_missing_file_and_another_suffix_are_named(tmp_path: Path, float_file: Path) -> None:
    with pytest.raises(ExportError, match="nowhere"):
        EXECUTORCH.runner(tmp_path / "nowhere.pte")
    program = export_program(micro_model().module, torch.zeros(1, 3, 16, 16), max_batch=None)
    with pytest.raises(ExportError, match=r"must be named \*\.pte"):
        EXECUTORCH.write(load_target("android"), program, tmp_path / "a.onnx", EXECUTORCH.metadata_of(float_file))


def test_another_resolution_is_refused(float_file: Path) -> None:
    with pytest.raises(ExportError, match=r"takes images of shape \[3, 16, 16\] and not \[1, 16, 16\]"):
        EXECUTORCH.runner(float_file)(np.zeros((1, 1, 16, 16), np.float32))


def test_latency_is_measured_in_turns(float_file: Path) -> None:
    result = EXECUTORCH.latency(float_file, float_file, LatencySettings(seconds=0.02, input_size=(16, 16)))
    assert result.speedup is not None
    assert result.comparison.runtime.startswith("ExecuTorch ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--weights", "4"), "which exporter executorch does not write"),
        (("--activations", "16"), "which exporter executorch does not write"),
        (("--sizes", "32"), "one input size"),
    ],
)
def test_what_it_cannot_do_is_refused(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    pytest.importorskip("executorch")
    model = write_micro(tmp_path / "micro.safetensors")
    done = run_command("export", "--target", "android", "--model", model, "--calib", "digits", *options)
    assert done.returncode == 1
    assert said in done.stderr.replace("\n", " ")


def test_without_the_package_the_way_to_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    model = write_micro(tmp_path / "micro.safetensors")
    done = run_command("export", "--target", "android", "--model", model, "--calib", "digits")
    assert done.returncode == 4
    assert "pip install 'edgeconvnext[executorch]'" in done.stderr.replace("\n", " ")


def test_the_kit_measures_on_another_machine(run: Path) -> None:
    import executorch

    command = [sys.executable, str(run / "device" / "check.py"), "--seconds", "0.05"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PYTHONPATH": str(Path(executorch.__path__[0]).parent)
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode in (0, 3), done.stderr
    result = json.loads((run / "device" / "device.json").read_text())
    assert result["runtime"]["name"] == "executorch"
    assert result["check"]["fidelity_db"] > LEAST_FIDELITY_DB
    merged = run_command("validate", run, "--device", run / "device" / "device.json")
    assert merged.returncode in (0, 3), merged.stderr
    assert "ExecuTorch" in merged.stdout
