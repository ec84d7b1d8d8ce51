"""A training multiplies in bf16 by itself where the hardware does, and its recipe says what it multiplied in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgeconvnext.data.digits import digits_set
from edgeconvnext.data.label_names import Labels
from edgeconvnext.errors import TrainingError
from edgeconvnext.train.networks import new_model
from edgeconvnext.train.precision import precision_on
from edgeconvnext.train.recipe import choose_recipe, read_recipe
from edgeconvnext.train.training import TrainRequest, train_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"bf16": True}, "bf16"),  # Arm
        ({"avx512_vnni": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_processor_has_it(
    features: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert precision_on(CPU, "auto") == expected
    assert precision_on(CPU, "fp32") == "fp32" and precision_on(CPU, "bf16") == "bf16"


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(TrainingError, match="needs a GPU"):
        precision_on(CPU, "fp16")
    assert precision_on(torch.device("cuda"), "fp16") == "fp16"


@pytest.mark.parametrize("has_bf16", [False, True])
def test_the_recipe_on_disk_says_what_auto_became(
    has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without bf16 then goes on by the same recipe, or refuses, and never mixes the two."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    images = digits_set("calibration")
    recipe = choose_recipe("small-data", {"sizes": (32,), "epochs": 1, "warm_up_epochs": 0.0, "batch_size": 100})
    assert recipe.precision == "auto"
    request = TrainRequest(images, None, recipe, tmp_path / "run")
    train_model(new_model("digits", Labels(images.class_names, images.class_names), recipe), request, lambda line: None)
    assert read_recipe(tmp_path / "run" / "recipe.toml").precision == ("bf16" if has_bf16 else "fp32")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not has_bf16})
    with pytest.raises(TrainingError, match=r"another recipe \(precision"):
        train_model(new_model("digits", Labels(images.class_names, images.class_names), recipe), request)
