"""fold, prune, compress and search take modules, state dicts, tensors and loaders, and give what files and sets give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import micro_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgeconvnext
from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.image_set import ImageSet
from edgeconvnext.data.loader import batches
from edgeconvnext.errors import CheckpointError, EdgeConvNextError, ImageSetError, OptionError, RewriteError
from tests.model.foreign_modules import AuthorsConvNeXt, TimmConvNeXt

MICRO = micro_model()
DIGITS = digits_set("calibration").take(60)
NOISE = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def prepared(images: ImageSet) -> TensorDataset:
    """Return digits as a user's loader has them: prepared, with their classes."""
    assert images.labels is not None
    values = torch.cat([batch.images for batch in batches(images, MICRO.preprocess)])
    return TensorDataset(values.contiguous(), torch.tensor(images.labels))


def loader() -> DataLoader:
    return DataLoader(prepared(DIGITS), batch_size=16, shuffle=True)


def assert_same_weights(module: nn.Module, expected: nn.Module) -> None:
    """Images in memory reach the network bit by bit, so that what is fitted on them is the same to the last bit."""
    state, other = module.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in state.items())


def test_a_folded_module_answers_as_its_own_forward() -> None:
    module = TimmConvNeXt(MICRO)
    folded = edgeconvnext.fold(module, calib=loader())
    assert folded.module.config.layer_scale is False
    images = prepared(digits_set("test").take(40)).tensors[0]
    with torch.inference_mode():
        expected, answers = module.eval()(images).double(), folded.module(images).double()
    # About ten layers of sums over some hundred terms in float32: 10 * sqrt(400) * 2^-24 is 1.2e-5.
    assert (answers - expected).norm() < 1.2e-5 * expected.norm()


@pytest.mark.parametrize(
    "model",
    [MICRO, MICRO.module, MICRO.module.state_dict(), AuthorsConvNeXt(MICRO)],
    ids=["loaded", "own module", "state dict", "module"],
)
@pytest.mark.parametrize("calib", [DIGITS, prepared(DIGITS).tensors], ids=["set", "tensors with labels"])
def test_every_kind_of_model_and_images_folds_to_the_same_network(model: Any, calib: Any) -> None:
    if isinstance(model, dict) and calib is DIGITS:
        model = (model, {"input_size": [3, 16, 16], "crop_pct": 1.0})
    expected = edgeconvnext.fold(MICRO, calib=DIGITS)
    assert_same_weights(edgeconvnext.fold(model, calib=calib).module, expected.module)


def test_pruning_of_a_module_and_a_loader_is_that_of_a_file_and_a_set(micro: str) -> None:
    asked = {"macs": 0.8, "score": "energy", "sparsity": "2:4", "num_images": 60}
    pruned = edgeconvnext.prune(TimmConvNeXt(MICRO), calib=loader(), **asked)
    named = edgeconvnext.prune(micro, calib=DIGITS, **asked)
    assert pruned.channels is not None and pruned.channels.macs_after <= 0.8 * pruned.channels.macs_before
    assert_same_weights(pruned.module, named.module)


def test_compressing_knows_the_classes_of_a_loader(micro: str, tmp_path: Path) -> None:
    asked = {"num_images": 60, "latency": False, "replace_norm": True, "norm_drop": 50.0}
    output = tmp_path / "small.safetensors"
    compressed = edgeconvnext.compress(TimmConvNeXt(MICRO), calib=loader(), output=output, **asked)
    named = edgeconvnext.compress(micro, calib=DIGITS, **asked)
    assert compressed.record.judged_by == "top-1"
    assert compressed.record == named.record
    assert_same_weights(compressed.module, named.module)
    saved = edgeconvnext.load_model(output)
    assert_same_weights(saved.module, compressed.module)
    assert (saved.preprocess.mean, saved.preprocess.std) == (MICRO.preprocess.mean, MICRO.preprocess.std)


def test_recovery_trains_on_all_of_a_loader() -> None:
    result = edgeconvnext.compress(
        TimmConvNeXt(MICRO), calib=loader(), num_images=30, latency=False, prune_macs=0.9, recover=True, epochs=1
    )
    assert result.record.recovery is not None
    # A step takes 32 images, and of num_images alone the 20 that are not held out would be left.
    assert result.record.recovery.images == 32


def test_a_search_of_the_same_module_and_loader_goes_on_from_what_was_measured(tmp_path: Path) -> None:
    asked = {"budget_minutes": 0, "num_images": 30, "output": tmp_path / "search"}
    first, folder = edgeconvnext.search(TimmConvNeXt(MICRO), calib=loader(), **asked)
    again, _ = edgeconvnext.search(TimmConvNeXt(MICRO), calib=loader(), **asked)
    assert (folder / "target.toml").is_file()
    assert again.taken_over == 1 and again.start == first.start


COMMANDS: dict[str, Callable[..., Any]] = {
    "fold": edgeconvnext.fold,
    "prune": lambda *args, **options: edgeconvnext.prune(*args, macs=0.8, **options),
    "compress": lambda *args, **options: edgeconvnext.compress(*args, replace_norm=True, **options),
    "search": lambda *args, **options: edgeconvnext.search(*args, budget_minutes=0, **options),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_is_refused_by_name(command: str, tmp_path: Path) -> None:
    run = COMMANDS[command]
    wrong = TimmConvNeXt(MICRO, nn.GELU(approximate="tanh"))
    refused: list[tuple[Any, Any, dict[str, Any], type[EdgeConvNextError], str]] = [
        (wrong, loader(), {}, CheckpointError, "between its layers mlp.fc1 and mlp.fc2"),
        (42, DIGITS, {}, CheckpointError, "A int is no model"),
        (MICRO, 42, {}, ImageSetError, "cannot be read from a int"),
        (MICRO, [], {}, ImageSetError, "holds none"),
        (MICRO, torch.rand(12, 1, 16, 16), {}, ImageSetError, "1 channels, and micro takes 3"),
        (MICRO.module, DIGITS, {"weights_from": "ema"}, OptionError, "weights_from"),
    ]
    if command != "search":
        path = tmp_path / "out.safetensors"
        refused.append((AuthorsConvNeXt(MICRO), NOISE, {"output": path}, OptionError, "mean and std"))
    for model, calib, options, error, said in refused:
        with pytest.raises(error, match=said):
            run(model, calib=calib, **options)
    assert not list(tmp_path.iterdir())


def test_recovery_refuses_tensors_of_unknown_normalisation_until_it_is_said() -> None:
    asked = {"num_images": 24, "latency": False, "prune_macs": 0.9, "recover": True, "epochs": 1}
    with pytest.raises(RewriteError, match="trains on pixels"):
        edgeconvnext.compress(AuthorsConvNeXt(MICRO), calib=NOISE, **asked)
    model = edgeconvnext.load_model(AuthorsConvNeXt(MICRO), resolution=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert edgeconvnext.compress(model, calib=NOISE, **asked).record.recovery is not None


def test_what_is_assumed_of_objects_in_memory_is_announced(capfd: pytest.CaptureFixture[str]) -> None:
    edgeconvnext.fold(TimmConvNeXt(MICRO), calib=loader())
    said = capfd.readouterr().err
    assert "timm layout" in said and "8-bit levels" in said
    edgeconvnext.fold(MICRO, calib=DIGITS)
    assert capfd.readouterr().err == ""
