"""Quantise, export, validate on the embedded digits model: what is written, measured, reused and refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from micro import write_micro

from edgeconvnext.errors import CheckpointError, LabelMismatchError, QuantizationError, RuntimeMissingError, TargetError
from edgeconvnext.options.commands import Validate
from edgeconvnext.pipeline import commands as pipeline
from edgeconvnext.pipeline.commands import Outcome
from edgeconvnext.pipeline.job import Request
from edgeconvnext.resources import resource_dir
from edgeconvnext.run.manifest import load_run

DIGITS = Request(model="digits", calib="digits", eval="digits_test", num_images=120, latency=False)


def request(**changes: object) -> Request:
    from dataclasses import replace

    return replace(DIGITS, **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def quantized(runs: Path) -> Outcome:
    return pipeline.quantize(request(output=runs / "quantized"))


@pytest.fixture(scope="module")
def onnx(runs: Path, quantized: Outcome) -> Outcome:
    return pipeline.export(request(target="onnx", output=runs / "onnx"))


@pytest.fixture(scope="module")
def micro_onnx(runs: Path, micro: str) -> Outcome:
    return pipeline.export(request(model=micro, target="onnx", output=runs / "micro-onnx"))


@pytest.fixture(scope="module")
def jetson(runs: Path, micro: str, micro_onnx: Outcome) -> Outcome:
    return pipeline.export(request(model=micro, target="jetson", output=runs / "jetson"))


@pytest.fixture(scope="module")
def rtx(runs: Path, micro: str, jetson: Outcome) -> Outcome:
    pytest.importorskip("tensorrt_rtx")
    return pipeline.export(request(model=micro, target="rtx", output=runs / "rtx"))


def stored(outcome: Outcome) -> dict:
    return json.loads((outcome.path / "report.json").read_text())


def reused(outcome: Outcome) -> set[str]:
    return {stage.stage for stage in outcome.report.stages if stage.reused}


def test_quantize_measures_the_simulation_and_claims_no_artifact(quantized: Outcome) -> None:
    report = stored(quantized)
    assert report["accuracy"]["fp32"]["value"] > 98.5
    assert report["accuracy"]["simulated"]["value"] > 98.5
    assert report["accuracy"]["artifact"] is None
    assert "edgeconvnext export" in report["not_measured"]["accuracy.artifact"]
    assert report["accuracy"]["measured_on"] == "simulation"
    assert report["accuracy"]["fp32"]["n"] == 599
    assert 0 < report["size_bytes"]["artifact"] < report["size_bytes"]["fp32"]
    assert quantized.exit_code == 0


def test_the_program_of_a_run_is_rebuilt_and_answers_as_the_run_did(quantized: Outcome) -> None:
    import torch

    from edgeconvnext import load_model, quantized_program
    from edgeconvnext.data.loader import batches
    from edgeconvnext.data.sets import resolve_image_set

    module = quantized_program(quantized.path).module()
    stream = batches(resolve_image_set("digits_test"), load_model("digits").preprocess, indices=list(range(16)))
    with torch.inference_mode():
        answers = torch.cat([module(batch.images) for batch in stream])
    with np.load(quantized.path / "logits.npz") as file:
        expected = torch.from_numpy(file["simulated"][:16])
    # Batches of another size may add up in another order: a few last bits of logits of about 10.
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-4)
    assert not list(quantized.path.rglob("*.pt2")), "a stored program would run code of whoever wrote it"


def test_one_export_builds_its_quantised_graph_once(
    micro: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeconvnext.quantization import program

    built, build = [], program.quantize_program
    monkeypatch.setattr(program, "quantize_program", lambda *given: built.append(1) or build(*given))
    few = request(model=micro, num_images=9, effort="quick", eval=None, most_evaluated=9, output=tmp_path / "run")
    pipeline.export(few)
    assert len(built) == 1


def test_the_network_for_a_target_is_loaded_and_proven_once(
    micro: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For raw pixels: the fold of the network and that of its input are proven, and what is folded is read back once."""
    from edgeconvnext.pipeline.stages import network
    from edgeconvnext.rewrite import exact

    loaded, load = [], network.load_model
    proven, fold = [], exact.fold_exact
    monkeypatch.setattr(network, "load_model", lambda path: loaded.append(path.name) or load(path))
    monkeypatch.setattr(
        exact,
        "fold_exact",
        lambda *given, **more: proven.append(more.get("value_range", "normalized")) or fold(*given, **more),
    )
    pixels = request(model=micro, target="coreml", num_images=9, eval=None, most_evaluated=9, output=tmp_path / "run")
    pipeline.quantize(pixels)
    assert proven == ["normalized", "0..255"]
    assert loaded == ["folded.safetensors"]


