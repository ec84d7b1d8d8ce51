"""Images are prepared as by the library a checkpoint comes from; what is assumed or not followed is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import run_command
from PIL import Image
from safetensors.torch import save_file

from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.errors import ConfigFileError
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.convnext.layouts import LAYOUTS
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.convnext.presets import PRESETS
from edgeconvnext.model.load import load_model
from edgeconvnext.model.preprocessing import ModelFiles, preprocess_of
from edgeconvnext.model.pretrained_config import PretrainedConfig

CONFIG = ConvNeXtConfig(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=3)


def saved(path: Path, layout: str) -> Path:
    """Write a small network under the names of a library, torchvision's or transformers'."""
    ours = ConvNeXt(CONFIG).state_dict()
    names = dict(next(known for known in LAYOUTS if known.name == layout).names(4, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    shaped = {n: t[:, None, None] if n.endswith("gamma") and layout == "torchvision" else t for n, t in ours.items()}
    save_file({names[name]: tensor.clone() for name, tensor in shaped.items()}, path)
    return path


def folder_of(tmp_path: Path, preprocessor: dict[str, Any]) -> Path:
    """Write a folder as transformers does."""
    saved(tmp_path / "model/model.safetensors", "transformers")
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "convnext"}))
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "model/preprocessor_config.json").write_text(json.dumps(normal | preprocessor))
    return tmp_path / "model"


@pytest.mark.parametrize(("width", "nearest", "floor"), [(67, 2, 1), (65, 0, 0), (69, 2, 2), (66, 1, 1)])
def test_a_crop_that_cannot_be_centred_begins_where_the_library_lets_it(width: int, nearest: int, floor: int) -> None:
    pixels = np.tile(np.arange(width, dtype=np.uint8), (64, 1))
    image = Image.fromarray(pixels).convert("RGB")  # 64 high, so that nothing is resized
    centred = Preprocess((64, 64), 1.0)
    assert centred.pixels(image)[0, 0, 0] == nearest
    assert replace(centred, crop_offset="floor").pixels(image)[0, 0, 0] == floor


def test_torchvision_without_json(tmp_path: Path) -> None:
    path = saved(tmp_path / "tv.safetensors", "torchvision")
    model = load_model(path)
    assert model.preprocess == Preprocess((224, 224), 224 / 236, "center", "bilinear")
    assert model.preprocess.resize_size == (236, 236)
    (note,) = model.notes
    assert "as in torchvision, whose names the tensors have, because no JSON lies beside the weights" in note
    assert "crop_pct 0.9492 (resize to 236), interpolation bilinear" in note and "--interpolation" in note
    # What is given is taken, and not called assumed.
    given = load_model(path, interpolation="lanczos", crop_pct=0.9)
    assert (given.preprocess.interpolation, given.preprocess.crop_pct) == ("lanczos", 0.9)
    assert "interpolation l" not in given.notes[0] and "crop_pct 0" not in given.notes[0]


@pytest.mark.parametrize(("name", "resized"), [("tiny", 236), ("small", 230), ("base", 232), ("large", 232)])
def test_torchvision_resizes_to_what_its_weights_were_published_with(name: str, resized: int) -> None:
    files = ModelFiles(Path("w"), None, None, "w", "w")
    config = PRESETS[f"convnext_{name}"].config
    preprocess, _ = preprocess_of(PretrainedConfig({}), {}, config, "torchvision", files)
    assert preprocess.resize_size == (resized, resized)


def test_other_libraries_without_json(tmp_path: Path) -> None:
    transformers = load_model(saved(tmp_path / "hf.safetensors", "transformers"))
    assert transformers.preprocess == Preprocess(crop_offset="floor")
    authors = saved(tmp_path / "fb.safetensors", "facebookresearch")
    assert load_model(authors).preprocess == Preprocess()
    squashed = load_model(authors, resolution=384)
    assert squashed.preprocess == Preprocess((384, 384), 1.0, "squash")
    assert "as in facebookresearch/ConvNeXt" in squashed.notes[0] and "both sides" in squashed.notes[0]
    assert load_model(authors, resolution=384, crop_pct=0.9).preprocess == Preprocess((384, 384), 0.9)


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        ({"image_processor_type": "ViTImageProcessor", "size": 64}, ((64, 64), 1.0, "squash")),
        ({"image_processor_type": "BitImageProcessor", "size": 64}, ((64, 64), 1.0, "center")),
        (
            {
                "image_processor_type": "DeiTImageProcessor",
                **{"size": {"height": 256, "width": 256}, "crop_size": 224, "do_center_crop": True},
            },
            ((224, 224), 0.875, "squash"),
        ),
    ],
)
def test_processors_of_transformers(preprocessor: dict[str, Any], expected: tuple, tmp_path: Path) -> None:
    preprocess = load_model(folder_of(tmp_path, preprocessor)).preprocess
    assert (preprocess.input_size, preprocess.crop_pct, preprocess.crop_mode) == expected
    assert preprocess.crop_offset == "floor"


def test_a_squash_with_a_crop_of_another_shape_is_refused(tmp_path: Path) -> None:
    odd = {"size": {"height": 256, "width": 128}, "crop_size": 64, "do_center_crop": True}
    with pytest.raises(ConfigFileError, match=r"resized to 256x128 and 64x64 is cropped"):
        load_model(folder_of(tmp_path, {"image_processor_type": "DeiTImageProcessor", **odd}))


def test_what_a_json_says_and_is_not_followed_is_named(tmp_path: Path) -> None:
    steps = {"size": 64, "do_flip_channel_order": True, "do_pad": False, "do_convert_rgb": True, "auto_map": {"x": "y"}}
    notes = load_model(folder_of(tmp_path, {"resample": 3, **steps})).notes
    assert [note.split(": ", 1)[1] for note in notes] == [
        "preprocessor_config.json, do_flip_channel_order true.",
        "preprocessor_config.json, auto_map (a processor with code of its own).",
    ]
    bare = load_model(tmp_path / "model/model.safetensors").notes
    assert "config.json and preprocessor_config.json, which belongs to the folder" in bare[-1]
    tested = {"test_input_size": [3, 288, 288], "test_crop_pct": 1.0, "interpolation": "bicubic", "crop_pct": 0.9}
    (tmp_path / "model/config.json").write_text(json.dumps({"architecture": "convnext_atto", "pretrained_cfg": tested}))
    notes = load_model(tmp_path / "model").notes
    assert any(
        "test_input_size 288 and test_crop_pct 1.0 (take them with --resolution 288 --crop-pct 1.0)" in n for n in notes
    )
    assert any("preprocessor_config.json, since config.json is timm's" in note for note in notes)


def test_a_saved_checkpoint_keeps_the_offset(tmp_path: Path) -> None:
    model = load_model(folder_of(tmp_path, {"size": 64}))
    save_checkpoint(model, tmp_path / "copy.safetensors")
    stored = json.loads((tmp_path / "copy.json").read_text())
    assert stored["crop_offset"] == "floor" and "crop_offset" not in stored["pretrained_cfg"]
    assert load_model(tmp_path / "copy.safetensors").preprocess == model.preprocess


def test_inspect_takes_the_interpolation(tmp_path: Path) -> None:
    path = saved(tmp_path / "tv.safetensors", "torchvision")
    preprocess = json.loads(run_command("inspect", path, "--json", "--interpolation", "nearest").stdout)["preprocess"]
    assert preprocess["interpolation"] == "nearest"
