"""Training from the command line: it learns, it goes on exactly after a kill, and what it writes is a model of the toolkit."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from in_process import run_command
from typer.testing import CliRunner

from edgeconvnext.cli import app
from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.label_names import Labels
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import ModelConfigError, RunDirectoryError, TrainingError
from edgeconvnext.model.convnext.network import ConvNeXtConfig
from edgeconvnext.model.load import load_model
from edgeconvnext.train import loop
from edgeconvnext.train.average import WeightAverage
from edgeconvnext.train.lanes import threads
from edgeconvnext.train.networks import new_model
from edgeconvnext.train.optimizer import parameter_groups
from edgeconvnext.train.recipe import Recipe, choose_recipe, recipe_toml
from edgeconvnext.train.training import TrainRequest, train_model

# Saves behind every step, which a training of minutes does each minute only, and tells the test when it did.
EACH_STEP = "import edgeconvnext.train.loop as loop; loop.SAVE_EVERY_S = 0.0; from edgeconvnext.cli import main; main()"
FAST = ("--preset", "small-data", "--sizes", "32", "--batch-size", "50", "--warm-up-epochs", "1", "--drop-path", "0.3")


def start(*arguments: str | Path, start_new_session: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", EACH_STEP, "train", "digits", "--data", "digits", *map(str, arguments)],
        start_new_session=start_new_session,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Train in this process, as `start` does in one of its own."""
    with pytest.MonkeyPatch.context() as patch, threads(1):
        patch.setattr(loop, "SAVE_EVERY_S", 0.0)
        return run_command("train", "digits", "--data", "digits", *arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)


