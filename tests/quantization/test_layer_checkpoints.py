"""An interrupted reconstruction goes on at the layer where it stopped, with the same result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import CONFIG
from reconstructions import PREPROCESS, photographs, target_with

from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.job import Request
from edgeconvnext.pipeline.stages.quantization import LAYERS
from edgeconvnext.quantization.candidates import ReconstructionOptions
from edgeconvnext.quantization.layer_checkpoints import LayerCheckpoints
from edgeconvnext.quantization.precision import BitPlan, resolve_precision
from edgeconvnext.quantization.reconstruct import Reconstructed, _Engine, reconstruct
from edgeconvnext.rewrite.exact import fold_exact

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
IMAGES = photographs(12)
STEPS = ("_solve_layer", "_solve_output", "_adaround")


@pytest.fixture(scope="module")
def network() -> ConvNeXt:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ConvNeXt(CONFIG).eval()
    return fold_exact(module, IMAGES).module


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of what is solved: layers, outputs of layers, units that AdaRound refines."""
    names: list[str] = []

    def noted(method: Callable[..., None]) -> Callable[..., None]:
        def call(self: _Engine, unit: Any, what: Any, *rest: Any) -> None:
            method(self, unit, what, *rest)
            names.append(f"{method.__name__}:{what}")

        return call

    for name in STEPS:
        monkeypatch.setattr(_Engine, name, noted(getattr(_Engine, name)))
    yield names


def run(network: ConvNeXt, folder: Path, key: bytes | None = KEY, **options: Any) -> Reconstructed:
    target = target_with("onnx", outputs=["pointwise2"])
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return reconstruct(
        network,
        target,
        resolve_precision(network, target, BitPlan()),
        [IMAGES[:8]],
        [IMAGES[8:]],
        preprocess=PREPROCESS,
        folder=work,
        options=ReconstructionOptions(**options),
        checkpoints=LayerCheckpoints(folder / "layers", "a-plan", key),
    )


def assert_same(one: Reconstructed, other: Reconstructed) -> None:
    first, second = one.module.state_dict(), other.module.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    for plans in ((one.plan.activations, other.plan.activations), (one.plan.weights, other.plan.weights)):
        assert list(plans[0]) == list(plans[1])
    for name, activation in one.plan.activations.items():
        again = other.plan.activations[name]
        assert torch.equal(activation.qparams.scale, again.qparams.scale)
        assert torch.equal(activation.qparams.zero_point, again.qparams.zero_point)
        assert (activation.mse, activation.estimator) == (again.mse, again.estimator)
    for layer, decision in one.plan.decisions.items():
        again = other.plan.decisions[layer]
        assert (decision.rounding, decision.block_sqnr_db) == (again.rounding, again.block_sqnr_db)
    for name, statistics in one.statistics.tensors.items():
        assert (statistics.fit.counts == other.statistics.tensors[name].fit.counts).all()


def test_all_steps_of_a_finished_reconstruction_are_restored(
    network: ConvNeXt, solved: list[str], tmp_path: Path
) -> None:
    """AdaRound stops by the clock, so that only its restored codes can be the same."""
    first = run(network, tmp_path, rounding="adaround", adaround_minutes=0.01)
    assert {name.partition(":")[0] for name in solved} == set(STEPS)
    solved.clear()
    assert_same(first, run(network, tmp_path, rounding="adaround", adaround_minutes=0.01))
    assert not solved


@pytest.mark.parametrize("harm", ["another user", "a changed file", "no key"])
def test_only_whole_steps_of_ones_own_are_restored(
    network: ConvNeXt, solved: list[str], tmp_path: Path, harm: str
) -> None:
    first = run(network, tmp_path, effort="quick")
    everything = list(solved)
    solved.clear()
    kept = tmp_path / "layers" / "a-plan"
    if harm == "a changed file":
        (kept / "0003.plan.safetensors").write_bytes(b"junk")
    (kept / "0099.plan.safetensors").symlink_to(tmp_path / "elsewhere")
    key = {"another user": OTHER_KEY, "a changed file": KEY, "no key": None}[harm]
    assert_same(first, run(network, tmp_path, key, effort="quick"))
    assert solved == (everything[3:] if harm == "a changed file" else everything)
    assert not (tmp_path / "elsewhere").exists()
    assert not (kept / "0099.plan.safetensors").is_symlink()


def request(micro: str, output: Path) -> Request:
    return Request(
        model=micro, calib="digits", eval="digits_test", num_images=9, latency=False, target="onnx", output=output
    )


def test_an_interrupted_run_goes_on_at_the_layer_with_the_same_plan(
    micro: str, solved: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.quantize(request(micro, tmp_path / "whole" / "run")).path
    everything = list(solved)
    solved.clear()
    after = 4
    solve = _Engine._solve_layer

    def interrupted(self: _Engine, *arguments: Any) -> None:
        if len(solved) == after:
            raise KeyboardInterrupt
        solve(self, *arguments)

    path = tmp_path / "cut" / "run"
    with monkeypatch.context() as patch:
        patch.setattr(_Engine, "_solve_layer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.quantize(request(micro, path))
    assert solved == everything[:after]
    (index,) = (path / LAYERS).rglob("index.json")
    assert len(json.loads(index.read_text())["steps"]) == after
    (path / LAYERS / "of another plan").mkdir()

    pipeline.quantize(request(micro, path))
    assert solved == everything
    for file in ("plan.safetensors", "plan_statistics.safetensors"):
        assert (path / file).read_bytes() == (whole / file).read_bytes(), file
    assert not (path / LAYERS).exists()
