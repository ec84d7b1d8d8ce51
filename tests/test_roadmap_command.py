"""`edgeconvnext roadmap`: every step measured or said not to be, finished steps kept, page, plot and CSV from one command."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
from in_process import fails, run_command
from resnets import short_step

from edgeconvnext.backends import timing_runtime
from edgeconvnext.commands.roadmap import RoadmapRequest, random_network, roadmap
from edgeconvnext.commands.swin import swin_row
from edgeconvnext.errors import ModelConfigError
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.load import load_model
from edgeconvnext.model.resnet.roadmap import STEPS
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.report.roadmap_page import as_markdown, write_page
from edgeconvnext.schema.roadmap import Roadmap

REQUEST = RoadmapRequest(
    steps=(short_step("resnet50"), short_step("convnext_tiny")), num_images=6, resolution=32, measure_latency=False
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Roadmap, Path]:
    return roadmap(replace(REQUEST, output=tmp_path_factory.mktemp("roads") / "road"))


def test_each_step_goes_through_the_toolkit(measured: tuple[Roadmap, Path]) -> None:
    result, folder = measured
    assert [step.name for step in result.steps if step.name != "swin_tiny"] == ["resnet50", "convnext_tiny"]
    for step in result.steps[:2]:
        assert step.run is not None and (folder / step.run / "model.onnx").is_file()
        assert step.fidelity_db is not None and step.fidelity_db > 25
        assert step.sqnr_db is not None and step.int8_macs is not None and step.int8_macs > 0.3
        assert step.size_int8_bytes < step.size_fp32_bytes
        assert step.weights == "random" and step.top1_int8 is None
        assert step.latency_int8_ms is None
        assert step.not_measured["latency_int8_ms"] == "switched off with --no-latency"
        assert step.not_measured["top1_int8"] == "no trained weights"
        nulls = {name for name, value in step.model_dump().items() if value is None} - {"speedup"}
        assert nulls <= set(step.not_measured) | {"published_top1"}


def test_what_is_written_says_the_same(measured: tuple[Roadmap, Path], tmp_path: Path) -> None:
    result, folder = measured
    assert Roadmap.model_validate_json((folder / "roadmap.json").read_text()) == result
    write_page(result, tmp_path / "road.md")
    with (tmp_path / "road.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["macs"]) for row in rows] == [step.macs for step in result.steps]
    assert rows[0]["latency_fp32_ms"] == "" and float(rows[0]["fidelity_db"]) == result.steps[0].fidelity_db
    page = (tmp_path / "road.md").read_text()
    assert page == as_markdown(result, "road")
    assert page.count("\n| ") == 1 + len(result.steps)
    assert "](road.svg)" in page and "random weights" in page and r"switched off with \-\-no\-latency" in page
    plot = ElementTree.parse(tmp_path / "road.svg").getroot()
    texts = {element.text for element in plot.iter("{http://www.w3.org/2000/svg}text")}
    assert {"resnet50", "convnext_tiny", "not measured"} <= texts


def test_the_plot_shows_measured_latencies(measured: tuple[Roadmap, Path], tmp_path: Path) -> None:
    steps = [step.model_copy(update={"latency_fp32_ms": 20.0, "latency_int8_ms": 10.0}) for step in measured[0].steps]
    write_page(measured[0].model_copy(update={"steps": steps}), tmp_path / "road.md")
    plot = (tmp_path / "road.svg").read_text()
    assert "resnet50, INT8: 10.00 ms" in plot and "not measured" not in plot


def test_finished_steps_are_kept(measured: tuple[Roadmap, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_request: object) -> None:
        raise AssertionError("a finished step was exported again")

    monkeypatch.setattr(pipeline, "export", refuse)
    again, _ = roadmap(replace(REQUEST, output=measured[1]))
    assert again == measured[0]
    with pytest.raises(AssertionError, match="exported again"):
        roadmap(replace(REQUEST, output=measured[1], num_images=9))


def test_random_weights_are_the_same_each_time_and_no_layer_is_idle() -> None:
    config = short_step("convnext_tiny").network
    first, second = random_network(config), random_network(config)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert bool((first.get_parameter("stages.0.0.gamma") == 1).all())


def test_weights_of_another_step_are_refused(tmp_path: Path) -> None:
    model = load_model("digits")
    save_checkpoint(model, tmp_path / "other.safetensors")
    for name, words in (("resnet50", "not the step resnet50"), ("resnet34", "no step 'resnet34'")):
        request = replace(REQUEST, trained={name: tmp_path / "other.safetensors"}, output=tmp_path / "road")
        with pytest.raises(ModelConfigError, match=words):
            roadmap(request)
    assert not (tmp_path / "road").exists()


def test_swin_is_a_row_where_timm_is_and_a_note_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeconvnext.commands.swin.find_spec", lambda _name: None)
    assert swin_row(224, 1, timing_runtime(), measure_latency=False) == (
        None,
        "Swin-T is not compared: timm is not installed (pip install timm).",
    )
    stand_in = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.Flatten(), torch.nn.Linear(4 * 56 * 56, 10))
    timm, layers = ModuleType("timm"), ModuleType("timm.layers")
    timm.create_model = lambda name, pretrained, **_sizes: stand_in
    layers.set_fused_attn = lambda _on: None
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.layers", layers)
    monkeypatch.setattr("edgeconvnext.commands.swin.find_spec", lambda _name: object())
    row, note = swin_row(224, 1, timing_runtime(), measure_latency=False)
    assert note is None and row is not None
    assert row.macs == 4 * 48 * 56 * 56 + 4 * 56 * 56 * 10
    assert row.latency_int8_ms is None and "attention" in row.not_measured["latency_int8_ms"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--steps", "resnet5"), 1, ("no step 'resnet5'", "resnet50")),
        (("--resolution", "100"), 1, ("multiples of 32",)),
        (("--trained", "resnet50"), 2, ("--trained takes a step and its weights",)),
        (("--page", "road.html"), 1, ("ending in .md",)),
        (("--page", "absent/road.md"), 1, ("no folder absent",)),
        (("--target", "toaster"), 1, ("no target 'toaster'",)),
    ],
)
def test_wrong_input_gets_one_paragraph(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    fails(run_command("roadmap", *arguments, cwd=tmp_path), code, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["short", pytest.param("resnet50", marks=[pytest.mark.slow, pytest.mark.exhaustive])])
def test_json_is_the_list_of_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "short":
        monkeypatch.setitem(STEPS, "resnet50", short_step("resnet50"))
    result = run_command(
        "roadmap",
        "--steps",
        "resnet50",
        "--resolution",
        "32",
        "--num-images",
        "3",
        "--no-latency",
        "--json",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    (step, *_) = json.loads(result.stdout)
    assert step["name"] == "resnet50"
    if name != "short":
        assert (step["macs"], step["params"]) == (4_089_184_256, 25_557_032)
    assert (step["published_gflops"], step["published_top1"], step["latency_int8_ms"]) == (4.09, 78.82, None)
    assert (tmp_path / "runs" / "roadmap-onnx-32" / "roadmap.md").is_file()
