"""`inspect --target`: what runs in INT8 is what an artifact made with real images runs in INT8."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import fails, run_command
from micro import micro_model

import edgeconvnext
from edgeconvnext.backends import backend_for, load_target
from edgeconvnext.commands.roadmap import random_network
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.evaluation.timing import grey_ramp
from edgeconvnext.model.convnext.network import ConvNeXtConfig
from edgeconvnext.model.families import architectures
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.resnet.roadmap import STEPS
from edgeconvnext.targets import target_files
from edgeconvnext.tuning.on_target import on_target

TARGETS = [pytest.param("onnx"), pytest.param("openvino")]


def _random(config: Any, side: int) -> LoadedModel:
    """A network with random weights."""
    module = random_network(config)
    return replace(
        micro_model(), module=module, config=module.config, preprocess=Preprocess(input_size=(side, side)), labels=None
    )


def _architecture(name: str) -> Any:
    return STEPS["resnet50"].network if name == "resnet50" else architectures()[name].config


def _artifact_counts(model: LoadedModel, target: str, folder: Path) -> tuple[Counter[tuple[str, str]], int, int]:
    """Export with real images; return nodes by operator and precision, layers with int8 weights, and pieces."""
    images = np.random.default_rng(1).normal(size=(6, 3, *model.preprocess.input_size)).astype(np.float32)
    outcome = edgeconvnext.export(
        model=model, target=target, calib=images, num_images=6, effort="quick", latency=False, output=folder
    )
    backend = backend_for(load_target(target))
    profile = backend.profile(outcome.path / backend.artifact, grey_ramp(model.preprocess.input_size), 1)
    counts = Counter((node.operator, node.precision) for node in profile.nodes)
    quantised = sum(layer.weight_bits is not None for layer in outcome.report.quantization.layers)
    return counts, quantised - len(profile.fell_back), profile.partitions


def _equal(model: LoadedModel, target: str, folder: Path) -> None:
    pytest.importorskip("onnxruntime" if target == "onnx" else target)
    found = on_target(model, load_target(target))
    nodes, layers, partitions = _artifact_counts(model, target, folder)
    assert {(node.operator, node.precision): node.nodes for node in found.nodes} == dict(nodes)
    assert sum(layer.int8 for layer in found.layers) == layers > 0
    assert found.partitions == partitions


@pytest.mark.parametrize("target", ["onnx", pytest.param("openvino", marks=pytest.mark.exhaustive)])
def test_counts_are_those_of_an_artifact_made_with_real_images(target: str, tmp_path: Path) -> None:
    model = _random(ConvNeXtConfig(depths=(1, 1), dims=(8, 16), num_classes=10, patch_size=2, kernel_size=5), 16)
    _equal(model, target, tmp_path / "run")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "convnext_tiny", "resnet50"])
def test_counts_of_published_networks_are_those_of_their_artifacts(name: str, target: str, tmp_path: Path) -> None:
    _equal(_random(_architecture(name), 64), target, tmp_path / "run")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_counts_without_block_norms_are_those_of_the_artifact(target: str, tmp_path: Path) -> None:
    config = _architecture("convnext_atto")
    norms = tuple(path for path in config.norm_paths if path.startswith("stages."))
    _equal(_random(config.replace(identity_norms=norms), 64), target, tmp_path / "run")


@pytest.mark.exhaustive
def test_a_layer_that_falls_back_counts_as_float_and_is_named(tmp_path: Path) -> None:
    """onnxruntime computes a conv in float where its output has no Q/DQ pair."""
    pytest.importorskip("onnxruntime")
    own = tmp_path / "own.toml"
    text = target_files()["onnx"].read_text()
    own.write_text(text.replace('name = "onnx"', 'name = "own"').replace('["pointwise1"', '["depthwise", "pointwise1"'))
    found = on_target(micro_model(), load_target(str(own)))
    depthwise = next(layer for layer in found.layers if layer.kind == "depthwise")
    assert (depthwise.int8, depthwise.float) == (0, 2)
    assert found.fell_back == ["stages.0.0.dwconv", "stages.1.0.dwconv"]
    plain = on_target(micro_model(), load_target("onnx"))
    assert found.int8_macs == plain.int8_macs < 1


def test_the_share_is_that_of_the_multiply_adds_counted_by_hand() -> None:
    """16x16 pixels, patches of 2: 64 positions of 8 channels, then 16 of 16; blocks widen by 4."""
    pytest.importorskip("onnxruntime")
    float_macs = 64 * 8 * 3 * 4 + 64 * 8 * 25 + 16 * 16 * 25
    int8_macs = 64 * 2 * 8 * 32 + 16 * (2 * 2 * 8) * 16 + 16 * 2 * 16 * 64 + 16 * 10
    assert on_target(micro_model(), load_target("onnx")).int8_macs == pytest.approx(
        int8_macs / (int8_macs + float_macs), rel=1e-12
    )


def test_the_command_shows_counts_and_hints(micro: str) -> None:
    pytest.importorskip("onnxruntime")
    done = run_command("inspect", micro, "--target", "onnx")
    assert done.returncode == 0, done.stderr
    assert "QGemm" in done.stdout and "norms run in float" in done.stdout
    found = json.loads(run_command("inspect", micro, "--target", "onnx", "--json").stdout)
    assert {layer["kind"]: layer["int8"] for layer in found["layers"]} == {
        **{"stem": 0, "depthwise": 0, "pointwise1": 2, "pointwise2": 2},
        **{"downsample": 1, "head": 1},
    }


def test_hints_name_widths_that_the_runtime_pads() -> None:
    pytest.importorskip("onnxruntime")
    config = ConvNeXtConfig(depths=(1,), dims=(9,), num_classes=2, patch_size=2, kernel_size=3)
    assert any(
        "Hidden widths 36 are no multiples of 8" in hint
        for hint in on_target(_random(config, 8), load_target("onnx")).hints
    )


@pytest.mark.parametrize(
    ("target", "said"), [("jetson", "compiled on the device only"), ("onxx", "There is no target")]
)
def test_a_target_that_cannot_be_compiled_is_refused(target: str, said: str, micro: str) -> None:
    fails(run_command("inspect", micro, "--target", target), 4 if target == "jetson" else 1, said)
