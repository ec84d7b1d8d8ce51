"""`edgeconvnext predict`: classes with names, for a run, a model and an artifact."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from in_process import fails, run_command

import edgeconvnext
from edgeconvnext.data.digits import digits_set
from edgeconvnext.model.load import load_model
from edgeconvnext.pipeline.job import Request, resolve
from edgeconvnext.pipeline.stages.artifact import artifact_metadata
from edgeconvnext.prediction.artifact import Artifact
from edgeconvnext.prediction.classes import prediction

TITLES = ("FP32", "INT8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, micro: str) -> Path:
    """A folder with a run of the micro network and three images in `digits`, the last of them broken."""
    root = tmp_path_factory.mktemp("predict")
    (root / "digits").mkdir()
    for number in range(2):
        digits_set("test").read(number).save(root / "digits" / f"{number}.png")
    (root / "digits" / "2.png").write_bytes(b"no image")
    done = run_command(
        *(
            "export",
            "--target",
            "onnx",
            "--model",
            micro,
            "--calib",
            "digits",
            "--num-images",
            "30",
            "--effort",
            "quick",
        ),
        *("--no-latency", "--quiet", "--output", root / "run"),
    )
    assert done.returncode in (0, 3), done.stderr
    return root


def expected(micro: str, number: int) -> np.ndarray:
    """Return the softmax of the checkpoint for a digit, float64."""
    import torch

    model = load_model(micro)
    with torch.inference_mode():
        logits = model.module(torch.from_numpy(model.preprocess.apply(digits_set("test").read(number))[None]))
    return logits.double().softmax(1)[0].numpy()


def test_a_run_shows_both_networks_side_by_side(folder: Path, micro: str) -> None:
    done = run_command("predict", folder / "run", folder / "digits" / "0.png")
    assert done.returncode == 0, done.stderr
    name, titles, first, *_ = done.stdout.splitlines()
    assert name.endswith("0.png") and titles.split()[0] == "FP32" and "INT8 (onnxruntime" in titles
    shares = expected(micro, 0)
    label, share, *_ = first.split()
    assert (label, float(share.rstrip("%"))) == (str(shares.argmax()), pytest.approx(100 * shares.max(), abs=0.006))


def test_json_names_every_image_network_and_class(folder: Path, micro: str) -> None:
    done = run_command("predict", folder / "run", folder / "digits", "--json")
    document = json.loads(done.stdout)
    assert set(document["networks"]) == set(TITLES)
    assert [Path(image["image"]).name for image in document["images"]] == ["0.png", "1.png"]
    assert [Path(skipped["image"]).name for skipped in document["skipped"]] == ["2.png"]
    for number, image in enumerate(document["images"]):
        shares = expected(micro, number)
        classes = image["predictions"]["FP32"]
        assert [one["index"] for one in classes] == np.argsort(-shares)[:5].tolist()
        assert [one["probability"] for one in classes] == pytest.approx(sorted(shares, reverse=True)[:5], abs=1e-5)
        assert [one["name"] for one in classes] == [str(one["index"]) for one in classes]


def test_an_artifact_a_model_and_a_pattern(folder: Path, micro: str) -> None:
    artifact = run_command("predict", folder / "run" / "model.onnx", folder / "digits" / "[01].png", "--json")
    model = run_command("predict", micro, folder / "digits" / "?.png", "--json", "--quiet")
    by_file, by_model = json.loads(artifact.stdout), json.loads(model.stdout)
    assert set(by_file["networks"]) == {"INT8"} and set(by_model["networks"]) == {"FP32"}
    assert len(by_file["images"]) == len(by_model["images"]) == 2
    opened = edgeconvnext.load_artifact(folder / "run" / "model.onnx")
    one = opened.predict(str(folder / "digits" / "0.png"))
    assert not isinstance(one, list)
    assert one.as_dict() == by_file["images"][0]["predictions"]["INT8"]
    answers = edgeconvnext.predict(folder / "run", digits_set("test").read(0))
    assert answers[0].by_network["INT8"].classes == one.classes


def test_what_cannot_be_predicted_is_said(folder: Path) -> None:
    run, digits = folder / "run", folder / "digits"
    fails(run_command("predict", run, digits / "9.png"), 1, "no image")
    fails(run_command("predict", run, digits / "*.jpg"), 1, "No file matches")
    fails(run_command("predict", run, digits / "2.png"), 1, "None of the images", "header is damaged")
    fails(run_command("predict", digits / "0.png", digits / "0.png"), 1, "0.png")
    fails(run_command("predict", folder / "nothing.onnx", digits / "0.png"), 1, "nothing.onnx")


def test_one_logit_decides_by_its_sign() -> None:
    yes, no = (prediction("image", np.array([logit], np.float32), ("cat", "dog")) for logit in (2.0, -2.0))
    assert (yes.top.name, no.top.name) == ("dog", "cat")
    # 1 / (1 + exp(-2))
    assert yes.top.probability == pytest.approx(0.8807970779778823)
    assert no.top.probability == pytest.approx(0.8807970779778823)


def test_classes_of_several_labels_are_decisions_of_their_own() -> None:
    answer = prediction("image", np.array([2.0, -2.0, 0.0], np.float32), None, independent=True)
    assert [one.index for one in answer.classes] == [0, 2, 1]
    # 1 / (1 + exp(-2)), 1 / 2, 1 / (1 + exp(2))
    assert [one.probability for one in answer.classes] == pytest.approx([0.8807970779778823, 0.5, 0.11920292202211755])


def test_an_artifact_says_whether_its_classes_are_decisions(micro: str) -> None:
    job = resolve(Request(model=micro, calib="digits", num_images=12, task="multi-label"))
    artifact = Artifact(Path("model.onnx"), artifact_metadata(job))
    assert artifact.independent
    single = resolve(Request(model=micro, calib="digits", num_images=12))
    assert not Artifact(Path("model.onnx"), artifact_metadata(single)).independent


def test_the_snippet_of_the_model_card_prints_names_and_probabilities(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (folder / "run" / "MODEL_CARD.md").read_text()
    package, own = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    monkeypatch.chdir(folder / "run")
    digits_set("test").read(0).save(folder / "run" / "image.jpg", quality=95)
    exec(package, {})
    printed = capsys.readouterr().out.splitlines()
    exec(own, {})
    assert printed[0] == "image.jpg"
    by_package = dict(line.split() for line in printed[1:])
    by_hand = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    # The snippet resizes with Pillow as the package does; both print percent with two digits.
    assert by_hand == by_package
