"""What a user can get wrong, through the command line: exit code, one paragraph on standard error, nothing lost."""

import fcntl
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgeconvnext.cli import main
from edgeconvnext.data.digits import digits_set
from edgeconvnext.model.load import shipped_models

Tensors = dict[str, torch.Tensor]

DIGITS = shipped_models()["digits"]
FEW = ("--num-images", "30")
EMBEDDED = ("--model", "micro", "--calib", "digits", *FEW, "--effort", "quick")
POINTWISE = "stages.0.0.pwconv1.weight"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(micro: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command as the console script does, in this process and in a folder of its own.

    The argument "micro" stands for the checkpoint of micro.py.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGECONVNEXT_DATA", raising=False)

    def run(*arguments: str | Path) -> Ended:
        given = [micro if argument == "micro" else str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["edgeconvnext", *given])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, printed.out, printed.err)

    return run


def refused(ended: Ended, *words: str) -> None:
    """The user's input is wrong: exit 1 and one paragraph that holds all of `words`."""
    assert ended.code == 1, ended
    assert ended.err.startswith("error: "), ended.err
    assert ended.err.count("\n") == 1, ended.err
    for word in words:
        assert word in ended.err, ended.err


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return load_file(DIGITS)


class Touch:
    """Code in a pickle: loading it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def digit_folder(root: Path, count: int, *, classes: bool = True, suffix: str = ".jpg") -> list[Path]:
    """Write the first digits of the calibration split as image files, in a folder for each class or in one."""
    images, paths = digits_set("calibration"), []
    for index in range(count):
        folder = root / (images.class_of(index) or "") if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{index:03d}{suffix}")
        images.read(index).resize((64, 64)).save(paths[-1])
    return sorted(paths)


# Checkpoints

FILES: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "empty.pth": (lambda whole: b"", ("is empty",)),
    "empty.safetensors": (lambda whole: b"", ("is empty",)),
    "half.pth": (lambda whole: whole[: len(whole) // 2], ("truncated", "again")),
    "half.safetensors": (lambda whole: DIGITS.read_bytes()[:100_000], ("truncated", "again")),
    "flipped.pth": (
        lambda whole: whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 255]) + whole[len(whole) // 2 + 1 :],
        ("checksum", "again"),
    ),
    "page.pth": (lambda whole: b"<!DOCTYPE html><html>404</html>", ("no complete PyTorch checkpoint",)),
    "page.safetensors": (lambda whole: b"<!DOCTYPE html><html>404</html>", ("no complete safetensors file",)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_whole_is_refused(name: str, weights: Tensors, command: Command, tmp_path: Path) -> None:
    damage, words = FILES[name]
    torch.save(weights, tmp_path / "whole.pth")
    (tmp_path / name).write_bytes(damage((tmp_path / "whole.pth").read_bytes()))
    refused(command("quantize", "--model", name, "--calib", "digits", "--output", "run"), name, *words)
    assert not (tmp_path / "run").exists()


def with_value(tensors: Tensors, value: float) -> Tensors:
    changed = tensors[POINTWISE].clone()
    changed[3, 4] = value
    return tensors | {POINTWISE: changed}


CONTENTS: dict[str, tuple[Callable[[Tensors], object], tuple[str, ...]]] = {
    "nan": (lambda tensors: with_value(tensors, float("nan")), ("NaN or infinite", POINTWISE)),
    "infinite": (lambda tensors: {"model": with_value(tensors, float("inf"))}, ("NaN or infinite", POINTWISE)),
    "misshapen": (
        lambda tensors: tensors | {POINTWISE: tensors[POINTWISE][:, :5].clone()},
        ("misshapen", POINTWISE, "(64, 5)", "(64, 16)", "facebookresearch layout"),
    ),
    "missing": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != POINTWISE},
        ("1 missing", POINTWISE),
    ),
    "ViT": (
        lambda tensors: {"cls_token": torch.zeros(1, 1, 8), "blocks.0.attn.qkv.weight": torch.zeros(24, 8)},
        ("not a ConvNeXt", "Vision Transformer"),
    ),
    "ResNet": (
        lambda tensors: {"conv1.weight": torch.zeros(8, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(8, 8, 3, 3)},
        ("two 3x3 convs", "ResNet-18", "from ResNet-50 on"),
    ),
    "integers": (lambda tensors: {name: tensor.to(torch.int8) for name, tensor in tensors.items()}, ("quantised",)),
    "a list": (lambda tensors: [1, 2, 3], ("list", "state_dict")),
    "nothing": (lambda tensors: {}, ("no tensors",)),
    "a module": (lambda tensors: {"model": torch.nn.Linear(2, 2)}, ("run code", "state_dict")),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_weights_that_are_no_convnext_are_refused(
    content: str, weights: Tensors, command: Command, tmp_path: Path
) -> None:
    make, words = CONTENTS[content]
    torch.save(make(weights), tmp_path / "model.pth")
    refused(
        command("export", "--target", "onnx", "--model", "model.pth", "--calib", "digits", "--output", "run"), *words
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_code_in_a_pickle_does_not_run(
    protocol: int | None, weights: Tensors, command: Command, tmp_path: Path
) -> None:
    """None: inside a file of torch.save; 2 and 4: Python's own pickles."""
    harm = {"model": weights, "extra": Touch(tmp_path / "harm")}
    if protocol is None:
        torch.save(harm, tmp_path / "model.pth")
    else:
        (tmp_path / "model.pth").write_bytes(pickle.dumps(harm["extra"], protocol))
    refused(command("inspect", "model.pth"), "refused", "code", "state_dict")
    assert not (tmp_path / "harm").exists()


