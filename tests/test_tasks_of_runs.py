"""A run knows its task: inferred, said, set with --task, kept, and refused where it does not fit the head."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import fails, run_command
from micro import micro_model
from sklearn import metrics

from edgeconvnext.backends.kit.known import Kit
from edgeconvnext.data.digits import digits_set
from edgeconvnext.model.checkpoint import save_checkpoint

HIGH = 5


@pytest.fixture(scope="module")
def one_logit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that says whether a digit is 5 or more, and 120 digits in folders 0 and 1."""
    root, model = tmp_path_factory.mktemp("one-logit"), micro_model()
    module = type(model.module)(replace(model.config, num_classes=1)).eval()
    state = model.module.state_dict()
    signs = torch.tensor([1.0 if digit >= HIGH else -1.0 for digit in range(10)])
    for name in ("head.weight", "head.bias"):  # the sum of high digits' scores minus that of low ones
        state[name] = torch.tensordot(signs, state[name], dims=1)[None]
    module.load_state_dict(state)
    save_checkpoint(replace(model, module=module, config=module.config, labels=None), root / "model.safetensors")
    digits = digits_set("train")
    assert digits.labels is not None
    for index in range(120):
        folder = root / "images" / str(int(digits.labels[index] >= HIGH))
        folder.mkdir(parents=True, exist_ok=True)
        digits.read(index).save(folder / f"{index:03}.png")
    return root


def quantized(one_logit: Path, output: Path, *more: str) -> dict:
    result = run_command(
        *("quantize", "--target", "onnx", "--model", one_logit / "model.safetensors", "--calib", one_logit / "images"),
        *("--num-images", "30", "--weights", "4", "--output", output, *more),
    )
    assert result.returncode in (0, 3), result.stderr
    assert "top-1" not in result.stdout.lower()
    return json.loads((output / "report.json").read_text())


def test_one_logit_is_judged_by_sign_from_the_plan_to_the_gate(one_logit: Path, tmp_path: Path) -> None:
    report = quantized(one_logit, tmp_path / "run", "--max-drop", "4")
    fp32 = np.load(tmp_path / "run/reference.npz")["fp32"]
    simulated = np.load(tmp_path / "run/logits.npz")["simulated"]
    accuracy, budget = report["accuracy"], report["quantization"]["budget"]
    assert (accuracy["task"], accuracy["score"]) == ("binary", "accuracy")
    assert accuracy["task_reason"] == "the network has one logit, which decides by its sign"
    assert accuracy["agreement"] == pytest.approx(100 * float(((fp32 > 0) == (simulated > 0)).mean()))
    assert 60 < accuracy["fp32"]["value"] < 100 and accuracy["fp32"]["n"] == len(fp32)
    assert budget["judged_by"] == "accuracy" and budget["before_kl"] > 0, "the softmax of one logit has no divergence"
    assert report["gates"][0]["score"] == "accuracy"


def test_a_task_that_the_head_does_not_have_is_refused(one_logit: Path, micro: Path, tmp_path: Path) -> None:
    images = ("--calib", one_logit / "images", "--target", "onnx", "--output", tmp_path / "run")
    single = run_command("quantize", "--model", one_logit / "model.safetensors", *images, "--task", "single-label")
    fails(single, 1, "--task single-label does not fit", "1 logit.", "take binary")
    binary = run_command("quantize", "--model", micro, *images, "--task", "binary")
    fails(binary, 1, "10 logits", "single-label or multi-label")
    backbone = run_command("quantize", "--model", micro, *images, "--head", "gap", "--task", "multi-label")
    fails(backbone, 1, "no logits")
    dropped = run_command("quantize", "--model", micro, *images, "--task", "multi-label", "--max-drop", "1")
    fails(dropped, 1, "one class an image")