def steps_of(folder: Path) -> int:
    return int(weights(folder)["steps"]) if (folder / "last.ckpt").is_file() else 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first["steps"] == second["steps"]
    for part in ("module", "average"):
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), (part, name)
    assert first["losses"] == second["losses"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of eight steps, in one go."""
    folder = tmp_path_factory.mktemp("training") / "whole"
    result = run(*FAST, "--epochs", "3", "--eval", "digits_test", "--output", folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_training_that_is_done_is_not_said_to_go_on(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "again")
    result = run_command(
        "train",
        "digits",
        "--data",
        "digits",
        *FAST,
        "--epochs",
        "3",
        "--eval",
        "digits_test",
        "--output",
        tmp_path / "again",
    )
    assert result.returncode == 0, result.stderr
    assert "all 3 epochs were trained before" in result.stderr
    assert "going on at epoch 4" not in result.stderr


@pytest.mark.parametrize(
    ("end", "code"), [pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.exhaustive), (signal.SIGINT, 130)]
)
def test_training_goes_on_exactly_where_it_was_ended(
    end: signal.Signals, code: int, whole: Path, tmp_path: Path
) -> None:
    process = start(*FAST, "--epochs", "3", "--eval", "digits_test", "--output", tmp_path / "cut")
    wait_for(lambda: steps_of(tmp_path / "cut") >= 11, process)  # in the second epoch
    process.send_signal(end)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert 11 <= steps_of(tmp_path / "cut") < 24
    again = run(*FAST, "--epochs", "3", "--eval", "digits_test", "--output", tmp_path / "cut")
    assert again.returncode == 0 and "going on at epoch" in again.stderr, again.stderr
    assert_same(whole, tmp_path / "cut")
    rows = [list(csv.DictReader((folder / "log.csv").open())) for folder in (whole, tmp_path / "cut")]
    for one, other in zip(*rows, strict=True):
        assert one | {"minutes": ""} == other | {"minutes": ""}


@pytest.mark.exhaustive
def test_a_signal_to_the_whole_group_saves_too(tmp_path: Path) -> None:
    """As torchrun and schedulers send it: the processes that decode end before the one that trains."""
    digits = digits_set("calibration")
    for index in range(200):
        (tmp_path / "images" / str(digits.class_of(index))).mkdir(parents=True, exist_ok=True)
        digits.read(index).save(tmp_path / "images" / str(digits.class_of(index)) / f"{index}.png")
    options = ("--data", tmp_path / "images", *FAST, "--epochs", "2000", "--output", tmp_path / "cut")
    process = start(*options, start_new_session=True)
    wait_for(lambda: steps_of(tmp_path / "cut") >= 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; run the same command again" in err, err


def test_a_pause_loses_nothing(whole: Path, tmp_path: Path) -> None:
    options = (*FAST, "--epochs", "3", "--eval", "digits_test", "--output", tmp_path / "cut")
    first = run(*options, "--budget-minutes", "0.0001")
    assert first.returncode == 0 and "paused; run the same command again" in first.stdout
    assert steps_of(tmp_path / "cut") < 24
    second = run(*options, "--quiet")
    assert second.returncode == 0 and second.stderr == ""
    assert_same(whole, tmp_path / "cut")


def test_a_finished_training_is_left_as_it_is(whole: Path) -> None:
    before = (whole / "model.safetensors").read_bytes()
    result = run(*FAST, "--epochs", "3", "--eval", "digits_test", "--output", whole)
    assert result.returncode == 0 and "top-1" in result.stdout, result.stderr
    assert (whole / "model.safetensors").read_bytes() == before


def test_the_folder_holds_a_model_that_loads_with_its_labels_and_preprocessing(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        "recipe.toml", "log.csv", "curves.svg", "last.ckpt", "model.safetensors", "model.json", ".lock"
    }  # fmt: skip
    model = load_model(whole / "model.safetensors")
    assert model.labels is not None and model.labels.names == tuple("0123456789")
    assert model.preprocess.input_size == (32, 32) and model.notes == ()
    for name, tensor in weights(whole)["average"].items():
        assert torch.equal(model.module.state_dict()[name], tensor)
    rows = list(csv.DictReader((whole / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and all(row["images"] == "599" for row in rows)
    assert "training loss" in (whole / "curves.svg").read_text()


@pytest.mark.slow
def test_what_was_trained_is_exported_like_any_other_model(whole: Path, tmp_path: Path) -> None:
    arguments = ("export", "--target", "onnx", "--model", str(whole / "model.safetensors"), "--calib", "digits")
    quickly = ("--num-images", "30", "--effort", "quick", "--no-latency", "--output", str(tmp_path / "run"))
    result = run_command(*arguments, *quickly)
    assert result.returncode in (0, 3), result.stderr  # 3: too short a training may lose more than a gate allows
    assert (tmp_path / "run" / "model.onnx").is_file()


def quick(**changes: object) -> Recipe:
    given = {"epochs": 2, "warm_up_epochs": 0.5, "sizes": (32,), "batch_size": 50, "rate_batch": 50, **changes}
    return choose_recipe("small-data", given)


def trained(folder: Path, recipe: Recipe, architecture: str = "digits") -> dict[str, torch.Tensor]:
    request = TrainRequest(digits_set("calibration"), None, recipe, folder)
    result = train_model(new_model(architecture, request.labels, recipe), request, lambda line: None)
    return {name: tensor.clone() for name, tensor in result.model.module.state_dict().items()}


def test_training_learns(tmp_path: Path) -> None:
    """A tenth would be chance; without augmentation the digits are learnt in a few epochs."""
    recipe = quick(
        epochs=12, learning_rate=3e-3, mixup=0.0, cutmix=0.0, rand_augment=0.0, erasing=0.0, flip=0.0,
        smallest_crop=0.6, drop_path=0.0, ema_decay=0.9,
    )  # fmt: skip
    request = TrainRequest(digits_set("calibration"), digits_set("test"), recipe, tmp_path / "run", evaluate_every=12)
    result = train_model(new_model("digits", request.labels, recipe), request, lambda line: None)
    assert result.finished and result.rows[-1].top1 is not None and result.rows[-1].top1 > 80
    assert [row.right is not None for row in result.rows] == [False] * 11 + [True]


def test_accumulated_parts_are_one_step(tmp_path: Path) -> None:
    """Without mixing and skipping, which are drawn by part. Sums in another order: equal but for rounding."""
    plain = {
        "precision": "fp32",
        "mixup": 0.0,
        "cutmix": 0.0,
        "drop_path": 0.0,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "epochs": 1,
    }
    whole = trained(tmp_path / "one", quick(**plain))
    parts = trained(tmp_path / "five", quick(**plain, accumulate=5))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_seed_repeats_and_another_one_differs(tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second, other = (
        trained(tmp_path / str(run), quick(epochs=1, seed=seed)) for run, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's random numbers are left alone
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16"}, {"ema_decay": 0.0}, {"optimizer": "sgd", "schedule": "step"}]
)
def test_switches_train(changes: dict[str, object], tmp_path: Path) -> None:
    assert all(bool(tensor.isfinite().all()) for tensor in trained(tmp_path / "run", quick(**changes)).values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_trains_and_what_it_wrote_loads_anywhere(precision: str, tmp_path: Path) -> None:
    tensors = trained(tmp_path / "run", quick(precision=precision))
    assert all(tensor.device.type == "cpu" and bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert load_model(tmp_path / "run" / "model.safetensors").config.num_classes == 10


@pytest.mark.data
def test_photographs_are_trained_on(photographs: Path, tmp_path: Path) -> None:
    images = resolve_image_set(photographs / "imagenette2-160" / "train").take(128)
    recipe = quick(epochs=2, sizes=(32, 64), batch_size=32, precision="bf16")
    request = TrainRequest(images, images.take(20), recipe, tmp_path / "run")
    result = train_model(new_model("convnext_atto", request.labels, recipe), request, lambda line: None)
    assert [(row.size, row.images) for row in result.rows] == [(32, 20), (64, 20)]
    model = load_model(result.path)
    assert model.labels is not None and model.labels.descriptions[0] == "tench"
    assert not (tmp_path / "run" / "images.cache").exists()


def test_lanes_go_on_exactly(tmp_path: Path) -> None:
    """Two lanes, paused after each step: the bits of a training in one go, skipped blocks included."""
    recipe = quick(drop_path=0.3, precision="fp32")
    with threads(2):
        whole = trained(tmp_path / "whole", recipe)
        assert torch.get_num_threads() == 2
        images = digits_set("calibration")
        calls = 0
        finished = False
        while not finished:
            request = TrainRequest(images, None, recipe, tmp_path / "cut", pause_minutes=1e-9)
            result = train_model(new_model("digits", request.labels, recipe), request, lambda line: None)
            finished, calls = result.finished, calls + 1
    assert calls > 10
    for name, tensor in result.model.module.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_sizes_on_the_way_need_not_be_multiples_of_the_stride(tmp_path: Path) -> None:
    """48 pixels are 12, 6, 3 and 1 positions in the four stages of a ConvNeXt."""
    images = digits_set("train").take(64)
    recipe = quick(epochs=2, sizes=(48, 64), batch_size=32)
    request = TrainRequest(images, None, recipe, tmp_path / "run")
    rows = train_model(new_model("convnext_atto", request.labels, recipe), request, lambda line: None).rows
    assert [row.size for row in rows] == [48, 64]
    for sizes in ((64, 48), (16, 64)):
        with pytest.raises(ModelConfigError, match="multiples of 32"):
            new_model("convnext_atto", request.labels, quick(sizes=sizes))


def test_the_stem_takes_another_stride(tmp_path: Path) -> None:
    command = (
        "--data",
        "digits",
        "--preset",
        "small-data",
        "--epochs",
        "1",
        "--warm-up-epochs",
        "0",
        "--batch-size",
        "100",
    )
    options = (*command, "--sizes", "16", "--stem-stride", "2", "--output", tmp_path / "run")
    result = CliRunner().invoke(app, ["train", "convnext_atto", *map(str, options)])
    assert result.exit_code == 0, result.output
    config = load_model(tmp_path / "run" / "model.safetensors").config
    assert isinstance(config, ConvNeXtConfig) and config.patch_size == 2 and config.total_stride == 16
    labels = Labels(("a", "b"), ("a", "b"))
    for name in ("resnet_atto", "convnext_atto_ols"):
        with pytest.raises(ModelConfigError, match="no patch stem"):
            new_model(name, labels, quick(), stem_stride=2)


def test_batch_norm_networks_train_and_load(tmp_path: Path) -> None:
    trained(tmp_path / "run", quick(epochs=1), "resnet_atto")
    model = load_model(tmp_path / "run" / "model.safetensors")
    assert model.name == "model" and model.config.num_classes == 10


def test_another_recipe_is_not_mixed_into_a_folder(tmp_path: Path) -> None:
    trained(tmp_path / "run", quick(epochs=1))
    with pytest.raises(TrainingError, match=r"epochs 1 -> 2, mixup 0.2 -> 0.0\)"):
        trained(tmp_path / "run", quick(epochs=2, mixup=0.0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="left alone"):
        trained(tmp_path / "mine", quick())


def test_a_checkpoint_of_other_images_is_refused(tmp_path: Path) -> None:
    recipe = quick(epochs=1)
    trained(tmp_path / "run", recipe)
    fewer = TrainRequest(digits_set("calibration").take(100), None, recipe, tmp_path / "run")
    with pytest.raises(TrainingError, match="no checkpoint of this training"):
        train_model(new_model("digits", fewer.labels, recipe), fewer)
    state = weights(tmp_path / "run")
    state["notes"]["rows"] = [{"epoch": "first"}]
    torch.save(state, tmp_path / "run" / "last.ckpt")
    with pytest.raises(TrainingError, match=r"last\.ckpt cannot be read: .* Delete it to start anew"):
        trained(tmp_path / "run", recipe)
    (tmp_path / "run" / "last.ckpt").write_bytes(b"PK broken")
    with pytest.raises(TrainingError, match="no checkpoint of this training"):
        trained(tmp_path / "run", recipe)


def test_a_diverged_training_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Training diverged"):
        trained(tmp_path / "run", quick(learning_rate=1e4, clip_norm=0.0))


def test_a_recipe_file_is_a_preset(whole: Path, tmp_path: Path) -> None:
    assert (whole / "recipe.toml").read_text() == recipe_toml(choose_recipe(str(whole / "recipe.toml"), {}))


def test_the_average_follows_the_weights() -> None:
    module = new_model("digits", load_model("digits").labels, quick()).module
    average = WeightAverage(module, 0.5)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    average.update(module, steps=1000)
    for name, tensor in average.module.state_dict().items():
        torch.testing.assert_close(tensor, start[name] + 0.5)
    average.update(module, steps=0)  # a decay of (1 + 0) / (10 + 0) at the start
    for name, tensor in average.module.state_dict().items():
        torch.testing.assert_close(tensor, start[name] + 0.5 * 0.1 + 0.9)


def test_layers_decay_towards_the_stem_and_vectors_are_not_decayed() -> None:
    module = load_model("digits").module
    groups = parameter_groups(module, 1.0, 0.05, layer_decay=0.5)
    rate = {id(p): group["rate"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    parameters = dict(module.named_parameters())
    assert len(rate) == len(parameters)
    assert rate[id(parameters["head.weight"])] == rate[id(parameters["norm.weight"])] == 1.0
    assert rate[id(parameters["stages.3.0.dwconv.weight"])] == 0.5
    assert rate[id(parameters["downsample_layers.3.1.weight"])] == 0.25
    assert rate[id(parameters["downsample_layers.0.0.weight"])] == min(rate.values())
    for name, parameter in parameters.items():
        assert decay[id(parameter)] == (0.05 if parameter.dim() > 1 else 0.0), name
    assert {group["rate"] for group in parameter_groups(module, 1.0, 0.05)} == {1.0}