def test_models_that_are_not_there_are_refused_with_the_nearest_names(command: Command, tmp_path: Path) -> None:
    refused(command("inspect", "missing.pth"), "There is no weights file missing.pth")
    refused(command("inspect", "convnext_tinny"), "Did you mean convnext_tiny")
    refused(command("inspect", "digts"), "Did you mean digits")
    refused(command("inspect", ""), "There is no model ''")
    (tmp_path / "empty.pth").mkdir()
    refused(command("inspect", "empty.pth"), "holds no weights")
    refused(command("inspect", "a" * 300), "too long")


def test_a_model_of_one_channel_needs_its_own_normalisation(weights: Tensors, command: Command, tmp_path: Path) -> None:
    stem = "downsample_layers.0.0.weight"
    torch.save(weights | {stem: weights[stem].sum(1, keepdim=True)}, tmp_path / "grey.pth")
    refused(command("inspect", "grey.pth"), "1 input channels", "--mean", "--std")
    arguments = (
        "quantize", "--model", "grey.pth", "--calib", "digits", *FEW, "--effort", "quick", "--resolution", "32",
        "--crop-pct", "1",
    )  # fmt: skip
    refused(command(*arguments, "--mean", "0.3,0.3,0.3", "--std", "0.3,0.3,0.3", "--output", "run"), "3 values")
    assert command(*arguments, "--mean", "0.3", "--std", "0.3", "--output", "run").code == 0


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--resolution", "40", ("multiples of 32", "32 or 64")),
        ("--resolution", "0", ("from 1 on",)),
        ("--resolution", "-32", ("from 1 on",)),
        ("--resolution", "320000", ("4096",)),
        ("--resolution", "32x40", ("multiples of 32", "32 or 32x64")),
        ("--resolution", "32x", ("as in 224x320",)),
        ("--sizes", "64,", ("as in 224x320",)),
        ("--sizes", "64x72", ("multiples of 32", "64 or 64x96")),
        ("--crop-pct", "0", ("crop_pct",)),
        ("--mean", "0.5", ("one value for each input channel",)),
        ("--mean", "nan,0,0", ("finite",)),
        ("--std", "0,0,0", ("above zero",)),
        ("--num-images", "0", ("--num-images is 0", "at least 3")),
        ("--num-images", "-5", ("--num-images is -5",)),
        ("--num-images", "2", ("at least 3",)),
    ],
)
def test_values_that_cannot_be_meant_are_refused(
    option: str, value: str, words: tuple[str, ...], command: Command, tmp_path: Path
) -> None:
    refused(command("quantize", "--model", "digits", "--calib", "digits", option, value, "--output", "run"), *words)
    assert not (tmp_path / "run").exists()