def test_a_task_is_kept_with_the_run(micro: Path, one_logit: Path, tmp_path: Path) -> None:
    arguments = ("--num-images", "30", "--effort", "quick", "--target", "onnx")
    images = ("--model", micro, "--calib", one_logit / "images")
    first = run_command("quantize", *images, *arguments, "--task", "multi-label", "--output", tmp_path / "first")
    assert first.returncode in (0, 3), first.stderr
    assert "decisions, by sign" in first.stdout
    again = run_command("validate", tmp_path / "first")
    assert again.returncode in (0, 3), again.stderr
    report = json.loads((tmp_path / "first/report.json").read_text())
    assert (report["accuracy"]["task"], report["accuracy"]["task_reason"]) == ("multi-label", "as asked with --task")
    image = one_logit / "images" / "1"
    predicted = json.loads(run_command("predict", tmp_path / "first", image, "--json", "--quiet").stdout)
    assert set(predicted["networks"]) == {"FP32", "INT8"}
    for answer in predicted["images"]:
        for one in (*answer["predictions"]["FP32"], *answer["predictions"]["INT8"]):
            assert one["probability"] == pytest.approx(1 / (1 + np.exp(-one["logit"])))
    assert report["accuracy"]["fp32"] is None and "target for each class" in report["not_measured"]["accuracy.fp32"]


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """90 digits in a folder, and targets of 0 and 1 for each of ten classes: the digit itself and chance, or none."""
    root, rng, digits = tmp_path_factory.mktemp("tagged"), np.random.default_rng(5), digits_set("train")
    assert digits.labels is not None
    (root / "images").mkdir()
    targets = (rng.random((90, 10)) < 0.1).astype(int)
    for index in range(90):
        digits.read(index).save(root / "images" / f"{index:03}.png")
        targets[index, digits.labels[index]] = 1
    targets[7] = 0
    return root, targets


def test_labels_with_several_classes_make_a_run_of_mean_average_precision(
    micro: Path, tagged: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    root, targets = tagged
    header = ",".join(["file", *map(str, range(10))])
    lines = [",".join([f"{index:03}.png", *map(str, row)]) for index, row in enumerate(targets)]
    (tmp_path / "targets.csv").write_text("\n".join([header, *lines]))
    images = ("--calib", root / "images", "--eval", root / "images", "--labels", tmp_path / "targets.csv")
    options = ("--num-images", "30", "--effort", "quick", "--target", "onnx", "--no-latency")
    done = run_command("export", "--model", micro, *images, *options, "--output", tmp_path / "run")
    assert done.returncode in (0, 3), done.stderr
    assert "mean average precision" in done.stdout and "top-1" not in done.stdout.lower()
    report = json.loads((tmp_path / "run/report.json").read_text())
    accuracy = report["accuracy"]
    assert (accuracy["task"], accuracy["task_reason"]) == ("multi-label", "the labels name several classes an image")
    for name, file in (("fp32", "reference.npz"), ("simulated", "logits.npz"), ("artifact", "logits.npz")):
        logits = np.load(tmp_path / "run" / file)[name]
        expected = 100 * metrics.average_precision_score(targets, logits, average="macro")
        assert accuracy[name]["value"] == pytest.approx(expected, rel=1e-9)
    gate = next(gate for gate in report["gates"] if gate["name"] == "score_drop_pp")
    assert gate["score"] == "mean average precision" and gate["measured"] == accuracy["drop_pp"]["value"]
    assert f"0 to {targets.sum(1).max()} classes" in " ".join(report["notes"])
    kit = Kit.load(tmp_path / "run/device")
    assert kit.task == "multi-label" and kit.labels is not None and kit.labels.shape == (32, 10)
    again = run_command("validate", tmp_path / "run", "--no-latency")
    assert again.returncode in (0, 3), again.stderr
    repeated = json.loads((tmp_path / "run/report.json").read_text())["accuracy"]
    assert repeated["task_reason"] == accuracy["task_reason"] and repeated["fp32"] == accuracy["fp32"]


def test_several_classes_are_refused_where_one_is_needed(
    micro: Path, one_logit: Path, tagged: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    root, targets = tagged
    texts = ["|".join(map(str, np.flatnonzero(row))) for row in targets]
    lines = [f"{index:03}.png,{text}\n" for index, text in enumerate(texts)]
    (tmp_path / "targets.csv").write_text("".join(lines))
    images = ("--calib", root / "images", "--eval", root / "images", "--labels", tmp_path / "targets.csv")
    options = (*images, "--target", "onnx", "--output", tmp_path / "run")
    single = run_command("quantize", "--model", micro, *options, "--task", "single-label")
    fails(single, 1, f"up to {targets.sum(1).max()} classes an image", "--task multi-label")
    fails(run_command("quantize", "--model", micro, *options, "--max-drop", "1"), 1, "one class an image")
    binary = run_command("quantize", "--model", one_logit / "model.safetensors", *options)
    fails(binary, 1, f"up to {targets.sum(1).max()} classes an image")
    (tmp_path / "targets.csv").write_text("".join(line.replace("|", "|1") for line in lines))
    fails(run_command("quantize", "--model", micro, *options), 1, "10 outputs, 0 to 9")
