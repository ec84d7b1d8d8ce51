"""A search on real artifacts: what it measures, remembers and writes."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import edgeconvnext
from edgeconvnext.backends import load_target
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import QuantizationError, RuntimeMissingError
from edgeconvnext.escape import for_terminal
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.quantization.statistics import collect_statistics
from edgeconvnext.report.placement_front import render_front_svg
from edgeconvnext.report.placement_toml import placement_toml
from edgeconvnext.schema.placement import Measured, Placement, PlacementFound, Trial, front
from edgeconvnext.schema.report import Interval
from edgeconvnext.targets import LayoutSection
from edgeconvnext.tuning.placement_trials import Trials

TARGET = load_target("onnx")


def network() -> ConvNeXt:
    torch.manual_seed(0)
    module = ConvNeXt(ConvNeXtConfig(depths=(1, 1), dims=(8, 16), num_classes=5, layer_scale=False)).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    return module


IMAGES = (
    torch.randn(24, 3, 4, 4, generator=torch.Generator().manual_seed(1)).repeat_interleave(8, 2).repeat_interleave(8, 3)
)


def trials(folder: Path, threads: int = 1) -> Trials:
    module = network()
    kinds = sorted(set(weighted_layers(module).values()))
    return Trials(
        module,
        TARGET,
        collect_statistics(module, [IMAGES[:16]], [IMAGES[16:]], kinds),
        IMAGES[16:].numpy(),
        Preprocess(input_size=(32, 32)),
        threads=threads,
        folder=folder,
        memory=folder / "measured.jsonl",
        subject={"weights": "0", "images": "1"},
    )


def found(**changes: object) -> PlacementFound:
    def measured(speed: float, kl: float, sqnr_db: float) -> Measured:
        speedup = Interval(value=speed, low=speed, high=speed)
        return Measured(speedup=speedup, ms=1 / speed, fp32_ms=1, sqnr_db=sqnr_db, kl=kl, agreement=99.0, size_bytes=9)

    start, best = measured(1.5, 0.02, 35), measured(1.6, 0.03, 33)
    accurate, useless = measured(1.2, 0.01, 38), measured(1.1, 0.05, 30)
    placement = Placement(
        ("pointwise1", "head"), (), frozenset({"stages.0.0.pwconv1"}), LayoutSection(linears="matmul")
    )
    values = {
        "model": "tiny", "target": "onnx", "runtime": "onnxruntime 1", "device": "a processor", "threads": 1,
        "input_size": (32, 32), "start": start, "best": best, "untried": 2, "taken_over": 1,
        "trials": [
            Trial(move=f"move {name}", layers=[], measured=result, against=start, taken=result is best)
            for name, result in (("a", best), ("b", accurate), ("c", useless))
        ],
        "float_layers": {"stages.0.0.pwconv1": "it is slower", "stages.0.0.dwconv": "it is slower", "stem": "not tried"},
        "placed": placement.on(load_target("raspberry-pi")),
    }  # fmt: skip
    return PlacementFound.model_validate(values | changes)


@pytest.mark.exhaustive
def test_a_placement_is_measured_once_and_remembered_across_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Placement.of(TARGET, weighted_layers(network()))
    first = trials(tmp_path)
    measured = first.measure(start)
    assert measured.speedup.low <= measured.speedup.value <= measured.speedup.high
    assert measured.ms > 0 and measured.fp32_ms > 0 and measured.size_bytes > 1000
    assert 20 < measured.sqnr_db < 70 and 0 <= measured.kl < 0.1
    assert first.measure(start) is measured and first.taken_over == 0

    with (tmp_path / "measured.jsonl").open("a") as file:
        file.write('{"key": "cut o')  # a search that was killed while it wrote
    monkeypatch.setattr(Trials, "_measured", lambda self, placement: pytest.fail("measured again"))
    second = trials(tmp_path)
    assert second.measure(start) == measured and second.taken_over == 1
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        trials(tmp_path, threads=2).measure(start)


def test_the_answer_is_the_artifacts_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of the network in int8 is further from FP32; the float file that INT8 is compared with is the best of all forms."""
    layers = weighted_layers(network())
    measuring = trials(tmp_path)
    start = Placement.of(TARGET, layers)
    everything = Placement(tuple(dict.fromkeys(layers.values())), ("depthwise",), frozenset(), LayoutSection())
    assert measuring.measure(everything).kl > measuring.measure(start).kl
    floats = sorted(path.name for path in tmp_path.glob("float-*.onnx"))
    assert len(floats) == 6
    image = IMAGES[:1].numpy()
    logits = [onnxruntime.InferenceSession(tmp_path / name).run(None, {"image": image})[0] for name in floats]
    # GELU by tanh is at most 0.0005 away, and no other form differs.
    assert all(np.abs(other - logits[0]).max() < 0.02 for other in logits)
    assert any(np.abs(other - logits[0]).max() > 1e-6 for other in logits)


def test_the_written_file_is_a_target_with_the_reasons(tmp_path: Path) -> None:
    result = found()
    path = tmp_path / "target.toml"
    path.write_text(placement_toml(result))
    target = load_target(str(path))
    assert target.quantize == result.placed.quantize and target.layout.linears == "matmul"
    assert target.name == "onnx-searched" and target.gates == load_target("raspberry-pi").gates
    text = re.sub(r"\n# ", " ", path.read_text())
    assert "Float: stages.0.0.pwconv1, stages.0.0.dwconv. It is slower." in text
    assert "1.60x over FP32, 33.0 dB" in text


@pytest.mark.parametrize("name", ["a\nname = 'other'", "\x1b[2J", 'quote " and \\', "\U0001f408", "\x00"])
def test_names_cannot_add_keys_to_the_written_file(tmp_path: Path, name: str) -> None:
    result = found(model=name, float_layers={name: "it is slower"})
    text = placement_toml(result)
    values = tomllib.loads(text)
    assert values["name"] == "onnx-searched"
    assert values["description"].endswith(f"placement searched for {for_terminal(name)}")
    assert not set(text) & {"\x1b", "\x00"}


def test_the_front_holds_what_nothing_beats_and_the_plot_shows_all() -> None:
    result = found()
    assert [name for name, _ in front(result)] == ["move a", "the target's own placement", "move b"]
    svg = render_front_svg(result)
    assert svg.count("<circle") == 5 and "move c: 1.10x over FP32" in svg


def test_targets_of_other_runtimes_end_with_4(tmp_path: Path) -> None:
    with pytest.raises(RuntimeMissingError, match="jetson runs in tensorrt"):
        edgeconvnext.search("digits", calib="digits", target="jetson", output=tmp_path)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="at least 6"):
        edgeconvnext.search("digits", calib="digits", num_images=3, output=tmp_path)


@pytest.mark.exhaustive
def test_a_search_of_no_time_writes_the_targets_own_placement(micro: str, tmp_path: Path) -> None:
    result, folder = edgeconvnext.search(micro, calib="digits", budget_minutes=0, num_images=30, output=tmp_path / "s")
    assert result.untried > 10 and result.trials == [] and result.best == result.start
    assert load_target(str(folder / "target.toml")).quantize.operators == [
        "pointwise1",
        "pointwise2",
        "downsample",
        "head",
    ]
    assert json.loads((folder / "search.json").read_text())["model"] == "micro"
    assert (folder / "front.svg").read_text().startswith("<svg")
    again, _ = edgeconvnext.search(micro, calib="digits", budget_minutes=0, num_images=30, output=folder)
    assert again.taken_over == 1 and again.start == result.start