# Images


def test_folders_without_usable_images_are_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "readme.txt").write_text("no image")
    (tmp_path / "renamed").mkdir()
    for number in range(8):
        (tmp_path / "renamed" / f"{number}.jpg").write_text("no image")
    (tmp_path / "file.jpg").write_text("x")
    cases = {
        "nowhere": "no image set or folder 'nowhere'",
        "empty": "holds no images",
        "texts": "holds no images",
        "renamed": "None of the 8 images",
        "file.jpg": "is a file",
        "": "no image set or folder ''",
    }
    for folder, words in cases.items():
        refused(command("quantize", "--model", "micro", "--calib", folder, "--output", "run"), words)
        if folder != "renamed":
            refused(command("quantize", *EMBEDDED, "--eval", folder, "--output", "run"), words)
        assert not (tmp_path / "run").exists()


def test_one_truncated_jpeg_in_a_hundred_is_named_and_skipped_and_two_are_an_error(
    command: Command, tmp_path: Path
) -> None:
    """The broken one is among the sixteen that the folds are proven on."""
    images = digit_folder(tmp_path / "images", 100)
    images[0].write_bytes(images[0].read_bytes()[:-300])
    arguments = ("quantize", "--model", "micro", "--calib", "images", "--num-images", "100", "--output")
    ended = command(*arguments, "run", "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["quantization"]["calibration_images"] == 99
    assert any("1 of 100 calibration images" in note and "0/000.jpg" in note for note in report["notes"])
    # Sorted by class, every third from the second on is held out: this one is on the other side than the first.
    images[1].write_bytes(images[1].read_bytes()[:-300])
    refused(command(*arguments, "other"), "2 of 100 images", "more than the 1 %", "0/000.jpg")


def test_a_broken_evaluation_image_is_named_and_skipped(command: Command, tmp_path: Path) -> None:
    images = digit_folder(tmp_path / "images", 100)
    images[5].write_bytes(b"no image")
    ended = command("quantize", *EMBEDDED, "--eval", "images", "--output", "run")
    assert ended.code in (0, 3), ended.err  # 3: the micro network may lose a point on 99 images
    assert "1 of 100 evaluation images" in " ".join(ended.out.split())


def test_labels_that_do_not_match_stop_an_evaluation_and_not_a_calibration(command: Command, tmp_path: Path) -> None:
    digit_folder(tmp_path / "flat", 12, classes=False)
    digit_folder(tmp_path / "renamed", 30)
    (tmp_path / "renamed" / "0").rename(tmp_path / "renamed" / "zéro nul")
    for folder, words in (("flat", "has no labels"), ("renamed", "zéro nul")):
        refused(command("quantize", *EMBEDDED, "--eval", folder, "--output", "run"), words)
        assert not (tmp_path / "run").exists()
    ended = command("quantize", "--model", "micro", "--calib", "renamed", "--output", "run", "--json")
    report = json.loads(ended.out)
    assert report["accuracy"]["fp32"] is None
    assert "zéro nul" in report["not_measured"]["accuracy.fp32"]
    assert report["accuracy"]["agreement"] is not None
    assert any("only 30 images" in note for note in report["notes"])


def test_a_thousand_classes_do_not_take_a_set_of_ten(weights: Tensors, command: Command, tmp_path: Path) -> None:
    head = {"head.weight": torch.randn(1000, weights["head.weight"].shape[1]), "head.bias": torch.zeros(1000)}
    torch.save(weights | head, tmp_path / "imagenet.pth")
    refused(
        command(
            "quantize", "--model", "imagenet.pth", "--resolution", "32", "--calib", "digits", "--eval", "digits_test"
        ),
        "10 of 10 classes",
        "model's 1000 classes",
    )


def test_blanks_accents_and_more_images_than_there_are_do_no_harm(
    weights: Tensors, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "fotos für später"
    digit_folder(folder, 12, suffix=".PNG")
    model = tmp_path / "mön modèle 1.pth"
    torch.save(weights, model)
    shutil.copy(DIGITS.with_suffix(".json"), model.with_suffix(".json"))
    ended = command(
        "quantize", "--model", model, "--calib", folder, "--num-images", "5000", "--effort", "quick",
        "--output", "ein lauf/ö", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["quantization"]["calibration_images"] == 12


# Training

TRAIN = ("train", "digits", "--data", "digits", "--preset", "small-data", "--sizes", "32")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*TRAIN[:1], "convnext_atoo", *TRAIN[2:]), ("no architecture 'convnext_atoo'", "Did you mean convnext_atto")),
        ((*TRAIN, "--data", "digts"), ("Did you mean digits",)),
        ((*TRAIN, "--eval", "digts_test"), ("Did you mean digits_test",)),
        ((*TRAIN, "--preset", "smal-data"), ("no preset 'smal-data'", "Did you mean small-data")),
        ((*TRAIN, "--preset", "missing.toml"), ("missing.toml cannot be read",)),
        ((*TRAIN, "--sizes", "40"), ("multiples of 32", "40x40")),
        ((*TRAIN, "--epochs", "3"), ("warm_up_epochs 5 must be fewer than the 3 epochs", "--warm-up-epochs 0")),
        ((*TRAIN, "--mixup", "-1"), ("mixup",)),
        ((*TRAIN, "--batch-size", "500"), ("400 images", "--batch-size")),
        ((*TRAIN, "--accumulate", "3"), ("must be a multiple of accumulate 3",)),
        ((*TRAIN, "--eval-every", "0"), ("--eval-every",)),
        ((*TRAIN, "--precision", "fp16"), ("needs a GPU", "--precision bf16")),
        ((*TRAIN, "--budget-minutes", "0"), ("--budget-minutes",)),
        (("fine-tune", "missing.pth", "--data", "digits"), ("no weights file missing.pth",)),
        (("fine-tune", "digits", "--data", "digits", "--layer-decay", "0"), ("layer_decay",)),
    ],
)
def test_trainings_that_cannot_be_meant_are_refused(
    arguments: tuple[str, ...], words: tuple[str, ...], command: Command, tmp_path: Path
) -> None:
    refused(command(*arguments, "--output", "run"), *words)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_images_without_labels_or_with_one_class_cannot_be_trained_on(command: Command, tmp_path: Path) -> None:
    digit_folder(tmp_path / "flat", 70, classes=False)
    digit_folder(tmp_path / "single" / "zero", 70, classes=False)
    arguments = ("train", "digits", "--preset", "small-data", "--sizes", "32", "--output", "run", "--data")
    refused(command(*arguments, "flat"), "no labels to learn", "subfolder for each class")
    refused(command(*arguments, "single"), "only the class zero")


