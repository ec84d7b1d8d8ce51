"""The segmentation example of docs/backbone.md: its mosaics, its score, and training that goes on where it was interrupted."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import edgeconvnext
from edgeconvnext.data.preprocess import Preprocess
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
from edgeconvnext.model.loaded import LoadedModel

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"
PREPROCESS = Preprocess()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import segmentation

    return segmentation


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five classes, two images each, the red value of all pixels of class k being 50 k."""
    root = tmp_path_factory.mktemp("colours")
    for label, number in itertools.product(range(5), range(2)):
        folder = root / f"class{label}"
        folder.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(256, size=(160, 170, 3), dtype=np.uint8)
        pixels[:, :, 0] = 50 * label
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def network() -> ConvNeXt:
    torch.manual_seed(0)
    return ConvNeXt(ConvNeXtConfig(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), num_classes=5, kernel_size=3))


def segmenter(example: ModuleType) -> nn.Module:
    module = network()
    module.config = module.config.with_end("stages")
    torch.manual_seed(0)
    return example.FpnSegmenter(ConvNeXt(module.config), module.config.dims, classes=5, width=8)


def test_the_mask_is_the_class_of_each_pixel(example: ModuleType, colours: Path) -> None:
    images, masks = next(example.mosaics(resolve_image_set(colours), PREPROCESS, 4, seed=0))
    red = (images[:, 0] * PREPROCESS.std[0] + PREPROCESS.mean[0]) * 255
    # Float32 normalises and takes back to within 1e-4 of a level.
    assert torch.allclose(red, 50.0 * masks, atol=1e-2)
    assert images.shape == (4, 3, 256, 256)
    for mask in masks:
        areas = [int((mask == label).sum()) for label in mask.unique()]
        assert len(areas) == 4 and min(areas) >= 96 * 96


def test_mean_iou_and_its_interval(example: ModuleType) -> None:
    masks = torch.tensor([[[0, 0], [1, 1]], [[0, 1], [1, 1]]])
    called = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [1, 1]]])
    logits = nn.functional.one_hot(called, 2).permute(0, 3, 1, 2).float()
    counts = example.confusion(logits, masks)
    assert counts.tolist() == [[[1, 1], [0, 2]], [[1, 0], [1, 2]]]
    # Class 0: 2 pixels in both, 4 in either. Class 1: 4 in both, 6 in either.
    assert example.mean_iou(counts) == pytest.approx(100 * (2 / 4 + 4 / 6) / 2)
    assert example.paired_interval(counts, counts) == (0.0, 0.0)
    right = example.confusion(nn.functional.one_hot(masks, 2).permute(0, 3, 1, 2).float(), masks)
    low, high = example.paired_interval(right, counts)
    assert 0 < low <= example.mean_iou(right) - example.mean_iou(counts) <= high


def test_training_goes_on_where_it_was_interrupted(
    example: ModuleType, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "BATCH", 1)
    monkeypatch.setattr(example, "CHECKPOINT_STEPS", 2)
    images, checkpoint = resolve_image_set(colours), tmp_path / "fpn.training.pt"

    def train(module: nn.Module, stop: int | None = None) -> None:
        data = example.mosaics(images, PREPROCESS, 5, seed=0)
        example.train(module, module.encoder, itertools.islice(data, stop), 5, 1e-3, checkpoint)

    whole, resumed = segmenter(example), segmenter(example)
    train(whole)
    assert not checkpoint.exists()

    class Interrupted(Exception):
        pass

    def stopping(*_: object) -> None:
        raise Interrupted

    hook = resumed.register_forward_pre_hook(lambda *_: stopping() if checkpoint.exists() else None)
    with pytest.raises(Interrupted):
        train(resumed)
    hook.remove()
    train(resumed)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.exhaustive
def test_the_command_loads_what_save_names(
    example: ModuleType,
    colours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = network()
    model = LoadedModel(module.eval(), module.config, PREPROCESS, None, "small", "edgeconvnext", "small", sha256="")
    save_checkpoint(model, tmp_path / "small.safetensors")
    loaded = edgeconvnext.load_model(tmp_path / "small.safetensors", head="features")
    saved = tmp_path / "fpn.pt"
    torch.save(example.FpnSegmenter(loaded.module, loaded.config.dims, classes=5).state_dict(), saved)
    before = saved.read_bytes()
    monkeypatch.setattr(example, "CALIBRATION", 6)
    command = [
        "segmentation.py",
        "fpn",
        tmp_path / "small.safetensors",
        colours,
        colours,
        "--save",
        saved,
        "--held-out",
        8,
    ]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    example.main()
    output = capsys.readouterr().out
    assert "step 0" not in output and saved.read_bytes() == before
    assert "mIoU on 8 held-out mosaics: FP32" in output
    assert "FAILED" not in output
    assert (tmp_path / "fpn" / "model.onnx").is_file()
