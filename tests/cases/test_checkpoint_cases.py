"""Checkpoints from public bug reports: each gives the right answers, computed by the library that it comes from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeconvnext.errors import CheckpointError
from edgeconvnext.model.load import load_model
from tests.in_process import fails, run_command

pytestmark = pytest.mark.data
# Plain float32 reaches it (CASES.md).
LIMIT = 1e-5
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "01_pth_tar/model_best.pth.tar": {},
    "02_lightning_ckpt/epoch=3-step=100.ckpt": {},
    "02_lightning_ckpt": {},
    "03_wrapper_prefixes/encoder.pth": {},
    "03_wrapper_prefixes/backbone.pth": {},
    "04_lightning_extra_buffers/criterion.pth": {},
    "05_sequential_head/timm.pth": {},
    "05_sequential_head/torchvision.pth": {},
    "09_mmpretrain/mmpretrain.pth": {},
    "11_sharded_safetensors/sharded": {},
    "12_numpy_metric/numpy_metric.pth": {},
    "13_wrapper_keys/model_state.pth": {},
    "13_wrapper_keys/teacher.pth": {},
    "14_lightning_model_and_ema/both.pth": {"weights_from": "model"},
    "15_ema_choice/bad_ema.pth": {"weights_from": "model"},
}
BACKBONES = [
    "06_timm_features_only_smp/features_only.pth",
    "06_timm_features_only_smp/smp.pth",
    "07_fcmae_backbone/fcmae.pth",
]


@pytest.fixture(scope="module")
def images(right_answers: Path) -> torch.Tensor:
    """The input that the right answers were computed for."""
    spec = importlib.util.spec_from_file_location("make_cases", right_answers.parent / "make_cases.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    inputs: torch.Tensor = maker.fixed_input()
    return inputs


def errors(path: Path, images: torch.Tensor, right: list[np.ndarray], **options: Any) -> list[float]:
    """Return the largest relative error of each output."""
    with torch.no_grad():
        outputs = load_model(path, **options).module(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [
        float(np.abs(output.numpy() - expected).max() / np.abs(expected).max())
        for output, expected in zip(outputs, right, strict=True)
    ]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_gives_the_plain_files_logits(
    cases: Path, right_answers: Path, images: torch.Tensor, name: str
) -> None:
    right = [np.load(right_answers / "atto.npy")]
    assert max(errors(cases / name, images, right, **CLASSIFIERS[name])) <= LIMIT


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_gives_its_stages(cases: Path, right_answers: Path, images: torch.Tensor, name: str) -> None:
    stored = np.load(right_answers / "stages.npz")
    stages = [stored[f"stage{number}"] for number in range(1, 5)]
    assert max(errors(cases / name, images[:1], stages, head="features")) <= LIMIT
    assert max(errors(cases / name, images[:1], stages[-1:], head="none")) <= LIMIT
    for head in ("classifier", "gap"):
        with pytest.raises(CheckpointError, match="--head features"):
            load_model(cases / name, head=head)


@pytest.mark.parametrize("name", ["transformers", "original.pth"])
@pytest.mark.parametrize("head", ["classifier", "gap"])
def test_dinov3_is_an_embedding(cases: Path, right_answers: Path, images: torch.Tensor, name: str, head: str) -> None:
    right = [np.load(right_answers / "embedding.npy")]
    assert max(errors(cases / "08_dinov3" / name, images, right, head=head)) <= LIMIT


def test_dinov3s_own_preprocessing(cases: Path) -> None:
    preprocess = load_model(cases / "08_dinov3" / "transformers").preprocess
    assert (preprocess.input_size, preprocess.crop_mode, preprocess.interpolation) == ((224, 224), "squash", "bilinear")


def test_a_backbone_of_transformers(cases: Path, right_answers: Path, images: torch.Tensor) -> None:
    folder = cases / "10_hf_backbone" / "backbone"
    right = [np.load(right_answers / "10_backbone.npz")["stage4"]]
    assert max(errors(folder, images[:1], right, head="none")) <= LIMIT
    assert any("hidden_states_norms" in note for note in load_model(folder, head="none").notes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("04_lightning_extra_buffers/criterion.pth", ["criterion.weight", "train_acc.tp"]),
        ("13_wrapper_keys/teacher.pth", ["student", "'teacher' was taken"]),
        ("14_lightning_model_and_ema/both.pth", ["model", "'ema_model' was taken", "--weights-from"]),
        ("15_ema_choice/bad_ema.pth", ["'model_ema' was taken", "--weights-from"]),
        ("25_prune_masks/pruned.pth", ["pruning masks"]),
    ],
)
def test_notes_say_what_was_assumed(cases: Path, name: str, words: list[str]) -> None:
    notes = " ".join(load_model(cases / name).notes)
    assert all(word in notes for word in words), notes


def test_an_average_that_never_warmed_up(cases: Path, tmp_path: Path) -> None:
    folder = cases / "15_ema_choice"
    done = run_command(
        *("quantize", "--model", folder / "bad_ema.pth", "--weights-from", "model", "--calib", cases / "photos"),
        *("--eval", folder / "labelled", "--target", "onnx", "--effort", "quick", "--num-images", "30"),
        *("--output", tmp_path / "run"),
    )
    assert "85.00 %" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("23_lfs_pointer/model.safetensors", "git lfs pull"),
        ("23_lfs_pointer/pytorch_model.bin", "git lfs pull"),
        ("26_unsupported_timm_variants/convnext_atto_rms.pth", "RMS norms"),
    ],
)
def test_what_is_refused_says_why(cases: Path, name: str, words: str) -> None:
    fails(run_command("inspect", cases / name), 1, words)