def test_options_that_contradict_each_other_are_usage_errors(command: Command) -> None:
    assert command(*TRAIN, "--output", "run", "--no-ema", "--ema-decay", "0.9").code == 2
    assert command(*TRAIN, "--output", "run", "--sizes", "big").code == 2
    assert command(*TRAIN).code == 2  # no --output


def test_broken_images_are_left_out_of_training_and_too_many_are_an_error(command: Command, tmp_path: Path) -> None:
    images = digit_folder(tmp_path / "images", 120)
    images[3].write_bytes(b"no image")
    arguments = ("train", "digits", "--data", "images", "--preset", "small-data", "--sizes", "32", "--batch-size", "40")
    short = (*arguments, "--epochs", "1", "--warm-up-epochs", "0")
    assert command(*short, "--output", "run").code == 0
    for image in images[4:6]:
        image.write_bytes(b"no image")
    refused(command(*short, "--output", "other"), "3 of 120 images", "more than the 1 %")


# Names and files of targets and sets


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "jetsn"), ("no target 'jetsn'", "Did you mean jetson?")),
        (("--target", ""), ("no target ''", "Known targets")),
        (("--target", "missing.toml"), ("no target file missing.toml",)),
        (("--target", "onnx", "--calib", "imagenete"), ("Did you mean imagenette",)),
        (("--target", "onnx", "--eval", "digts_test"), ("Did you mean digits_test",)),
        (("--target", "onnx", "--calib", "imagenette"), ("not on this machine", "edgeconvnext data get imagenette")),
        (("--target", "onnx", "--calib", "imagenet_1k_subset"), ("not on this machine", "image-net.org")),
        (("--target", "onnx", "--calib", "missing.toml"), ("no image set file missing.toml",)),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_ones(
    arguments: tuple[str, ...], words: tuple[str, ...], command: Command, tmp_path: Path
) -> None:
    refused(command("export", *EMBEDDED, *arguments), *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('exporter = "onnx"', 'exporter = "onx"', ("Did you mean onnx?",)),
        ("score_drop_pp", "top1_drop_pp", ("unknown key gates.top1_drop_pp.", "Did you mean score_drop_pp?")),
        ("opset = 21", 'opset = "21"', ("opset", "valid integer")),
        ('name = "onnxruntime"', 'name = "coreml"', ("runtime",)),
        ('name = "onnx"', 'name = "../../onnx"', ("name", "part of a folder's name")),
        ('name = "onnx"', "name = ", ("not valid TOML",)),
        ("[gates]", '[layout]\nlinears = "gem"\n[gates]', ("layout.linears", "Did you mean gemm?")),
    ],
)
def test_a_target_file_that_does_not_hold_is_refused(
    old: str, new: str, words: tuple[str, ...], command: Command, tmp_path: Path
) -> None:
    from edgeconvnext.targets import target_files

    text = target_files()["onnx"].read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    refused(command("export", *EMBEDDED, "--target", "mine.toml"), "mine.toml", *words)
    assert not (tmp_path / "runs").exists()


