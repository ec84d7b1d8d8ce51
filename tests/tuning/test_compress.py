"""Pruning, LayerNorms and recovery in one go: each step recorded, bad requests refused, the result a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
from in_process import run_command

from edgeconvnext import api
from edgeconvnext.backends import load_target
from edgeconvnext.data.digits import digits_set
from edgeconvnext.errors import CheckpointError, QuantizationError, RewriteError
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.load import load_model
from edgeconvnext.pipeline.job import Request, resolve
from edgeconvnext.train.distill import Distilled
from edgeconvnext.tuning import compress as compress_module
from edgeconvnext.tuning.compress import CompressOptions, compress

QUICK = CompressOptions(images=90, measure_latency=False)


def test_everything_together_is_recorded(tmp_path: Path) -> None:
    output = tmp_path / "small.safetensors"
    result = api.compress(
        "digits", calib="digits", num_images=90, latency=False, prune_macs=0.7, replace_norm=True, norm_drop=50,
        recover=True, epochs=1, output=output,
    )  # fmt: skip
    record = result.record
    assert record.macs_after <= 0.7 * record.macs_before and record.pruning is not None
    assert [row.verdict for row in record.norms] == ["replaced"] * len(record.norms) and len(record.norms) == 10
    assert record.recovery is not None and record.recovery.images > 300  # all but the held-out ones
    assert record.held_out == 30 and record.judged_by == "top-1" and record.latency is None
    loaded = load_model(output)
    assert loaded.config == result.module.config and len(loaded.config.identity_norms) == 10
    assert json.loads((tmp_path / "small.changes.json").read_text())["macs_after"] == record.macs_after
    assert not list(tmp_path.glob("*.recovery.pt"))


def test_images_without_labels_are_judged_by_agreement() -> None:
    images = dataclasses.replace(digits_set("calibration").take(90), labels=None)
    options = dataclasses.replace(QUICK, replace_norms=True, max_drop=30)
    result = compress(load_model("digits"), images, options, load_target("onnx"))
    assert result.record.judged_by == "agreement"
    assert result.record.loss.points == pytest.approx(100 - result.record.loss.agreement)


def test_norms_are_timed_where_the_runtime_is_here(micro: str) -> None:
    options = dataclasses.replace(QUICK, replace_norms=True, measure_latency=True, images=30, max_drop=30)
    here = compress(load_model(micro), digits_set("calibration"), options, load_target("onnx")).record
    assert here.latency is not None and all(row.saved_ms is not None for row in here.norms)
    elsewhere = compress(load_model(micro), digits_set("calibration"), options, load_target("jetson")).record
    assert elsewhere.latency is None and all(row.saved_ms is None for row in elsewhere.norms)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"macs": 0.0}, "above 0 and at most at 1; it is 0"),
        ({"macs": 1.2}, "above 0 and at most at 1; it is 1.2"),
        ({"macs": 0.01}, "Pruning hidden channels cannot reach 0.01"),
        ({"max_drop": 0.0}, "points above 0 and up to 100"),
        ({"images": 5}, "at least 6 images"),
        ({"epochs": 0}, "at least one epoch"),
        ({"minutes": 0.0}, "a time above 0"),
    ],
)
def test_bad_options_are_refused(change: dict[str, float], said: str) -> None:
    options = dataclasses.replace(QUICK, **change)  # type: ignore[arg-type]
    with pytest.raises(RewriteError, match=said):
        compress(load_model("digits"), digits_set("calibration"), options, load_target("onnx"))


def test_a_run_that_changes_the_network_needs_its_own_evaluation_images() -> None:
    with pytest.raises(QuantizationError, match="Name evaluation images with --eval"):
        resolve(Request(model="digits", calib="digits", prune_macs=0.9))


def test_export_changes_quantises_and_reports(micro: str, tmp_path: Path) -> None:
    common = ("--calib", "digits", "--eval", "digits_test", "--no-latency", "--effort", "quick", "--num-images", "60")
    result = run_command(
        "export", "--target", "onnx", "--model", micro, "--prune-macs", "0.8", "--replace-norm", *common,
        "--output", str(tmp_path / "run"), "--json",
    )  # fmt: skip
    assert result.returncode in (0, 3), result.stderr
    report = json.loads(result.stdout)
    assert len(report["compression"]["norms"]) == 5
    assert report["compression"]["macs_after"] < 0.8 * report["model"]["macs"] + 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Changed before quantization" in page and "stages.1.0.norm" in page
    network = (tmp_path / "run" / "compressed.safetensors").stat().st_mtime_ns
    again = run_command("validate", str(tmp_path / "run"), "--json")  # with latency now: the network stays what it is
    assert again.returncode in (0, 3), again.stderr
    assert json.loads(again.stdout)["compression"] == report["compression"]
    assert (tmp_path / "run" / "compressed.safetensors").stat().st_mtime_ns == network
    assert json.loads(again.stdout)["accuracy"]["artifact"] == report["accuracy"]["artifact"]


def test_fold_replaces_norms_from_the_command_line(tmp_path: Path) -> None:
    output = tmp_path / "normless.safetensors"
    result = run_command(
        "fold", "digits", "--replace-norm", "--calib", "digits", "--num-images", "90", "--no-latency",
        "--max-drop", "20", "--output", str(output),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "10 of 10" in result.stdout and "replaced" in result.stdout and "not measured" in result.stdout
    assert len(load_model(output).config.identity_norms) == 10


def test_options_that_mean_nothing_are_usage_errors(tmp_path: Path) -> None:
    common = ("digits", "--calib", "digits", "--output", str(tmp_path / "x.safetensors"))
    export = ("--target", "onnx", "--model", "digits", "--calib", "digits", "--output", str(tmp_path / "run"))
    for arguments, said in (
        (
            ("fold", *common, "--norms", "blocks", "--max-drop", "2"),
            "--norms and --max-drop mean nothing without --replace-norm",
        ),
        (("fold", *common, "--replace-norm", "--epochs", "2"), "--epochs means nothing without --recover"),
        (
            ("prune", *common, "--macs", "0.7", "--budget-minutes", "2"),
            "--budget-minutes means nothing without --recover",
        ),
        (("export", *export, "--epochs", "2"), "--epochs means nothing without --recover"),
        (
            ("export", *export, "--prune-macs", "0.7", "--norm-drop", "1"),
            "--norm-drop means nothing without --replace-norm",
        ),
        (
            ("quantize", *export, "--replace-norm", "--budget-minutes", "2"),
            "--budget-minutes means nothing without --recover",
        ),
    ):
        result = run_command(*arguments)
        assert result.returncode == 2 and said in " ".join(result.stderr.split()), result.stderr
    assert not list(tmp_path.iterdir())


def test_too_few_images_are_refused_before_any_work() -> None:
    options = dataclasses.replace(QUICK, replace_norms=True)
    with pytest.raises(RewriteError, match=r"at least 6 images, better hundreds; .* has 5"):
        compress(load_model("digits"), digits_set("calibration").take(5), options, load_target("onnx"))


def test_training_that_makes_it_worse_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """All norms go without training already, so what training gives has to be nearer to the original."""

    def harm(student: ConvNeXt, *_: object, **__: object) -> Distilled:
        worse = copy.deepcopy(student)
        with torch.no_grad():
            worse.head.weight.mul_(0.5)
        return Distilled(worse.eval(), 1, 2, 0.1, (1.0,))

    monkeypatch.setattr(compress_module, "distill", harm)
    options = dataclasses.replace(QUICK, replace_norms=True, recover=True, max_drop=100)
    result = compress(load_model("digits"), digits_set("calibration"), options, load_target("onnx"))
    recovery = result.record.recovery
    assert recovery is not None and recovery.after.kl > recovery.before.kl and not recovery.kept
    assert {row.method for row in result.record.norms} == {"frozen"} and len(result.module.config.identity_norms) == 10


def test_an_interrupted_recovery_outlives_another_command(tmp_path: Path) -> None:
    begun = tmp_path / "x.recovery.pt"
    begun.write_bytes(b"begun")
    pruned = functools.partial(api.compress, "digits", calib="digits", num_images=90, latency=False, prune_macs=0.9)
    pruned(output=tmp_path / "x.safetensors")
    assert begun.read_bytes() == b"begun"
    with pytest.raises(RewriteError, match="no checkpoint of this recovery; delete it"):
        pruned(recover=True, epochs=1, output=tmp_path / "x.safetensors")
    (tmp_path / "y.recovery.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"y\.recovery\.pt is a folder"):
        pruned(recover=True, epochs=1, output=tmp_path / "y.safetensors")


def test_recovery_alone_is_a_usage_error(tmp_path: Path) -> None:
    output = str(tmp_path / "x.safetensors")
    result = run_command("fold", "digits", "--recover", "--calib", "digits", "--output", output)
    assert result.returncode == 2 and "--replace-norm" in result.stderr
    result = run_command("export", "--target", "onnx", "--model", "digits", "--calib", "digits", "--recover")
    assert result.returncode == 2 and "--prune-macs or --replace-norm" in " ".join(result.stderr.split())