def test_onnx_artifact_is_measured_in_its_runtime(onnx: Outcome) -> None:
    report = stored(onnx)
    assert report["accuracy"]["measured_on"] == "artifact"
    assert report["accuracy"]["agreement"] > 99
    assert report["fidelity_db"] > 30
    assert {gate["name"]: gate["passed"] for gate in report["gates"]} == {
        "score_drop_pp": True,
        "min_speedup": None,
        "min_fidelity_db": True,
    }
    assert "--no-latency" in report["not_measured"]["speedup"]
    assert all(check["passed"] for check in report["checks"])
    assert onnx.exit_code == 0


def test_every_null_has_a_reason(onnx: Outcome, jetson: Outcome, quantized: Outcome) -> None:
    for outcome in (onnx, jetson, quantized):
        report = stored(outcome)
        for key in ("fidelity_db", "speedup"):
            assert report[key] is not None or report["not_measured"][key]
        for part in ("fp32", "simulated", "artifact"):
            assert report["accuracy"][part] is not None or report["not_measured"][f"accuracy.{part}"]
        for part in ("fp32", "artifact"):
            assert report["latency"][part] is not None or report["not_measured"][f"latency.{part}"]


def test_another_target_takes_over_the_folded_network_and_its_fp32_results(jetson: Outcome) -> None:
    assert {"fold", "reference"} <= reused(jetson)


def test_targets_that_differ_in_their_file_only_share_a_plan(jetson: Outcome, rtx: Outcome) -> None:
    assert {"fold", "plan", "reference"} <= reused(rtx)
    assert stored(rtx)["quantization"]["layers"] == stored(jetson)["quantization"]["layers"]


def test_with_quick_effort_another_target_reads_no_image_for_calibration_again(micro: str, runs: Path) -> None:
    pipeline.quantize(request(model=micro, effort="quick", output=runs / "quick"))
    outcome = pipeline.quantize(request(model=micro, effort="quick", target="jetson", output=runs / "quick-jetson"))
    assert {"fold", "statistics", "reference"} <= reused(outcome)


def test_every_run_writes_a_plan_file_that_another_run_can_be_made_with(
    micro: str, micro_onnx: Outcome, runs: Path
) -> None:
    text = (micro_onnx.path / "plan.toml").read_text() + "\nweights = 4\n[layers.head]\nfloat = true\n"
    (runs / "mine.toml").write_text(text)
    outcome = pipeline.quantize(request(model=micro, plan=runs / "mine.toml", output=runs / "planned"))
    record = outcome.report.quantization
    assert record.scheme.startswith("W4A8")
    assert "head" not in {layer.layer for layer in record.layers}
    assert {layer.weight_bits for layer in record.layers} == {4}
    again = pipeline.validate(outcome.path)
    assert again.report.quantization == record, "validate takes the bits from the run"


def test_a_budget_is_noted_in_the_report(micro: str, runs: Path) -> None:
    outcome = pipeline.quantize(request(model=micro, weights=4, max_drop=1.0, output=runs / "budget"))
    budget = outcome.report.quantization.budget
    assert budget is not None
    assert (budget.judged_by, budget.images) == ("top-1", 40)
    assert budget.after_pp <= 1.0
    assert any("resolve 2.50 points" in note for note in outcome.report.notes)