def test_a_placement_that_was_searched_for_another_network_is_refused(command: Command, tmp_path: Path) -> None:
    from edgeconvnext.targets import target_files

    text = target_files()["onnx"].read_text()
    (tmp_path / "mine.toml").write_text(
        text.replace("[quantize]\n", '[quantize]\nfloat_layers = ["stages.9.0.dwconv"]\n', 1)
    )
    refused(
        command("export", *EMBEDDED, "--target", "mine.toml"), "Target onnx keeps stages.9.0.dwconv", "search again"
    )


def test_searches_that_cannot_be_are_refused(command: Command, tmp_path: Path) -> None:
    digits = ("search", "digits", "--calib", "digits")
    refused(command("search", "nowhere.pth", "--calib", "digits"), "nowhere.pth")
    refused(command(*digits, "--target", "onx"), "Did you mean onnx?")
    refused(command(*digits, "--num-images", "3"), "at least 6")
    (tmp_path / "file").write_text("x")
    refused(command(*digits, "--output", "file"), "file is a file", "--output")
    assert command(*digits, "--target", "jetson").code == 4
    assert command(*digits, "--budget-minutes", "-1").code == 2
    assert not (tmp_path / "searches").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("folder = ['images']", ("unknown key folder.", "Did you mean folders?")),
        ("folders = 'images'", ("folders", "valid list")),
        ("embedded = 'tst'", ("Did you mean test?",)),
        ("folders = ['images']\nimages_per_class = 0", ("images_per_class",)),
        ("folders = ['/nowhere/images']", ("not on this machine", "/nowhere/images")),
    ],
)
def test_a_set_file_that_does_not_hold_is_refused(
    text: str, words: tuple[str, ...], command: Command, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(f"name = 'mine'\ndescription = 'mine'\n{text}\n")
    refused(command("quantize", "--model", "digits", "--calib", "mine.toml"), *words)
    assert not (tmp_path / "runs").exists()


# Where results go


def test_a_file_or_a_strangers_folder_is_no_output(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    refused(command("quantize", *EMBEDDED, "--output", "file"), "is a file")
    refused(command("quantize", *EMBEDDED, "--output", "file/run"), "is a file")
    refused(command("quantize", *EMBEDDED, "--output", "folder"), "left alone")
    refused(command("quantize", *EMBEDDED, "--output", "a" * 300), "too long")
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["notes.txt"]


def test_fold_and_prune_write_over_nothing_and_leave_no_half_checkpoint(
    weights: Tensors, command: Command, tmp_path: Path, small_disk: Path
) -> None:
    torch.save(weights, tmp_path / "model.pth")
    description = tmp_path / "model.json"
    shutil.copy(DIGITS.with_suffix(".json"), description)
    before = description.read_text()
    subprocess.run(["mount", "-o", "remount,size=512k", str(small_disk)], check=True)
    prune = ("prune", "model.pth", "--macs", "0.8", "--calib", "digits", "--num-images", "9", "--output")
    for work in (("fold", "model.pth", "--calib", "digits", "--output"), prune):
        refused(command(*work, "model.safetensors"), "write over model.pth")
        refused(command(*work, "folded.pth"), ".safetensors")
        refused(command(*work, "model.pth/folded.safetensors"), "cannot be written")
        refused(command(*work, small_disk / "folded.safetensors"), "disk is full")
    assert description.read_text() == before
    assert not list(small_disk.iterdir())
    assert command("fold", "model.pth", "--calib", "digits", "--output", "new/folder/folded.safetensors").code == 0


def test_a_read_only_disk_is_said_plainly(command: Command, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(command("quantize", *EMBEDDED, "--output", small_disk / "run"), "read-only", "--output")
    fold = ("fold", "digits", "--calib", "digits", "--output", small_disk / "folded.safetensors")
    refused(command(*fold), "read-only", "disk/folded.json cannot be written")


# Runs


@pytest.fixture(scope="module")
def finished(micro: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of quantize, with its report."""
    from edgeconvnext.pipeline import commands as pipeline
    from edgeconvnext.pipeline.job import Request

    output = tmp_path_factory.mktemp("finished") / "run"
    return pipeline.quantize(Request(model=micro, calib="digits", num_images=30, effort="quick", output=output)).path


def test_a_full_disk_while_the_plan_is_written_keeps_what_was_finished(
    finished: Path, small_disk: Path, command: Command
) -> None:
    before = sum((finished / name).stat().st_size for name in ("folded.safetensors", "statistics.safetensors"))
    kib = (before + (finished / "plan.safetensors").stat().st_size // 2) // 1024 + 64
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(small_disk)], check=True)
    arguments = ["quantize", *EMBEDDED, "--output", str(small_disk / "run")]
    refused(command(*arguments), "disk is full", "finished stages are reused")
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    again = command(*arguments, "--json")
    assert again.code == 0, again.err
    assert reused(again) == {"fold", "statistics"}


def reused(ended: Ended) -> set[str]:
    return {stage["stage"] for stage in json.loads(ended.out)["stages"] if stage["reused"]}


def test_a_run_in_use_is_refused_to_a_second_process(finished: Path, command: Command) -> None:
    with (finished / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(command("quantize", *EMBEDDED, "--output", finished), "in use by another process", "--output")
    ended = command("quantize", *EMBEDDED, "--output", finished, "--json")
    assert ended.code == 0
    assert len(reused(ended)) == len(json.loads(ended.out)["stages"])


def test_a_run_of_another_target_is_not_written_over(finished: Path, command: Command) -> None:
    report = (finished / "report.json").read_bytes()
    refused(
        command("quantize", *EMBEDDED, "--target", "coreml", "--output", finished), "another target", "onnx", "coreml"
    )
    assert (finished / "report.json").read_bytes() == report


def test_what_is_no_run_is_no_source(finished: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name, words in (("nowhere", "no run directory"), ("folder", "not a run"), ("file", "not a run")):
        refused(command("validate", name), words)
        refused(command("export", "--target", "onnx", "--from", name), words)
    refused(command("validate", finished / "stages"), "lies inside the run")
    refused(command("validate", finished, "--data", "nowhere"), "no image set")
    both = command("export", "--target", "onnx", "--from", finished, "--resolution", "64")
    assert both.code == 2
    assert "leave out" in both.err


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda run: (run / "plan.safetensors").write_bytes(b"x"), ("plan.safetensors changed", "same command")),
        (lambda run: (run / "report.html").unlink(), ("report.html are gone",)),
        (lambda run: (run / "manifest.json").write_text("{"), ("not a manifest",)),
        (lambda run: (run / "manifest.json").unlink(), ("was not finished", "finished stages are reused")),
    ],
)
def test_a_run_that_is_not_what_it_was_is_refused_and_can_be_made_again(
    harm: Callable[[Path], object], words: tuple[str, ...], finished: Path, command: Command, tmp_path: Path
) -> None:
    copy = tmp_path / "copies" / "run"
    shutil.copytree(finished, copy)
    harm(copy)
    refused(command("validate", copy, "--no-latency"), *words)
    refused(command("export", "--target", "coreml", "--from", copy), *words)
    again = command("quantize", *EMBEDDED, "--output", copy, "--json")
    assert again.code == 0, again.err
    assert {"fold", "statistics"} <= reused(again)


INTERRUPTED = {
    "fold": "edgeconvnext.rewrite.exact.fold_exact",
    "statistics": "edgeconvnext.quantization.statistics.collect_statistics",
    "plan": "edgeconvnext.quantization.planning.build_plan",
    "quantized": "edgeconvnext.quantization.program.quantize_program",
    "artifact": "edgeconvnext.backends.onnxruntime.write.export_onnx",
    "reference": "edgeconvnext.evaluation.runner.collect",
    "manifest": "edgeconvnext.run.directory.write_manifest",
}


@pytest.mark.exhaustive
def test_ctrl_c_at_any_stage_leaves_no_half_artifact_and_the_next_run_goes_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ("export", "--target", "onnx", *EMBEDDED, "--no-latency", "--output", "run")
    run, stages = (
        tmp_path / "run",
        ["fold", "statistics", "plan", "quantized", "artifact", "reference", "accuracy", "report"],
    )
    for stage, function in INTERRUPTED.items():
        with monkeypatch.context() as patch:
            patch.setattr(function, interrupt)
            ended = command(*arguments)
        assert (ended.code, ended.err) == (130, "interrupted; run the same command again to go on where it stopped\n")
        assert not (run / "manifest.json").exists()
        assert not list(run.glob(".tmp-*"))
        assert (run / "model.onnx").exists() == (stage in ("reference", "manifest"))
    ended = command(*arguments, "--json")
    assert ended.code == 0, ended.err
    assert reused(ended) == {*stages, "device"} - {"report"}


def test_ctrl_c_while_layers_are_reconstructed_leaves_none_of_their_files(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeconvnext.quantization.candidates.Candidates.rounded", interrupt)
    arguments = [argument for argument in EMBEDDED if argument not in ("--effort", "quick")]
    ended = command("quantize", *arguments, "--output", "run")
    assert ended.code == 130
    assert not [
        path for path in (tmp_path / "run").rglob("*") if path.suffix == ".bin" or path.name.startswith(".tmp-")
    ]


def test_adaround_is_refused_where_weights_have_palettes(command: Command, tmp_path: Path) -> None:
    arguments = [argument for argument in EMBEDDED if argument not in ("--effort", "quick")]
    ended = command("quantize", *arguments, "--target", "coreml-p6", "--rounding", "adaround")
    refused(ended, "--rounding adaround", "palettes of target coreml-p6", "--rounding gptq")
    assert not (tmp_path / "runs").exists()


def test_a_run_for_a_target_of_the_users_own_is_measured_again_without_its_file(
    command: Command, tmp_path: Path
) -> None:
    from edgeconvnext.targets import target_files

    text = target_files()["onnx"].read_text().replace('name = "onnx"', 'name = "mine"', 1)
    (tmp_path / "mine.toml").write_text(text.replace("score_drop_pp = 1.0", "score_drop_pp = 7.0"))
    assert command("quantize", *EMBEDDED, "--target", "mine.toml", "--output", "run").code == 0
    (tmp_path / "mine.toml").unlink()
    ended = command("validate", "run", "--no-latency", "--json")
    assert ended.code == 0, ended.err
    assert {gate["name"]: gate["limit"] for gate in json.loads(ended.out)["gates"]}["score_drop_pp"] == 7.0