@pytest.mark.exhaustive
def test_what_layers_given_back_cost_in_latency_is_timed(
    micro: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 4 bits and without any method the network loses; a budget of zero nats gives every layer more bits."""
    from edgeconvnext.tuning import budget as search

    monkeypatch.setattr(search.HeldOut, "within", lambda self, max_drop, labelled: self.kl < 1e-6)
    asked = request(
        model=micro, weights=4, rounding="nearest", max_drop=1.0, num_images=30, latency=True, output=runs / "timed"
    )
    budget = pipeline.export(asked).report.quantization.budget
    assert budget is not None
    assert budget.moves
    assert budget.latency_before_ms is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_drop": 0.0}, "--max-drop is 0"),
        ({"max_drop": 101.0}, "--max-drop is 101"),
        ({"adaround_minutes": 0.0}, "--adaround-minutes"),
        ({"effort": "quick", "rounding": "gptq"}, "has no --rounding"),
        ({"effort": "quick", "max_drop": 0.5}, "has no --max-drop"),
    ],
)
def test_methods_that_contradict_each_other_are_refused(changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=words):
        pipeline.quantize(request(**changes, output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_jetson_run_carries_its_device_kit_and_says_what_the_board_must_measure(jetson: Outcome) -> None:
    names = {path.name for path in (jetson.path / "device").iterdir()}
    assert {"build_and_check.py", "model_fp16.onnx"} <= names
    report = stored(jetson)
    assert report["accuracy"]["artifact"] is None
    assert report["fidelity_db"] is None
    assert "board" in report["not_measured"]["fidelity_db"]
    assert any(check["name"].startswith("onnxruntime") and check["passed"] for check in report["checks"])


def test_a_second_run_reuses_every_stage_and_gives_the_same_figures(onnx: Outcome) -> None:
    again = pipeline.export(request(target="onnx", output=onnx.path))
    assert {stage.stage for stage in again.report.stages} == reused(again)
    assert again.report.accuracy == onnx.report.accuracy


def test_the_manifest_covers_every_file_and_the_image_list(onnx: Outcome) -> None:
    run = load_run(onnx.path)
    assert {"model.onnx", "report.html", "report.json", "MODEL_CARD.md", "labels.txt"} <= set(run.files)
    assert len(run.manifest["calibration_list"]) == 120


def test_from_run_takes_model_and_images(micro_onnx: Outcome, jetson: Outcome, runs: Path) -> None:
    outcome = pipeline.export(
        Request(target="jetson", from_run=micro_onnx.path, latency=False, output=runs / "from-run")
    )
    assert outcome.report.accuracy.dataset == "digits_test"
    assert outcome.report.quantization.calibration_images == 120
    assert {"fold", "reference"} <= reused(outcome)


@pytest.mark.exhaustive
def test_from_run_works_when_the_checkpoint_is_gone(tmp_path: Path) -> None:
    weights = write_micro(tmp_path / "mine.safetensors")
    first = pipeline.quantize(request(model=str(weights), num_images=30, output=tmp_path / "first"))
    weights.unlink()
    second = pipeline.quantize(Request(from_run=first.path, output=tmp_path / "second"))
    assert any("not available" in note for note in second.report.notes)
    assert second.report.accuracy.simulated == first.report.accuracy.simulated
    again = pipeline.validate(first.path)
    assert again.report.model.sha256 == first.report.model.sha256


def test_a_run_made_with_relative_paths_is_taken_up_from_another_folder(
    micro: str, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo_folder.parent)
    first = pipeline.quantize(
        request(model=micro, calib=photo_folder.name, eval=None, num_images=9, output=tmp_path / "run")
    )
    monkeypatch.chdir(tmp_path)
    again = pipeline.validate(first.path)
    assert {"fold", "plan", "quantized", "reference", "accuracy"} <= reused(again)


@pytest.mark.exhaustive
def test_quantize_does_not_undo_an_export_in_the_default_folder(
    micro: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exported = pipeline.export(request(model=micro, num_images=30))
    assert pipeline.quantize(request(model=micro, num_images=30)).path != exported.path
    assert "model.onnx" in load_run(exported.path).files


def test_validate_on_another_set_renews_the_report(onnx: Outcome, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(onnx.path, copy)
    outcome = pipeline.validate(copy, Validate(data="digits", latency=False))
    assert outcome.report.accuracy.dataset == "digits"
    assert outcome.report.accuracy.images == 400
    assert {"plan", "quantized", "artifact"} <= reused(outcome)
    assert stored(outcome)["accuracy"]["images"] == 400


def test_without_evaluation_set_images_that_ranges_saw_are_left_out(micro: str, runs: Path) -> None:
    outcome = pipeline.quantize(request(model=micro, eval=None, output=runs / "no-eval"))
    # 400 images in the set, 120 taken, 80 of them fitted on.
    assert outcome.report.accuracy.images == 320
    assert outcome.report.accuracy.fp32 is not None


def test_unlabelled_images_give_agreement_and_a_reason(micro: str, photo_folder: Path, runs: Path) -> None:
    flat = runs / "flat"
    flat.mkdir(exist_ok=True)
    for index, path in enumerate(sorted(photo_folder.rglob("*.*"))[:12]):
        shutil.copy(path, flat / f"{index}{path.suffix}")
    outcome = pipeline.quantize(
        request(model=micro, calib=str(flat), eval=None, num_images=9, output=runs / "unlabelled")
    )
    report = outcome.report
    assert report.accuracy.fp32 is None
    assert "labels" in report.not_measured["accuracy.fp32"]
    assert report.accuracy.agreement is not None
    assert any("uncertain" in note for note in report.notes)


def test_evaluation_labels_that_do_not_match_are_refused(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelMismatchError):
        pipeline.quantize(request(eval=str(photo_folder), output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_missed_gate_keeps_the_artifact_and_ends_with_3(micro: str, tmp_path: Path) -> None:
    target = tmp_path / "strict.toml"
    text = (resource_dir("targets") / "onnx.toml").read_text()
    target.write_text(text.replace("min_fidelity_db = 30.0", "min_fidelity_db = 190.0"))
    outcome = pipeline.export(request(model=micro, target=str(target), output=tmp_path / "run"))
    assert outcome.exit_code == 3
    assert outcome.report.verdict == "failed"
    assert (outcome.path / "model.onnx").is_file()


@pytest.mark.parametrize("network", ["micro", pytest.param("digits", marks=[pytest.mark.exhaustive, pytest.mark.slow])])
@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML itself runs here")
def test_coreml_run_is_judged_by_the_reference_evaluator(network: str, micro: str, runs: Path) -> None:
    pytest.importorskip("coremltools")
    model = micro if network == "micro" else network
    outcome = pipeline.export(request(model=model, target="coreml", output=runs / f"coreml-{network}"))
    report = stored(outcome)
    accuracy = report["accuracy"]
    assert (outcome.path / "model.mlpackage" / "Manifest.json").is_file()
    assert accuracy["runtime"].startswith("reference evaluator")
    assert accuracy["measured_on"] == "artifact"
    assert accuracy["artifact"]["n"] == 599
    # The micro network itself is right on 56 of 100.
    assert accuracy["artifact"]["value"] > (50 if network == "micro" else 98)
    assert report["fidelity_db"] > 50  # the same arithmetic as the simulation, but for the order of float16 roundings
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert "reference evaluator" in gates["min_fidelity_db"]["reason"]
    assert gates["min_speedup"]["passed"] is None
    assert report["latency"]["artifact"] is None
    assert "Core ML" in report["not_measured"]["latency.artifact"]
    assert report["model"]["folds"]["input_normalization"] < 1e-4
    assert {check["name"] for check in report["checks"]} == {"package loads", "weights equal the simulation's"}
    for page in ("report.html", "MODEL_CARD.md"):
        assert "artifact in the reference evaluator" in (outcome.path / page).read_text(encoding="utf-8").lower()


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML itself runs here")
@pytest.mark.parametrize(
    ("network", "target", "scheme", "least_db", "most_drop_pp"),
    [
        ("micro", "coreml-w8", "W8A16", 38, 2),
        pytest.param("micro", "coreml-p6", "W6A16", 29, 2, marks=pytest.mark.exhaustive),
        pytest.param("digits", "coreml-w8", "W8A16", 55, 0.2, marks=[pytest.mark.exhaustive, pytest.mark.slow]),
        pytest.param("digits", "coreml-p6", "W6A16", 48, 0.2, marks=[pytest.mark.exhaustive, pytest.mark.slow]),
    ],
)
@pytest.mark.exhaustive
def test_weights_alone_cost_little(
    network: str, target: str, scheme: str, least_db: float, most_drop_pp: float, micro: str, runs: Path
) -> None:
    """The package in the reference evaluator: digits reach 63.8 and 56.3 dB, the micro network 40.5 and 32.0 dB."""
    pytest.importorskip("coremltools")
    model = micro if network == "micro" else network
    report = pipeline.export(request(model=model, target=target, output=runs / f"{target}-{network}")).report
    assert report.quantization.scheme.startswith(scheme)
    assert report.accuracy.evaluated
    assert report.accuracy.drop_pp is not None and report.accuracy.drop_pp.value <= most_drop_pp
    assert report.accuracy.sqnr_db is not None and report.accuracy.sqnr_db > least_db
    assert report.fidelity_db is not None and report.fidelity_db > 60


def test_rtx_engine_is_built_without_a_gpu(rtx: Outcome) -> None:
    assert (rtx.path / "model.engine").stat().st_size > 100_000
    (check,) = [check for check in rtx.report.checks if check.name == "TensorRT-RTX"]
    assert check.passed
    assert "parses and builds" in check.result


def test_gpu_target_without_a_gpu_ends_before_any_work(tmp_path: Path) -> None:
    from edgeconvnext.backends.tensorrt.engine import _missing_driver

    if _missing_driver() is None:
        pytest.skip("there is an NVIDIA GPU here")
    with pytest.raises(RuntimeMissingError, match="no NVIDIA driver") as caught:
        pipeline.export(request(target="gpu", output=tmp_path / "run"))
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_wrong_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(TargetError, match="jetson"):
        pipeline.export(request(target="jetsn", output=output))
    with pytest.raises(QuantizationError, match="--calib"):
        pipeline.quantize(request(calib=None, output=output))
    with pytest.raises(QuantizationError, match="at least 3"):
        pipeline.quantize(request(num_images=2, output=output))
    with pytest.raises(CheckpointError, match="missing"):
        pipeline.quantize(request(model=str(tmp_path / "missing.pth"), output=output))
    assert not output.exists()


def test_the_default_model_comes_from_the_environment(
    micro: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGECONVNEXT_MODEL", micro)
    outcome = pipeline.quantize(request(model=None, num_images=9, output=tmp_path / "run"))
    assert outcome.report.model.parameters == 4242


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy", "mse", "output"])
def test_a_forced_calibrator_is_used_for_every_layer(calibrator: str, micro: str, runs: Path) -> None:
    outcome = pipeline.quantize(request(model=micro, calibrator=calibrator, num_images=30, output=runs / calibrator))
    assert {layer.estimator for layer in outcome.report.quantization.layers} == {calibrator}


@pytest.mark.data
@pytest.mark.slow
def test_atto_on_photographs_loses_less_than_a_point(
    photographs: Path, atto_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tenth validation image; the whole set is measured in benchmarks/results."""
    monkeypatch.setenv("EDGECONVNEXT_DATA", str(photographs))
    some = tmp_path / "val"
    for folder in sorted((photographs / "imagenette2-160" / "val").iterdir()):
        (some / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[::10]:
            (some / folder.name / path.name).symlink_to(path)
    outcome = pipeline.export(
        Request(
            model=str(atto_weights),
            calib="imagenette",
            eval=str(some),
            num_images=96,
            latency=False,
            output=tmp_path / "run",
        )
    )
    accuracy = outcome.report.accuracy
    assert accuracy.fp32 is not None
    assert accuracy.artifact is not None
    assert accuracy.drop_pp is not None
    # 196 images: one image is half a point. The artifact reaches 45 dB here; 40 leaves room for other calibration images.
    assert accuracy.drop_pp.value <= 1.6
    assert accuracy.sqnr_db is not None
    assert accuracy.sqnr_db > 40
    assert outcome.report.fidelity_db is not None
    assert outcome.report.fidelity_db > 30
    assert np.isclose(accuracy.fp32.n, 196, atol=4)


def test_a_target_of_fixed_batch_gives_an_artifact_of_that_batch(micro: str, runs: Path, tmp_path: Path) -> None:
    import onnx

    target = tmp_path / "batch4.toml"
    text = (resource_dir("targets") / "onnx.toml").read_text()
    target.write_text(text.replace("[quantize]\n", "[input]\nbatch = [4, 4, 4]\n\n[quantize]\n", 1))
    outcome = pipeline.export(request(model=micro, target=str(target), output=runs / "batch4"))
    graph = onnx.load(outcome.path / "model.onnx").graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    # 599 images are no multiple of 4: the last batch is filled up and cut.
    assert outcome.report.accuracy.artifact is not None
    assert outcome.report.accuracy.artifact.n == 599
    assert outcome.report.fidelity_db is not None
    assert outcome.report.fidelity_db > 30
